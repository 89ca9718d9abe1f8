"""Draw the figures of one dataset that need the scores alone."""

from pathlib import Path

from rerg import figures
from rerg.scores import load_scores, of_dataset
from rerg.script import logged
from rerg.statistics import Evidence

with logged(snakemake.log[0]):
    params, source = snakemake.params, snakemake.input
    scores = load_scores(source.scores, params.expected, source.get("provenance") or None)
    scores = of_dataset(scores, snakemake.wildcards.dataset)
    evidence = Evidence(scores, params.methods, list(params.problems))
    drawn = {
        "iterations": figures.iterations(evidence, params.iterations_of, params.problems),
        "regret": figures.regret(evidence, params.problems),
        "bound": figures.bound(evidence),
        "evaluations": figures.evaluations(evidence, params.problems),
    }
    folder = Path(snakemake.output[0]).parent
    for name, figure in drawn.items():
        figures.save_figure(figure, folder / f"{name}.pdf", folder / f"{name}.png")
