"""Score all restorations of one problem on one dataset."""

import subprocess
from pathlib import Path

import h5py

from rerg.perceptual import load_lpips
from rerg.scores import score, write_scores
from rerg.script import logged

with logged(snakemake.log[0]):
    with h5py.File(snakemake.input.images) as file:
        truth = {image: file[image][()] for image in file}
    # Read here, not given by params: a commit alone must not make the scores stale.
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    table = score(
        run=snakemake.params.run,
        dataset=snakemake.wildcards.dataset,
        problem=snakemake.wildcards.problem,
        truth=truth,
        observations=Path(snakemake.input.observations),
        restorations={Path(path).stem: Path(path) for path in snakemake.input.restorations},
        lpips=load_lpips(Path(snakemake.input.lpips)),
        seed=snakemake.params.seed,
        commit=commit,
    )
    write_scores(table, Path(snakemake.output[0]))
