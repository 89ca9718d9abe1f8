"""Score every restoration of a group of problems on one dataset."""

from pathlib import Path

import pandas as pd

from rerg.devices import set_up_cpu
from rerg.files import restorations_of
from rerg.images import open_images
from rerg.perceptual import load_lpips
from rerg.provenance import commit
from rerg.scores import score, write_scores
from rerg.script import logged

with logged(snakemake.log[0]):
    source = snakemake.input
    set_up_cpu(snakemake.threads)
    with open_images(source.images) as file:
        truth = {image: file[image][()] for image in file}
    lpips = load_lpips(Path(source.lpips))
    # Read here, not given by params: a commit alone must not make the scores stale.
    head = commit()
    tables = [
        score(
            run=snakemake.params.run,
            dataset=snakemake.wildcards.dataset,
            problem=observations.stem,
            truth=truth,
            observations=observations,
            restorations=restorations_of(observations.stem, source.restorations),
            lpips=lpips,
            commit=head or "",
        )
        for observations in sorted(Path(source.observations).glob("*.npz"))
    ]
    write_scores(pd.concat(tables, ignore_index=True), Path(snakemake.output[0]))
