"""Draw restorations of one dataset side by side, another image for every problem."""

from pathlib import Path

import h5py

from rerg.figures import examples, save_figure
from rerg.scores import images_of
from rerg.script import logged

with logged(snakemake.log[0]):
    restorations = [Path(path) for path in snakemake.input.restorations]
    rows = {}
    with h5py.File(snakemake.input.images) as file:
        images = sorted(file)
        for number, observations in enumerate(map(Path, snakemake.input.observations)):
            problem, image = observations.stem, images[number % len(images)]
            rows[problem] = images_of(
                image,
                file[image][()],
                observations,
                {p.stem: p for p in restorations if p.parent.name == problem},
            )
    figure = examples(rows, snakemake.params.methods, snakemake.params.problems)
    save_figure(figure, Path(snakemake.output.pdf), Path(snakemake.output.png))
