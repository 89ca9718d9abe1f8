"""Train one variant."""

from pathlib import Path

import pandas as pd

from rerg.devices import claim
from rerg.networks import save_weights
from rerg.parallel import spread
from rerg.script import logged
from rerg.training import describe, train_job

with logged(snakemake.log[0]):
    params = snakemake.params
    claim(params.device, params.processes)
    job = {
        "spec": params.spec,
        "start": next(iter(snakemake.input.start), None),
        "images": list(snakemake.input.images),
        "checkpoint": params.checkpoint,
        "kernels": params.kernels,
        "device": params.device,
        "threads": snakemake.threads,
        "compile": params.compile,
        "log_every": params.log_every,
        "checkpoint_every": params.checkpoint_every,
        "log": snakemake.log[0],
    }
    if params.processes * params.nodes > 1:
        # They spend the budget, and what follows reads their last checkpoint.
        spread(job, params.processes, params.nodes)
    networks, rows = train_job(job)
    pd.DataFrame(rows).to_csv(snakemake.output.curve, index=False, float_format="%.6g")
    save_weights(snakemake.output.weights, networks, describe(params.spec, rows))
    Path(params.checkpoint).unlink(missing_ok=True)
