"""Restore the images of one dataset from a group of problems by one baseline."""

import logging
from functools import partial
from pathlib import Path

from rerg.baselines import guarded, load_baseline, restore
from rerg.devices import claim, set_up_cpu
from rerg.files import Restored, read_observed, write_restored
from rerg.problems import from_arrays
from rerg.script import logged
from rerg.trials import best

log = logging.getLogger(__name__)
params, source = snakemake.params, snakemake.input
name, settings = snakemake.wildcards.method, params.settings


def restorations(path):
    """The restorations of one problem."""
    files = (next(map(Path, paths), None) for paths in (source.baseline, source.weights))
    baseline = load_baseline(name, settings, *files, params.device)
    problem, observations = from_arrays(read_observed(path), params.device)
    chosen = best(Path(source.tuning[0]), problem.name) if source.tuning else {}
    return restore(baseline, observations, chosen, params.batch)


with logged(snakemake.log[0]):
    set_up_cpu(snakemake.threads)
    claim(params.device)
    for problem in params.problems:
        path = Path(source.observations, f"{problem}.npz")
        restored, reason = guarded(partial(restorations, path), settings["timeout"])
        if reason:
            log.warning("%s: %s: %s", name, problem, reason)
            restored = Restored(failed=reason)
        write_restored(Path(snakemake.output[0], f"{problem}.npz"), restored)
