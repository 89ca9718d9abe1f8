"""Choosing the factor of σ, or a baseline's parameters, on validation images; every trial is kept.

A table of trials has a row per (problem, parameters): the mean PSNR in dB over the images, the mean
of the network evaluations where they are known, `key`, which stands for all that the trial depends
on, and `failed`, the reason where there is no restoration.
"""

import itertools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from torch import Tensor

from rerg.images import as_tensor
from rerg.problems import Observation, Problem, generator

log = logging.getLogger(__name__)

COLUMNS = ["problem", "parameters", "psnr", "network_evaluations", "key", "failed"]
FACTOR = "sigma_factor"  # by which σ of the problem is multiplied
STEPS = 4  # beyond the grid, at most
GAIN = 0.02  # dB by which such a step must gain for another

Parameters = dict[str, float]


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


def validation_observations(
    problem: Problem, paths: dict[str, Path], count: int, device: str
) -> tuple[dict[str, Observation], dict[str, Tensor]]:
    """Observations of the first `count` images of some datasets, and their ground truth.

    paths: dataset to its HDF5 file.
    """
    observed, truth = {}, {}
    for dataset, path in paths.items():
        with h5py.File(path) as file:
            for image in itertools.islice(file, count - len(observed)):
                x = as_tensor(file[image][()])[None]
                rng = generator(dataset, problem.name, image)
                observed[f"{dataset}/{image}"] = problem.observe(x, [rng]).to(device)
                truth[f"{dataset}/{image}"] = problem.crop(x[0])
    return observed, truth


def summary(arrays: dict[str, np.ndarray], truth: dict[str, Tensor]) -> dict:
    """Mean PSNR and network evaluations of a restoration's arrays."""
    errors = [np.mean((arrays[name] - x.numpy()) ** 2) for name, x in truth.items()]
    stats = json.loads(str(arrays["stats"])).values()
    evaluations = [s["network_evaluations"] for s in stats if "network_evaluations" in s]
    return {
        "psnr": float(np.mean(-10 * np.log10(errors))),
        "network_evaluations": float(np.mean(evaluations)) if evaluations else None,
    }


def tune(
    path: Path,
    problems: list[str],
    grid: dict[str, list[float]],
    rounds: int,
    key: Callable[[str], str],
    trial: Callable[[str, Parameters], dict],
) -> None:
    """Search for every problem and write the table of trials; a trial that it has is not repeated.

    key: of a problem, a string that stands for all that its trials depend on; trial: of a problem
    and parameters, the row's `psnr`, `network_evaluations` and `failed`.
    """
    known = {}
    if path.exists():
        for row in pd.read_csv(path, dtype={"key": str}).to_dict("records"):
            known[row["problem"], row["key"], row["parameters"]] = row
    rows = []
    for problem in problems:
        digest = key(problem)

        def evaluate(parameters: Parameters, problem=problem, digest=digest) -> float:
            about = (problem, digest, json.dumps(parameters))
            row = known.get(about)
            if row is None:
                row = dict(zip(("problem", "key", "parameters"), about, strict=True))
                row |= trial(problem, parameters)
            rows.append(row)
            return row.get("psnr", math.nan)

        trials = search(grid, rounds, evaluate)
        best, quality = max(trials, key=lambda pair: _comparable(pair[1]))
        log.info("%s: %s, %.2f dB", problem, best, quality)
        for name in on_edge(trials):
            log.warning("%s: %s: the best value, %g, is on the edge", problem, name, best[name])
        _write(rows, path)


def _write(rows: list[dict], path: Path) -> None:
    unfinished = path.with_suffix(".partial")
    pd.DataFrame(rows).reindex(columns=COLUMNS).to_csv(
        unfinished, index=False, float_format="%.6g", lineterminator="\n"
    )
    unfinished.replace(path)


def best(path: Path, problem: str) -> Parameters:
    """The parameters of a problem's best trial; none where every trial failed."""
    table = pd.read_csv(path)
    table = table[(table["problem"] == problem) & table["psnr"].notna()]
    if table.empty:
        log.warning("%s: %s: no trial succeeded; the declared parameters are used", path, problem)
        return {}
    return json.loads(table.loc[table["psnr"].idxmax(), "parameters"])
