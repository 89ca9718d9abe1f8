"""Draw the training curves of all variants and seeds."""

from pathlib import Path

from rerg.figures import read_curve, save_figure, training
from rerg.script import logged

with logged(snakemake.log[0]):
    paths = [Path(path) for path in snakemake.input.curves]
    curves = {
        (path.name.removesuffix(".training.csv"), int(path.parent.name)): read_curve(path)
        for path in paths
    }
    figure = training(curves, snakemake.params.methods)
    save_figure(figure, Path(snakemake.output.pdf), Path(snakemake.output.png))
