"""Write the tables of one dataset, or of all of them pooled."""

from pathlib import Path

from rerg.scores import load_scores, of_dataset
from rerg.script import logged
from rerg.statistics import Evidence
from rerg.tables import write_tables

with logged(snakemake.log[0]):
    params, source = snakemake.params, snakemake.input
    scores = load_scores(source.scores, params.expected, source.get("provenance") or None)
    scores = of_dataset(scores, snakemake.wildcards.dataset)
    evidence = Evidence(scores, params.methods, list(params.problems))
    write_tables(evidence, Path(snakemake.output[0]).parent, params.problems)
