"""Draw PSNR on the validation images over what was tuned."""

from pathlib import Path

import pandas as pd

from rerg.figures import save_figure, tuning
from rerg.script import logged

with logged(snakemake.log[0]):
    tables = {Path(path).stem: pd.read_csv(path) for path in snakemake.input.trials}
    figure = tuning(tables, snakemake.params.methods, snakemake.params.problems)
    save_figure(figure, Path(snakemake.output.pdf), Path(snakemake.output.png))
