"""Tune σ of one variant, the step of its solver, or what one baseline declares."""

from functools import partial
from pathlib import Path

from rerg.baselines import FACTOR, load_baseline
from rerg.devices import claim, set_up_cpu
from rerg.downloads import sha256_of
from rerg.models import load_model
from rerg.networks import launch
from rerg.script import logged
from rerg.trials import best
from rerg.tuning import STEP, Validation, baseline_trial, model_trial, tune

with logged(snakemake.log[0]):
    set_up_cpu(snakemake.threads)
    params, source, name = snakemake.params, snakemake.input, snakemake.wildcards.method
    settings, tuning = params.settings, params.tuning
    claim(params.device)
    weights, code = (next(map(Path, paths), None) for paths in (source.weights, source.baseline))
    validation = Validation(
        paths={Path(path).stem: path for path in source.images},
        count=tuning["images"],
        kernels={Path(path).stem: path for path in source.kernels},
        device=params.device,
    )
    if "variant" in settings:
        model = load_model(weights, device=params.device)
        launch(model.networks, params.launch)
        if source.sigma:
            grid = {STEP: tuning["step_factors"]}
            found = {spec.name: best(Path(source.sigma[0]), spec.name) for spec in params.problems}
        else:
            grid, found = {FACTOR: tuning["factors"]}, {}
        trial = model_trial(
            model,
            validation,
            settings["solver"],
            params.options,
            params.batch,
            params.precisions,
            found,
        )
    else:
        grid, found = settings["tune"], {}
        load = partial(load_baseline, name, settings, code, weights, params.device)
        trial = baseline_trial(load, validation, settings["timeout"], params.batch)
    files = [*map(sha256_of, [*source.images, *source.weights, *source.baseline])]
    kernels = {Path(path).stem: sha256_of(path) for path in source.kernels}

    def about(spec):
        """What the trials of a problem depend on, in plain values."""
        return [
            [*files, kernels.get((spec.kernel or {}).get("file"))],
            [tuning["images"], params.options.get(spec.name), params.precisions, params.code],
            {k: v for k, v in settings.items() if k != "tune"},
            found.get(spec.name),
        ]

    tune(
        Path(snakemake.output[0]),
        params.problems,
        grid,
        tuning["rounds"],
        about=about,
        trial=trial,
    )
