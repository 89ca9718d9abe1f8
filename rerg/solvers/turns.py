"""`turns`: the fast solver on the field averaged over eight flips and rotations (eq. 13, 15a)."""

from dataclasses import replace

from torch import Tensor

from rerg.dihedral import TURNS, dihedral, dihedral_inverse
from rerg.iteration import Safeguarded, Solution, Watch, fixed_point
from rerg.maps import ProximalGradient

LABEL = "8 turns"
LINE = "-."
MARKER = "D"
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
        return sum(dihedral_inverse(T.N(dihedral(x, k)), k) for k in range(TURNS)) / TURNS

    def counted(k: int, x: Tensor, residual: Tensor) -> None:
        if watch is not None:
            watch(TURNS * k, x, residual)

    solution = fixed_point(
        ProximalGradient(averaged, T.observation, T.scale),
        T.start(),
        iterations=max(1, iterations // TURNS),
        tolerance=tolerance,
        acceleration=Safeguarded,
        watch=counted,
    )
    return replace(solution, evaluations=TURNS * solution.evaluations)
