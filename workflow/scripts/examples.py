"""Draw restorations of one dataset side by side, another image for every problem."""

from pathlib import Path

import h5py

from rerg.figures import examples, save_figure
from rerg.scores import images_of
from rerg.script import logged

with logged(snakemake.log[0]):
    params = snakemake.params
    rows = {}
    with h5py.File(snakemake.input.images) as file:
        images = sorted(file)
        for number, (problem, methods) in enumerate(params.examples.items()):
            image = images[number % len(images)]
            rows[problem] = images_of(
                image,
                file[image][()],
                Path(snakemake.input.observations[number]),
                {m: Path(params.restorations) / problem / f"{m}.npz" for m in methods},
            )
    figure = examples(rows, params.methods, params.problems)
    save_figure(figure, Path(snakemake.output.pdf), Path(snakemake.output.png))
