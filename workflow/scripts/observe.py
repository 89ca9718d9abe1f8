"""Observe the images of one dataset for some problems."""

from rerg.images import read_images
from rerg.problems import Problem, generator, save_observations
from rerg.script import logged

with logged(snakemake.log[0]):
    dataset, problems = snakemake.wildcards.dataset, snakemake.params.problems
    images = read_images(snakemake.input.images)
    for (name, entry), path in zip(problems.items(), snakemake.output, strict=True):
        problem = Problem(name, entry, snakemake.params.kernels)
        observed = {
            image: problem.observe(x[None], [generator(dataset, name, image)])
            for image, x in images.items()
        }
        save_observations(path, problem, observed)
