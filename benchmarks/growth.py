"""How time and memory grow with image size, batch, iterations and number of problems.

Each axis is fitted by seconds ~ n^p over its points: p = 1 is linear, p < 1 has a fixed part. An
axis runs in a process of its own, from its smallest point to its largest, so that the peak memory
of the process at a point is that of the point.
"""

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from benchmarks.deq import solves
from benchmarks.measure import Row, Workload, in_turn
from rerg.devices import peak_memory_mb, set_up_cpu
from rerg.problems import Problem
from rerg.registry import load
from rerg.restoration import restore
from rerg.training import draw_batch, optimizer_of, take_step

ITERATIONS = 10


def restoration(
    work: Workload, count: int = 1, size: int = 48, iterations: int = ITERATIONS
) -> Callable[[], object]:
    """Restore `count` images of one problem by so many iterations."""
    _, observation = work.observe(work.of_each_operator()[-1], count, size)
    T = work.model().restoring_map(observation, "fast")
    return lambda: load("solvers", "fast").solve(T, iterations=iterations, tolerance=0.0)


def problems(work: Workload, count: int) -> Callable[[], object]:
    """Observe and restore an image of so many problems, as a restoration job does."""
    model, chosen = work.model(), list(work.problems.values())
    options = {"iterations": ITERATIONS, "tolerance": 0.0}

    def one(problem: Problem) -> None:
        truth, observation = work.observe(problem, 1, 48)
        restore(
            model,
            {"0": observation},
            solver="fast",
            options=options,
            batch_size=1,
            truth={"0": truth[0]},
        )

    return lambda: [one(chosen[i % len(chosen)]) for i in range(count)]


def step(work: Workload, iterations: int) -> Callable[[], object]:
    """A training step of deqgd with so many forward iterations."""
    networks = work.networks()
    optimizer = optimizer_of(networks, 0.0)
    counts = {"iterations": iterations, "backward_iterations": 5}
    spec = solves(work.spec, **counts, tolerance=0.0, backward_tolerance=0.0)
    batch = draw_batch(work.crops, work.of_each_operator()[-1:], 0, 0)
    return lambda: take_step(spec, networks, optimizer, batch)


# axis: the call at a point, the points, what n counts
AXES = {
    "a restoration with the pixels of its image": (
        lambda work, n: restoration(work, size=math.isqrt(n)),
        tuple(side**2 for side in (48, 64, 96, 128, 192, 256)),
    ),
    "a restoration with the batch": (
        lambda work, n: restoration(work, count=n),
        (1, 2, 4, 8, 16),
    ),
    "a restoration with its iterations": (
        lambda work, n: restoration(work, iterations=n),
        (10, 20, 40, 80, 160),
    ),
    "a restoration job with its problems": (problems, (1, 2, 4, 8, 13)),
    "a DEQ training step with its forward iterations": (step, (5, 10, 20, 40, 80)),
}


def axis(work: Workload, name: str) -> Row:
    """Time and memory along an axis."""
    set_up_cpu(1)
    make, points = AXES[name]
    points = points[:2] if work.quick else points
    details = []
    for n in points:
        call = make(work, n)
        seconds = np.median(in_turn([call], 1 if work.quick else 3))
        details.append({"n": n, "seconds": float(seconds), "peak_memory_mb": peak_memory_mb("cpu")})
    seconds = [d["seconds"] for d in details]
    power = float(np.polyfit(np.log(points), np.log(seconds), 1)[0])
    first, last = details[0], details[-1]
    note = (
        f"n = {first['n']} to {last['n']}: ratio is p of seconds ~ n^p; peak memory "
        f"{first['peak_memory_mb']:.0f} to {last['peak_memory_mb']:.0f} MB"
    )
    return Row(f"growth of {name}", seconds[0], seconds[-1], "s", power, note=note, details=details)


def rows(work: Workload) -> Iterator[Row]:
    """Every axis."""
    if work.quick:
        yield from (axis(work, name) for name in AXES)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        yield from (pool.submit(axis, work, name).result() for name in AXES)
