"""Restore the images of one dataset for some problems with one baseline."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rerg.baselines import guarded, load, published_denoiser, restore, trained_denoiser
from rerg.problems import load_observations
from rerg.script import logged

log = logging.getLogger(__name__)


def restorations(source, params, name, weights):
    """The arrays of one restoration file."""
    settings = params.settings
    denoiser = None
    if weights:
        denoiser = trained_denoiser(params.spec, weights[0])
    elif "denoiser" in settings:
        denoiser = published_denoiser(settings["denoiser"])
    if denoiser is not None:
        denoiser = denoiser.to(params.device).eval()
    function = load(name, settings, params.folder)
    _, observations = load_observations(source, params.device)
    return restore(function, observations, settings["parameters"], denoiser, params.batch)


with logged(snakemake.log[0]):
    torch.set_num_threads(snakemake.threads)
    params, name = snakemake.params, snakemake.wildcards.method
    for source, target in zip(snakemake.input.observations, snakemake.output, strict=True):
        task = partial(restorations, source, params, name, snakemake.input.weights)
        arrays, reason = guarded(task, params.settings["timeout"])
        if reason:
            log.warning("%s: %s: %s", name, Path(source).stem, reason)
            arrays = {"failed": np.array(reason)}
        np.savez(target, **arrays)
