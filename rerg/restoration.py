"""Restoring all images of an observation file with one variant and one solver."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rerg.bound import error_bound, iteration_bound, radial_factor, rms
from rerg.devices import peak_memory_mb
from rerg.files import Restored, read_restored, write_restored
from rerg.iteration import DIVERGED, Solution, norm, sent
from rerg.maps import Map, ProximalGradient
from rerg.metrics import psnr
from rerg.models import Model
from rerg.problems import Observation, batch, batches
from rerg.registry import load
from rerg.specs import digest

log = logging.getLogger(__name__)

NEAR = 2  # times its floor: there a precision is left for the next
TOLERANCE = 1e-5  # relative; float32 arithmetic may exceed an equality of the bound by this much


def trace_grid(iterations: int) -> set[int]:
    """The evaluations at which a trace is taken: about seven a decade, and the last."""
    grid = np.unique(np.round(np.geomspace(1, iterations, 1 + round(7 * np.log10(iterations)))))
    return {int(k) for k in grid} | {iterations}


class Trace:
    """Records (network evaluations, relative residual, psnr) of each image on a log-spaced grid."""

    def __init__(self, T: Map, truth: Tensor, iterations: int):
        self.T, self.truth, self.grid, self.last = T, truth, trace_grid(iterations), 0
        start = psnr(T.restoration(T.start()), truth)
        self.rows = [(0, np.full(len(truth), np.nan), start)]

    def __call__(self, k: int, x: Tensor, residual: np.ndarray) -> None:
        since, self.last = range(self.last + 1, k + 1), k  # some solvers evaluate several at a time
        if not self.grid.isdisjoint(since):
            self.rows.append((k, residual, psnr(self.T.restoration(x), self.truth)))

    def traces(self, solution: Solution) -> list[np.ndarray]:
        """The trace of each image, (n, 3), up to its own last evaluation."""
        end = psnr(self.T.restoration(solution.x), self.truth)
        qualities = torch.stack([*(quality for *_, quality in self.rows), end]).cpu().numpy()
        residuals = np.stack([*(residual for _, residual, _ in self.rows), solution.residual])
        counts = np.array([k for k, *_ in self.rows])
        traces = []
        for i, last in enumerate(solution.evaluations):
            shown = np.append(counts < last, True)
            trace = np.append(counts, last), residuals[:, i], qualities[:, i]
            traces.append(np.column_stack(trace)[shown])
        return traces


def measure_bound(T: ProximalGradient, x: Tensor, truth: Tensor, iterates: int) -> list[dict]:
    """The bound at the restorations x and along the plain iteration of T, a dict per image.

    error = ‖x - x̂‖; bound_r = ‖T(x̂) - x̂‖; bound_q = q at x; bound = (r + ρ)/(1 - q), None where
    q ≥ 1. bound_iterates counts, among the first `iterates` of x_{k+1} = T(x_k), those where the
    largest radial factor so far is below 1; bound_violations counts those of them whose error
    exceeds their bound with that q, and the restoration if its error exceeds its bound.
    """
    with torch.no_grad():
        T_truth, T_x = T(truth), T(x)
        r, error, residual = rms(T_truth - truth), rms(x - truth), rms(T_x - x)
        q = radial_factor(T_x, T_truth, x, truth)
        bound = error_bound(r, q, residual)
        checked, violated = torch.zeros_like(r), (error > bound * (1 + TOLERANCE)).float()
        x_k, start, largest = T.start(), rms(T.start() - truth), torch.zeros_like(r)
        for k in range(1, iterates + 1):
            T_k = T(x_k)
            largest = torch.maximum(largest, radial_factor(T_k, T_truth, x_k, truth))
            limit = iteration_bound(r, largest, start, k)
            checked += largest < 1
            violated += rms(T_k - truth) > limit * (1 + TOLERANCE)
            x_k = T_k
    return [
        {
            "error": float(error[i]),
            "bound": float(bound[i]) if q[i] < 1 else None,
            "bound_r": float(r[i]),
            "bound_q": float(q[i]),
            "bound_iterates": int(checked[i]),
            "bound_violations": int(violated[i]),
        }
        for i in range(len(r))
    ]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _merged(whole: Solution, part: Solution, rows: np.ndarray) -> Solution:
    """A solution in which some images went on: theirs, with the evaluations of both."""
    x = whole.x.index_copy(0, sent(rows, whole.x), part.x)
    residual, evaluations, code = (
        getattr(whole, name).copy() for name in ("residual", "evaluations", "code")
    )
    residual[rows], code[rows] = part.residual, part.code
    evaluations[rows] += part.evaluations
    return Solution(x, residual, evaluations, code, whole.fallbacks + part.fallbacks)


def rounding(model: Model, observation: Observation, solver: str, rough: str, exact: str) -> float:
    """‖T̃(x) - T(x)‖/‖T(x)‖ of the map in two precisions, at the first image: T̃'s floor.

    A solve in the rough one stalls at about that residual.
    """
    first = observation[torch.zeros(1, dtype=torch.long, device=observation.y.device)]
    images = []
    for precision in (exact, rough):
        model.compute_in(precision)
        T = model.restoring_map(first, solver)
        images.append(T(T.start()))
    return (norm(images[1] - images[0]) / norm(images[0])).item()


def climb(
    model: Model,
    observation: Observation,
    solver: str,
    options: Mapping[str, Any],
    precisions: Sequence[str],
    truth: Tensor | None = None,
) -> tuple[Solution, list[dict[str, int]], list[np.ndarray | None]]:
    """Solve in one precision after another, each image from where the one before stopped it.

    A precision stops near its floor where the tolerance is lower, or after half of the iterations
    that are left. Images above the tolerance go on in the next. A solver without a tolerance takes
    the first alone. Returns the solution, the evaluations of each image by precision (without the
    two that tell the floor), and its trace (None without the ground truth).
    """
    tolerance = options.get("tolerance")
    if tolerance is None:
        precisions = precisions[:1]
    images = len(observation.y)
    taken: list[dict[str, int]] = [{} for _ in range(images)]
    traces: list[np.ndarray | None] = [None] * images
    left, solution = np.arange(images), None
    for precision in precisions:
        model.compute_in(precision)
        T = model.restoring_map(observation, solver)
        watch = None
        if truth is not None:
            watch = Trace(T, truth[sent(left, truth)], options["iterations"])
        spent = max(sum(taken[i].values()) for i in left)
        goal = {**options, "iterations": options["iterations"] - spent}
        if precision != precisions[-1]:
            floor = rounding(model, observation, solver, precision, precisions[-1])
            goal["tolerance"] = max(tolerance, NEAR * floor)
            goal["iterations"] //= 2
        part = load("solvers", solver).solve(T, watch=watch, **goal)
        if watch is not None:
            for i, trace in zip(left, watch.traces(part), strict=True):
                trace[:, 0] += sum(taken[i].values())
                traces[i] = trace if traces[i] is None else np.concatenate([traces[i], trace[1:]])
        for i, evaluations in zip(left, part.evaluations, strict=True):
            taken[i][precision] = int(evaluations)
        solution = part if solution is None else _merged(solution, part, left)
        if precision == precisions[-1]:
            break
        short = np.flatnonzero((part.residual > tolerance) & (part.code != DIVERGED))
        if not len(short):
            break
        there = sent(short, part.x)
        left, observation = left[short], observation[there].starting_at(part.x[there])
    return solution, taken, traces


def restore_batch(
    model: Model,
    observation: Observation,
    solver: str,
    options: Mapping[str, Any],
    precisions: Sequence[str] = ("float32",),
    truth: Tensor | None = None,
    bound_iterates: int = 0,
) -> tuple[np.ndarray, list[dict], list[np.ndarray | None]]:
    """Restore one batch of equal-sized images.

    Returns the restorations (B, 3, H, W), a dict of statistics per image, and a trace per image
    (None without the ground truth, which serves for traces and the bound and for nothing else).
    `seconds` is the time of the batch divided by its images.
    """
    device = observation.y.device
    before = _clock(device)
    with torch.no_grad():
        solution, taken, traces = climb(model, observation, solver, options, precisions, truth)
    seconds = (_clock(device) - before) / len(observation.y)
    model.compute_in(precisions[-1])  # the bound, whatever the images of this batch took
    T = model.restoring_map(observation, solver)
    with torch.no_grad():
        x = T.restoration(solution.x)
    stats = [
        {
            "iterations": int(solution.evaluations[i]),
            "network_evaluations": int(solution.evaluations[i]),
            "residual": float(solution.residual[i]),
            "converged": bool(solution.converged[i]) if "tolerance" in options else None,
            "stopped": solution.stopped[i],
            "seconds": seconds,
            "peak_memory_mb": peak_memory_mb(device),
            "device": device.type,
            "precision": "+".join(taken[i]),
            "destroyed": model.about.get("destroyed", ""),
        }
        for i in range(len(x))
    ]
    if truth is not None and type(T) is ProximalGradient:
        for entry, bound in zip(stats, measure_bound(T, x, truth, bound_iterates), strict=True):
            entry.update(bound)
    return x.cpu().numpy(), stats, traces


def restore(
    model: Model,
    observations: Mapping[str, Observation],
    *,
    solver: str,
    options: Mapping[str, Any],
    batch_size: int,
    precisions: Sequence[str] = ("float32",),
    truth: Mapping[str, Tensor] | None = None,
    bound_iterates: int = 0,
    partial: Path | None = None,
    key: object = None,
) -> Restored:
    """Restore every image.

    precisions: of the network, from the cheapest to that of the tolerance (`climb`). partial: a
    folder where the images of finished batches are kept, so that a killed job goes on with those
    that are left, in the batches of an unbroken one; `key` is all that the result depends on, so
    that a changed one starts anew.
    """

    def kept(name: str) -> Path:
        return partial / f"{digest([key, name])[:32]}.npz"

    finished: dict[str, Restored] = {}
    for names in tqdm(batches(observations, batch_size), unit="batch", disable=None):
        if partial is not None and all(kept(name).exists() for name in names):
            finished |= {name: read_restored(kept(name)) for name in names}
            continue
        observation = batch([observations[name] for name in names])
        clean = None if truth is None else torch.stack([truth[n] for n in names])
        clean = None if clean is None else clean.to(observation.y)
        restored = restore_batch(
            model, observation, solver, options, precisions, clean, bound_iterates
        )
        for name, x, row, trace in zip(names, *restored, strict=True):
            traces = {} if trace is None else {name: trace}
            finished[name] = Restored({name: x}, {name: row}, traces)
            if partial is not None:
                write_restored(kept(name), finished[name])
    whole = Restored()
    for name in observations:
        for field in ("images", "stats", "traces"):
            getattr(whole, field).update(getattr(finished[name], field))
    return whole
