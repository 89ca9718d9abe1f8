"""Train one variant with one seed."""

from pathlib import Path

import pandas as pd

from rerg.devices import claim
from rerg.models import save
from rerg.parallel import spread
from rerg.script import checkpoint_of, logged
from rerg.training import TrainingJob, summary, train_job

with logged(snakemake.log[0]):
    params, source = snakemake.params, snakemake.input
    claim(params.device, params.processes)
    weights = Path(snakemake.output.weights)
    job = TrainingJob(
        spec=params.spec,
        start=next(iter(source.start), None),
        images=tuple(source.images),
        checkpoint=checkpoint_of(snakemake.log[0], ".ckpt"),
        kernels={Path(path).stem: path for path in source.kernels},
        device=params.device,
        threads=snakemake.threads,
        log=snakemake.log[0],
        **params.training,
    )
    if params.processes * params.nodes > 1:
        # They spend the budget, and what follows reads their last checkpoint.
        spread(job, params.processes, params.nodes)
    networks, rows = train_job(job)
    pd.DataFrame(rows).to_csv(snakemake.output.curve, index=False, float_format="%.6g")
    save(weights, networks, params.spec, summary(params.spec, rows))
    Path(job.checkpoint).unlink(missing_ok=True)
