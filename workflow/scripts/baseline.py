"""Restore the images of one dataset for some problems with one baseline."""

import logging
from functools import partial
from pathlib import Path

import numpy as np

from rerg.baselines import folder_of, guarded, prepare, restore
from rerg.devices import claim, set_up_cpu
from rerg.problems import load_observations
from rerg.script import logged
from rerg.tuning import best

log = logging.getLogger(__name__)


def restorations(source, name):
    """The arrays of one restoration file."""
    params, settings, files = snakemake.params, snakemake.params.settings, snakemake.input
    function, denoiser = prepare(
        name, settings, folder_of(files.baseline), params.spec, files.weights, params.device
    )
    problem, observations = load_observations(source, params.device)
    parameters = settings["parameters"]
    if files.tuning:
        parameters = {**parameters, **best(files.tuning[0], problem.name)}
    return restore(function, observations, parameters, denoiser, params.batch)


with logged(snakemake.log[0]):
    set_up_cpu(snakemake.threads)
    name, timeout = snakemake.params.name, snakemake.params.settings["timeout"]
    claim(snakemake.params.device)
    for source, target in zip(snakemake.input.observations, snakemake.output, strict=True):
        arrays, reason = guarded(partial(restorations, source, name), timeout)
        if reason:
            log.warning("%s: %s: %s", name, Path(source).stem, reason)
            arrays = {"failed": np.array(reason)}
        np.savez(target, **arrays)
