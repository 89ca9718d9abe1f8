"""Draw the figures of one dataset that need its scores alone."""

from pathlib import Path

from rerg import figures, tables
from rerg.scores import read_scores
from rerg.script import logged

with logged(snakemake.log[0]):
    params = snakemake.params
    scores = read_scores(Path(snakemake.input.scores))
    scores = scores[scores["dataset"] == snakemake.wildcards.dataset]
    labels = params.methods, params.problems
    regret = tables.regret(scores, params.problems, params.seed)
    drawn = {
        "iterations": figures.iterations(scores, params.iterations_of, *labels),
        "regret": figures.regret(regret, *labels),
        "bound": figures.bound(scores, params.methods),
        "evaluations": figures.evaluations(scores, *labels),
    }
    folder = Path(snakemake.output[0]).parent
    for name, figure in drawn.items():
        figures.save_figure(figure, folder / f"{name}.pdf", folder / f"{name}.png")
