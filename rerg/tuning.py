"""Choosing σ, a solver's step or a baseline's parameters on validation images, all trials kept."""

import itertools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import numpy as np
from torch import Tensor
from tqdm import tqdm

from rerg.baselines import FACTOR, Baseline, guarded
from rerg.baselines import restore as restore_by
from rerg.files import Restored
from rerg.metrics import psnr
from rerg.models import Model
from rerg.registry import solvers
from rerg.restoration import restore
from rerg.specs import ProblemSpec, digest
from rerg.trials import Parameters, read_trials, write_trials
from rerg.validation import Validation

log = logging.getLogger(__name__)

STEPS = 4  # beyond the grid, at most
STEP = "step_factor"  # the parameter by which the tuned option of a solver is multiplied
GAIN = 0.02  # dB by which such a step must gain for another


def search(
    grid: dict[str, list[float]], rounds: int, evaluate: Callable[[Parameters], float]
) -> list[tuple[Parameters, float]]:
    """Maximise a function of positive parameters, coarse to fine: all trials, in their order.

    The first round tries the grid; where its best lies on the edge of an axis it walks on from
    there by the grid's mean ratio, `STEPS` times at most, as long as a step gains more than `GAIN`.
    Each further round halves that ratio on a log scale and tries that step up and down from the
    best so far. A value that is not a number is worse than any other.
    """
    tried: dict[tuple[float, ...], float] = {}

    def try_all(axes: list[list[float]]) -> None:
        for point in itertools.product(*axes):
            point = tuple(float(f"{value:.4g}") for value in point)  # as the table shows them
            if point not in tried:
                tried[point] = evaluate(dict(zip(grid, point, strict=True)))

    def leader() -> tuple[float, ...]:
        return max(tried, key=lambda point: _comparable(tried[point]))

    try_all(list(grid.values()))
    ratios = [(max(v) / min(v)) ** (1 / (len(v) - 1)) for v in grid.values()]
    for axis, ratio in enumerate(ratios):
        for _ in range(STEPS):
            start, values = leader(), {point[axis] for point in tried}
            if min(values) < start[axis] < max(values):
                break
            end = start[axis] * (ratio if start[axis] == max(values) else 1 / ratio)
            try_all([[end if i == axis else value] for i, value in enumerate(start)])
            if not tried[leader()] - tried[start] > GAIN:
                break
    for _ in range(1, rounds):
        ratios = [math.sqrt(ratio) for ratio in ratios]
        try_all([[b / r, b, b * r] for b, r in zip(leader(), ratios, strict=True)])
    return [(dict(zip(grid, point, strict=True)), value) for point, value in tried.items()]


def _comparable(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def on_edge(trials: list[tuple[Parameters, float]]) -> list[str]:
    """The parameters whose best value is the smallest or largest that was tried."""
    best, _ = max(trials, key=lambda trial: _comparable(trial[1]))
    tried = {name: [parameters[name] for parameters, _ in trials] for name in best}
    return [name for name, value in best.items() if value in (min(tried[name]), max(tried[name]))]


Trial = Callable[[ProblemSpec, Parameters], dict]


def scaled_options(solver: str, options: Mapping, parameters: Mapping[str, float]) -> dict:
    """A solver's options, that which it tunes multiplied by `step_factor` of the parameters."""
    tuned = solvers()[solver].tuned
    return {**options, tuned: options[tuned] * parameters.get(STEP, 1)} if tuned else dict(options)


def model_trial(
    model: Model,
    validation: Validation,
    solver: str,
    options: Mapping[str, Mapping],
    batch_size: int,
    precisions: Sequence[str] = ("float32",),
    found: Mapping[str, Parameters] = MappingProxyType({}),
) -> Trial:
    """A trial of a variant by a solver: its mean PSNR and network evaluations.

    options: of the solver, by problem; found: parameters that were chosen before, by problem.
    """
    observed: dict[str, tuple] = {}

    def trial(spec: ProblemSpec, parameters: Parameters) -> dict:
        if spec.name not in observed:
            observed[spec.name] = validation.observe(spec)
        observations, truth = observed[spec.name]
        parameters = {FACTOR: 1, **found.get(spec.name, {}), **parameters}
        restored = restore(
            model,
            {name: o.scaled(parameters[FACTOR]) for name, o in observations.items()},
            solver=solver,
            options=scaled_options(solver, options[spec.name], parameters),
            precisions=precisions,
            batch_size=batch_size,
        )
        return summary(restored, truth)

    return trial


def baseline_trial(
    load: Callable[[], Baseline], validation: Validation, timeout: float, batch_size: int
) -> Trial:
    """A trial of a baseline in a process of its own, so that one which fails is a row."""

    def trial(spec: ProblemSpec, parameters: Parameters) -> dict:
        def task() -> dict:
            observations, truth = validation.observe(spec)
            return summary(restore_by(load(), observations, parameters, batch_size), truth)

        row, reason = guarded(task, timeout)
        return row or {"failed": reason}

    return trial


def summary(restored: Restored, truth: Mapping[str, Tensor]) -> dict:
    """Mean PSNR and network evaluations of restorations."""
    quality = [psnr(restored.images[name], x.numpy()) for name, x in truth.items()]
    rows = restored.stats.values()
    evaluations = [row["network_evaluations"] for row in rows if "network_evaluations" in row]
    return {
        "psnr": float(np.mean(quality)),
        "network_evaluations": float(np.mean(evaluations)) if evaluations else None,
    }


def tune(
    path: Path,
    problems: Sequence[ProblemSpec],
    grid: Mapping[str, Sequence[float]],
    rounds: int,
    about: Callable[[ProblemSpec], object],
    trial: Trial,
) -> None:
    """Search for every problem and write the table of trials; a trial that it has is not repeated.

    about: plain values for all that the trials of a problem depend on besides its spec; trial: of a
    problem and parameters, the row's `psnr`, `network_evaluations` and `failed`.
    """
    known = {}
    if path.exists():
        for row in read_trials(path).to_dict("records"):
            known[row["problem"], row["key"], json.dumps(row["parameters"])] = row
    rows = []
    for spec in tqdm(problems, "tuning", unit="problem", disable=None):
        problem, key = spec.name, digest([about(spec), asdict(spec)])[:16]

        def evaluate(parameters: Parameters, spec=spec, key=key) -> float:
            row = known.get((spec.name, key, json.dumps(parameters)))
            if row is None:
                row = {"problem": spec.name, "key": key, "parameters": parameters}
                row |= trial(spec, parameters)
            rows.append(row)
            return row.get("psnr", math.nan)

        trials = search(grid, rounds, evaluate)
        chosen, quality = max(trials, key=lambda pair: _comparable(pair[1]))
        log.info("%s: %s, %.2f dB", problem, chosen, quality)
        for name in on_edge(trials):
            log.warning("%s: %s: the best value, %g, is on the edge", problem, name, chosen[name])
        write_trials(rows, path)
