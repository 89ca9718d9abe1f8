"""`fast`: the fast map by the guarded solver (docs/method.md, eq. 11 and 15a)."""

from rerg.iteration import Safeguarded, Solution, Watch, fixed_point
from rerg.maps import Map, ProximalGradient

LABEL = "fast"
LINE = "-"
MARKER = "o"
OPTIONS = {"iterations": "count", "tolerance": "positive"}

MAP = ProximalGradient


def solve(T: Map, *, iterations: int, tolerance: float, watch: Watch | None = None) -> Solution:
    """The equilibrium from T.start(), to a relative residual of `tolerance`."""
    return fixed_point(
        T,
        T.start(),
        iterations=iterations,
        tolerance=tolerance,
        acceleration=Safeguarded,
        watch=watch,
    )
