"""Solver against solver: the network evaluations and seconds that a restoration needs.

For every problem and image the fast solver, 1500 steps of gradient descent and 1500 of Adam-GD
restore the same observation with the same RG. A solver is there once its PSNR stays within 0.05 dB
of its own last. Residuals are those of the fast map, ‖T(x) - x‖ / ‖T(x)‖, whichever the solver.
Where gradient descent ends at a residual above 1e-4 it is not at its equilibrium, which is then
sought from its last iterate by plain steps of the fast map, independently of the fast solver.
"""

import time

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measure import ROOT, Row, Workload, quartiles
from rerg.config import read_yaml
from rerg.iteration import fixed_point
from rerg.maps import Map, ProximalGradient
from rerg.metrics import psnr
from rerg.models import Model
from rerg.networks import UNet
from rerg.problems import Observation
from rerg.registry import load

STEPS = 1500  # of gradient descent in the paper's tests
WITHIN = 0.05  # dB
RESIDUAL = 1e-4


class Course:
    """PSNR over network evaluations and over seconds, from which its own time is left out."""

    def __init__(self, T: Map, network: UNet, truth: Tensor):
        self.T, self.network, self.truth = T, network, truth
        self.evaluations, self.seconds, self.psnr = [], [], []
        self.before, self.began = network.evaluations, time.perf_counter()

    def __call__(self, k: int, x: Tensor, residual: np.ndarray) -> None:
        seen = time.perf_counter()
        self.evaluations.append(self.network.evaluations - self.before)
        self.seconds.append(seen - self.began)
        self.psnr.append(psnr(self.T.restoration(x), self.truth).item())
        self.began += time.perf_counter() - seen

    def there(self, end: float | None = None) -> int | None:
        """The first index from which on the PSNR stays within 0.05 dB of `end`, its own last."""
        off = ~(np.abs(np.array(self.psnr) - (self.psnr[-1] if end is None else end)) <= WITHIN)
        first = int(np.flatnonzero(off)[-1]) + 1 if off.any() else 0
        return first if first < len(off) else None


def options_of(problem: dict, steps: int) -> dict[str, dict]:
    """The options of the solvers: the config's, each with at most `steps` iterations."""
    solvers = read_yaml(ROOT / "config" / "config.yaml")["solvers"]
    options = {k: {**solvers[k], "iterations": steps} for k in ("fast", "gd", "adam")}
    options["gd"]["tolerance"] = 0.0  # all its steps, as in the paper
    options["adam"]["learning_rate"] = problem.get(
        "learning_rate", options["adam"]["learning_rate"]
    )
    return options


def race(model: Model, observation: Observation, truth: Tensor, options: dict) -> dict[str, dict]:
    """What each solver needs for one image, by solver."""
    network = model.networks["rg"]
    T = ProximalGradient(network, observation, model.spec.scale)
    runs: dict[str, list] = {"fast": [], "gd": [], "adam": []}
    order = ["fast", "gd", "fast", "adam", "fast"]
    for solver in order:
        own = model.restoring_map(observation, solver)
        course = Course(own, network, truth)
        solution = load("solvers", solver).solve(own, watch=course, **options[solver])
        runs[solver].append((course, solution))
    found = {}
    for solver, repeats in runs.items():
        course, solution = repeats[-1]
        first = course.there()
        with torch.no_grad():
            T_x = T(solution.x)
        found[solver] = {
            "evaluations": course.evaluations[first],
            "seconds": float(np.median([c.seconds[first] for c, _ in repeats])),
            "all_evaluations": course.evaluations[-1],
            "all_seconds": float(np.median([c.seconds[-1] for c, _ in repeats])),
            "psnr": course.psnr[-1],
            "residual": ((T_x - solution.x).norm() / T_x.norm()).item(),
        }
    x_gd, x_fast = runs["gd"][-1][1].x, runs["fast"][-1][1].x
    found["distance"] = ((x_gd - x_fast).norm() / x_fast.norm()).item()
    if found["gd"]["residual"] > RESIDUAL:
        with torch.no_grad():
            settled = fixed_point(T, x_gd, iterations=STEPS, tolerance=RESIDUAL / 10)
        found["equilibrium"] = {
            "psnr": psnr(settled.x, truth).item(),
            "residual": settled.residual.item(),
        }
    return found


def rows(work: Workload) -> list[Row]:
    """Evaluations and seconds of gradient descent and Adam-GD over those of the fast solver."""
    model, steps = work.model(), 60 if work.quick else STEPS
    entries = read_yaml(ROOT / "config" / "problems.yaml")
    details = []
    for problem in tqdm(work.problems.values(), "solvers", unit="problem", disable=None):
        truth, observation = work.observe(problem)
        for i, image in enumerate(work.names):
            one = torch.tensor([i])
            options = options_of(entries[problem.name], steps)
            found = race(model, observation[one], truth[one], options)
            details.append({"problem": problem.name, "image": image, **found})
    return summarise(details, steps)


def summarise(details: list[dict], steps: int) -> list[Row]:
    """The rows, over problems; a problem's count is the sum over its images."""
    problems = list(dict.fromkeys(d["problem"] for d in details))

    def total(solver: str, key: str) -> np.ndarray:
        of = {p: sum(d[solver][key] for d in details if d["problem"] == p) for p in problems}
        return np.array([of[p] for p in problems], dtype=float)

    images = len(details) / len(problems)
    found = []
    for solver, name in (("gd", "GD"), ("adam", "Adam-GD")):
        for key, unit, goal in (("evaluations", "evaluations", ">= 30"), ("seconds", "s", "")):
            ours, theirs = total("fast", key) / images, total(solver, key) / images
            ratios = theirs / ours
            row = Row(
                f"fast against {name}, {unit}, median problem",
                float(np.median(ours)),
                float(np.median(theirs)),
                unit,
                float(np.median(ratios)),
                goal,
                quartiles(ratios),
                f"{len(problems)} problems; to within {WITHIN} dB of the own end",
            )
            found.append(row)
        ours, theirs = total("fast", "evaluations") / images, total(solver, "evaluations") / images
        for goal, limit, what in ((">= 10", 100, f"{name} needs > 100"), (">= 1", 0, "any")):
            held = np.flatnonzero(theirs > limit)
            name_of = f"fast against {name}, evaluations, worst problem where {what}"
            if not len(held):
                found.append(Row(name_of, None, None, "evaluations", None, goal, note="none"))
                continue
            i = held[np.argmin((theirs / ours)[held])]
            found.append(
                Row(
                    name_of,
                    ours[i],
                    theirs[i],
                    "evaluations",
                    theirs[i] / ours[i],
                    goal,
                    note=problems[i],
                )
            )
    found[0].details = details
    for solver, name, goal in (("gd", "GD", f">= {-WITHIN}"), ("adam", "Adam-GD", "")):
        gains = np.array([d["fast"]["psnr"] - d[solver]["psnr"] for d in details])
        worst = details[int(gains.argmin())]
        found.append(
            Row(
                f"PSNR of fast less that of {steps} steps of {name}, worst image",
                worst["fast"]["psnr"],
                worst[solver]["psnr"],
                "dB",
                float(gains.min()),
                goal,
                quartiles(gains),
                f"{worst['problem']}/{worst['image']}",
            )
        )
    residual = max(details, key=lambda d: d["fast"]["residual"])
    found.append(
        Row(
            "residual of fast, worst image",
            residual["fast"]["residual"],
            residual["gd"]["residual"],
            "‖T(x)-x‖/‖T(x)‖",
            residual["fast"]["residual"],
            "<= 1e-4",
            note=f"{residual['problem']}/{residual['image']}",
        )
    )
    late = [d for d in details if "equilibrium" in d]
    if late:
        off = max(late, key=lambda d: abs(d["fast"]["psnr"] - d["equilibrium"]["psnr"]))
        found.append(
            Row(
                "PSNR of fast less that of the equilibrium that GD misses, worst image",
                off["fast"]["psnr"],
                off["equilibrium"]["psnr"],
                "dB",
                off["fast"]["psnr"] - off["equilibrium"]["psnr"],
                f">= {-WITHIN}",
                note=f"after {steps} steps GD has a residual above {RESIDUAL:g} on "
                f"{len(late)} of {len(details)}; at {off['problem']}/{off['image']} it has "
                f"{off['gd']['psnr']:.2f} dB",
            )
        )
    return found
