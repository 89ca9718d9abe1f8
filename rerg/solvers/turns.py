"""`turns`: the fast solver on the field averaged over eight flips and rotations (eq. 13, 15a)."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from rerg.dihedral import TURNS, turned
from rerg.iteration import Solution, Watch
from rerg.maps import ProximalGradient
from rerg.solvers import fast

LABEL = "8 turns"
LINE = "-."
MARKER = "v"
OPTIONS = {"iterations": "count", "tolerance": "positive"}

MAP = ProximalGradient


def solve(
    T: ProximalGradient, *, iterations: int, tolerance: float, watch: Watch | None = None
) -> Solution:
    """The fixed point of the map with 1/8 Σ τ⁻¹ N τ in place of N, the field of Adam-GD's cycle.

    An evaluation of it takes eight of the network. `iterations` limits the latter, and they are
    what the solution and `watch` count.
    """

    def averaged(x: Tensor) -> Tensor:
        return sum(turned(T.N, k)(x) for k in range(TURNS)) / TURNS

    def counted(k: int, x: Tensor, residual: np.ndarray) -> None:
        if watch is not None:
            watch(TURNS * k, x, residual)

    solution = fast.solve(
        ProximalGradient(averaged, T.observation, T.scale),
        iterations=max(1, iterations // TURNS),
        tolerance=tolerance,
        watch=counted,
    )
    return replace(solution, evaluations=TURNS * solution.evaluations)
