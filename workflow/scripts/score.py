"""Score all restorations of a group of problems on one dataset."""

from pathlib import Path

import h5py

from rerg.devices import set_up_cpu
from rerg.perceptual import load_lpips
from rerg.provenance import commit
from rerg.scores import score, write_scores
from rerg.script import logged

with logged(snakemake.log[0]):
    params = snakemake.params
    set_up_cpu(snakemake.threads)
    with h5py.File(snakemake.input.images) as file:
        truth = {image: file[image][()] for image in file}
    lpips = load_lpips(Path(snakemake.input.lpips))
    # Read here, not given by params: a commit alone must not make the scores stale.
    head = commit(Path.cwd())
    restorations = list(zip(params.restored, snakemake.input.restorations, strict=True))
    for problem, observations, target in zip(
        params.problems, snakemake.input.observations, snakemake.output, strict=True
    ):
        table = score(
            run=params.run,
            dataset=snakemake.wildcards.dataset,
            problem=problem,
            truth=truth,
            observations=Path(observations),
            restorations={(m, s): Path(path) for (p, m, s), path in restorations if p == problem},
            lpips=lpips,
            commit=head or "",
        )
        write_scores(table, Path(target))
