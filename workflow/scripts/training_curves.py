"""Draw the training curves of all variants and seeds, and tabulate what the trainings did."""

import json
from pathlib import Path

from rerg.figures import read_curve, save_figure, training
from rerg.labels import variant_label
from rerg.script import logged
from rerg.tables import TRAINING_FORMATS, TRAINING_HEADS, trainings, write_table

with logged(snakemake.log[0]):
    source, output = snakemake.input, snakemake.output
    curves = {
        (path.name.removesuffix(".training.csv"), int(path.parent.name)): read_curve(path)
        for path in map(Path, source.curves)
    }
    figure = training(curves, snakemake.params.methods)
    save_figure(figure, Path(output.pdf), Path(output.png))
    described = [json.loads(Path(path).read_text(encoding="utf-8")) for path in source.models]
    table, notes = trainings(described)
    variants, seeds = ({key: key for key in level} for level in table.index.levels)
    write_table(
        table,
        Path(output.table).parent,
        "trainings",
        rows=[{name: variant_label(name) for name in variants}, seeds],
        columns=TRAINING_HEADS,
        formats=TRAINING_FORMATS,
        notes=notes,
    )
