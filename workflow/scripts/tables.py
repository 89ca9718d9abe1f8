"""Write the tables of one dataset."""

from pathlib import Path

from rerg.scores import read_scores
from rerg.script import logged
from rerg.tables import write_tables

with logged(snakemake.log[0]):
    scores = read_scores(Path(snakemake.input.scores))
    write_tables(
        scores[scores["dataset"] == snakemake.wildcards.dataset],
        Path(snakemake.output[0]).parent,
        snakemake.params.methods,
        snakemake.params.problems,
        snakemake.params.seed,
    )
