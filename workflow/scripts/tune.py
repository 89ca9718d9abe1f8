"""Tune σ of one variant, or what one baseline declares, on the validation images."""

from functools import partial
from hashlib import sha256
from pathlib import Path

from rerg.baselines import folder_of, guarded, prepare, restore
from rerg.config import digest
from rerg.devices import claim, set_up_cpu
from rerg.networks import load_weights
from rerg.problems import Problem
from rerg.restoration import restore as restore_by_variant
from rerg.script import logged
from rerg.training import build_networks
from rerg.tuning import FACTOR, summary, tune, validation_observations

params, source = snakemake.params, snakemake.input
name, settings, tuning = snakemake.wildcards.tuned, params.settings, params.tuning
paths = dict(zip(params.datasets, source.images, strict=True))


def problem_of(problem):
    return Problem(problem, params.problems[problem], params.kernels)


def observe(problem):
    """Observations of the validation images, and their ground truth."""
    return validation_observations(problem_of(problem), paths, tuning["images"], params.device)


def key(problem):
    """A digest of all that a trial depends on."""
    files = [*source.images, *source.weights, *source.baseline, *source.kernels]
    digests = [sha256(Path(path).read_bytes()).hexdigest() for path in files]
    options = {k: tuning[k] for k in ("images", "iterations", "tolerance")}
    about = {k: v for k, v in settings.items() if k not in ("label", "citation", "tune")}
    return digest([digests, params.problems[problem], options, about, params.spec])[:16]


def try_baseline(problem, parameters):
    """A trial in a process of its own, so that one which fails is a row of the table."""

    def task():
        function, denoiser = prepare(
            name,
            settings,
            folder_of(source.baseline),
            params.spec,
            source.weights,
            params.device,
        )
        observations, truth = observe(problem)
        chosen = {**settings["parameters"], **parameters}
        return summary(restore(function, observations, chosen, denoiser, params.batch), truth)

    row, reason = guarded(task, settings["timeout"])
    return row or {"failed": reason}


def try_variant(networks, observed, problem, parameters):
    """A trial of a variant by the fast solver."""
    if problem not in observed:
        observed[problem] = observe(problem)
    observations, truth = observed[problem]
    factor = parameters[FACTOR]
    arrays = restore_by_variant(
        name,
        networks,
        {image: o.with_sigma(factor * o.sigma) for image, o in observations.items()},
        scale=params.spec["network"]["scale"],
        solver="fast",
        options={k: tuning[k] for k in ("iterations", "tolerance")},
        batch_size=params.batch,
    )
    return summary(arrays, truth)


with logged(snakemake.log[0]):
    set_up_cpu(snakemake.threads)
    claim(params.device)
    grid, trial = settings.get("tune"), try_baseline
    if grid is None:
        networks = build_networks(params.spec)
        load_weights(source.weights[0], networks, {"config": digest(params.spec)})
        networks.to(params.device).requires_grad_(False)
        grid, trial = {FACTOR: tuning["factors"]}, partial(try_variant, networks, {})
    tune(Path(snakemake.output[0]), list(params.problems), grid, tuning["rounds"], key, trial)
