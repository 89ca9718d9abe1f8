"""Train one variant with one seed."""

import logging
from pathlib import Path

import pandas as pd

from rerg.devices import claim
from rerg.models import Model, save
from rerg.parallel import spread
from rerg.script import checkpoint_of, logged
from rerg.training import TrainingJob, train_job
from rerg.validation import CHECKED, Validation, destroyed, gains, last_fifth

log = logging.getLogger(__name__)

with logged(snakemake.log[0]):
    params, source, output = snakemake.params, snakemake.input, snakemake.output
    # Read here, not given by params: what changes no weights must not make them stale.
    settings = snakemake.config["training"]
    processes, nodes = settings["processes"], settings["nodes"]
    claim(params.device, processes)
    (spec,) = params.spec
    kernels = {Path(path).stem: path for path in source.kernels}
    job = TrainingJob(
        spec=spec,
        code=params.code,
        start=next(iter(source.start), None),
        images=tuple(source.images),
        checkpoint=checkpoint_of(snakemake.log[0], ".ckpt"),
        kernels=kernels,
        device=params.device,
        threads=snakemake.threads,
        log=snakemake.log[0],
        **{key: settings[key] for key in ("launch", "log_every", "checkpoint_every")},
    )
    if processes * nodes > 1:
        # They spend the budget, and what follows reads their last checkpoint.
        spread(job, processes, nodes)
    networks, rows = train_job(job)
    pd.DataFrame(rows).to_csv(output.curve, index=False, float_format="%.6g")
    paths = {Path(path).stem: path for path in source.validation}
    validation = Validation(paths, CHECKED, kernels, params.device)
    model = Model(networks.requires_grad_(False), spec, {})
    model.compute_in("float32")
    gained = gains(model, validation, spec.problems, spec.crop)
    reason = destroyed(rows, networks, gained)
    if reason:
        log.warning("%s with seed %d is destroyed: %s", spec.variant, spec.seed, reason)
    about = {key: rows[-1][key] for key in ("step", "evaluations", "seconds", "rollbacks")}
    about |= {key: last_fifth(rows, key) for key in ("lost", "skipped")}
    about |= {"gained": gained, "destroyed": reason}
    save(Path(output.weights), networks, spec, about)
    Path(job.checkpoint).unlink(missing_ok=True)
