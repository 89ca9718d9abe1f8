"""Join the parts of the table of scores."""

from pathlib import Path

from rerg.scores import collect, write_scores
from rerg.script import logged

with logged(snakemake.log[0]):
    write_scores(collect(map(Path, snakemake.input.parts)), Path(snakemake.output[0]))
