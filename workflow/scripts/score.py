"""Score all restorations of a group of problems on one dataset."""

from pathlib import Path

import h5py

from rerg.devices import set_up_cpu
from rerg.perceptual import load_lpips
from rerg.provenance import commit
from rerg.scores import score, write_scores
from rerg.script import logged

with logged(snakemake.log[0]):
    set_up_cpu(snakemake.threads)
    with h5py.File(snakemake.input.images) as file:
        truth = {image: file[image][()] for image in file}
    lpips = load_lpips(Path(snakemake.input.lpips))
    # Read here, not given by params: a commit alone must not make the scores stale.
    head = commit(Path.cwd())
    restorations = [Path(path) for path in snakemake.input.restorations]
    for observations, target in zip(snakemake.input.observations, snakemake.output, strict=True):
        problem = Path(target).stem
        table = score(
            run=snakemake.params.run,
            dataset=snakemake.wildcards.dataset,
            problem=problem,
            truth=truth,
            observations=Path(observations),
            restorations={p.stem: p for p in restorations if p.parent.name == problem},
            lpips=lpips,
            seed=snakemake.params.seed,
            commit=head or "",
        )
        write_scores(table, Path(target))
