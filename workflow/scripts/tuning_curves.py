"""Draw PSNR on the validation images over what was tuned."""

from pathlib import Path

from rerg.figures import save_figure, tuning
from rerg.script import logged
from rerg.trials import read_trials

with logged(snakemake.log[0]):
    params = snakemake.params
    tables = {Path(path).stem: read_trials(path) for path in snakemake.input.trials}
    figure = tuning(tables, params.methods, params.declared, params.problems)
    save_figure(figure, Path(snakemake.output.pdf), Path(snakemake.output.png))
