"""Observe the images of one dataset by a group of problems."""

from pathlib import Path

from rerg.files import write_observed
from rerg.images import read_images
from rerg.problems import Problem, to_arrays
from rerg.script import logged

with logged(snakemake.log[0]):
    dataset, folder = snakemake.wildcards.dataset, Path(snakemake.output[0])
    images = read_images(snakemake.input.images)
    kernels = {Path(path).stem: path for path in snakemake.input.kernels}
    for spec in snakemake.params.problems:
        problem = Problem(spec, kernels)
        observed = {image: problem.observe_image(dataset, image, x) for image, x in images.items()}
        write_observed(folder / f"{spec.name}.npz", to_arrays(problem, observed))
