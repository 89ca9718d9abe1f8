"""Observe the images of one dataset for some problems."""

import h5py
import torch

from rerg.problems import Problem, generator, save_observations
from rerg.script import logged

with logged(snakemake.log[0]):
    dataset, problems = snakemake.wildcards.dataset, snakemake.params.problems
    with h5py.File(snakemake.input.images) as file:
        images = {name: torch.from_numpy(stored[()]) for name, stored in file.items()}
    for (name, entry), path in zip(problems.items(), snakemake.output, strict=True):
        problem = Problem(name, entry, snakemake.params.kernels)
        observed = {}
        for image, pixels in images.items():
            x = pixels.permute(2, 0, 1)[None].float() / 255
            observed[image] = problem.observe(x, [generator(dataset, name, image)])
        save_observations(path, problem, observed)
