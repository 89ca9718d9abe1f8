"""Restore the images of one dataset from a group of problems by one variant and one solver."""

import shutil
from pathlib import Path

from rerg.baselines import FACTOR
from rerg.devices import claim, set_up_cpu
from rerg.downloads import sha256_of
from rerg.files import read_observed, write_restored
from rerg.images import read_images
from rerg.models import load_model
from rerg.networks import launch
from rerg.problems import from_arrays
from rerg.restoration import restore
from rerg.script import checkpoint_of, logged
from rerg.trials import best
from rerg.tuning import scaled_options

with logged(snakemake.log[0]):
    set_up_cpu(snakemake.threads)
    params, source = snakemake.params, snakemake.input
    solver, settings = params.method["solver"], params.restoration
    claim(params.device)
    model = load_model(Path(source.weights[0]), next(iter(params.spec), None), params.device)
    launch(model.networks, settings["launch"])
    clean = read_images(source.images)
    partial = Path(checkpoint_of(snakemake.log[0]))
    for name in params.problems:
        path = Path(source.observations, f"{name}.npz")
        problem, observations = from_arrays(read_observed(path), params.device)
        chosen: dict[str, float] = {}
        for trials in source.tuning:
            chosen |= best(Path(trials), name)
        factor = chosen.get(FACTOR, 1)
        options = scaled_options(solver, params.options[name], chosen)
        restored = restore(
            model,
            {image: o.scaled(factor) for image, o in observations.items()},
            solver=solver,
            options=options,
            precisions=settings["precision"],
            batch_size=settings["batch"],
            truth={image: problem.crop(x) for image, x in clean.items()},
            bound_iterates=settings["bound_iterates"],
            partial=partial,
            key=[
                model.about["sha256"],
                sha256_of(path),
                solver,
                options,
                settings["precision"],
                settings["bound_iterates"],
                factor,
                params.code,
            ],
        )
        write_restored(Path(snakemake.output[0], f"{name}.npz"), restored)
    shutil.rmtree(partial, ignore_errors=True)
