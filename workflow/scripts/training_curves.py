"""Draw the training curves of all variants."""

from pathlib import Path

import pandas as pd

from rerg.figures import save_figure, training
from rerg.script import logged

with logged(snakemake.log[0]):
    curves = {
        Path(path).name.removesuffix(".training.csv"): pd.read_csv(path)
        for path in snakemake.input.curves
    }
    figure = training(curves, snakemake.params.methods)
    save_figure(figure, Path(snakemake.output.pdf), Path(snakemake.output.png))
