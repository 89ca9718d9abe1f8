"""`gd`: plain gradient descent with the step 1/L (docs/method.md, eq. 9 and 12)."""

from rerg.iteration import Solution, Watch, fixed_point
from rerg.maps import GradientDescent

LABEL = "GD"
LINE = "--"
MARKER = "s"
OPTIONS = {"iterations": "count", "tolerance": "positive"}
DESCENT = True

MAP = GradientDescent


def solve(
    T: GradientDescent, *, iterations: int, tolerance: float, watch: Watch | None = None
) -> Solution:
    """The equilibrium from T.start(), to a relative residual of `tolerance`."""
    return fixed_point(T, T.start(), iterations=iterations, tolerance=tolerance, watch=watch)
