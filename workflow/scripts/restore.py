"""Restore the images of one dataset for some problems with one variant and one solver."""

import shutil
from pathlib import Path

import numpy as np

from rerg.config import digest
from rerg.devices import claim, set_up_cpu
from rerg.images import read_images
from rerg.networks import compile_networks, load_weights
from rerg.problems import load_observations
from rerg.restoration import restore
from rerg.script import logged
from rerg.training import build_networks
from rerg.tuning import FACTOR, best

with logged(snakemake.log[0]):
    set_up_cpu(snakemake.threads)
    params, device = snakemake.params, snakemake.params.device
    claim(device)
    networks = build_networks(params.spec)
    about = load_weights(snakemake.input.weights[0], networks, {"config": digest(params.spec)})
    networks.to(device).requires_grad_(False)
    if params.compile:
        compile_networks(networks)
    clean = read_images(snakemake.input.images)
    partial = Path(params.partial)
    for source, target in zip(snakemake.input.observations, snakemake.output, strict=True):
        problem, observations = load_observations(source, device)
        if snakemake.input.tuning:
            factor = best(snakemake.input.tuning[0], problem.name).get(FACTOR, 1)
            observations = {n: o.with_sigma(factor * o.sigma) for n, o in observations.items()}
        options = params.options
        if "learning_rate" in options:
            options = {**options, **params.learning_rates.get(problem.name, {})}
        key = [about["sha256"], digest(Path(source).read_bytes().hex()), params.method]
        key += [options, params.bound_iterates]
        key += [observation.sigma for observation in observations.values()]
        arrays = restore(
            params.method["variant"],
            networks,
            observations,
            scale=params.spec["network"]["scale"],
            solver=params.method["solver"],
            options=options,
            batch_size=params.batch,
            truth={name: problem.crop(x) for name, x in clean.items()},
            bound_iterates=params.bound_iterates,
            partial=partial,
            key=key,
        )
        np.savez(target, **arrays)
    shutil.rmtree(partial, ignore_errors=True)
