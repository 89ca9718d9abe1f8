"""`adam`: Adam on the image with the gradient field, the procedure of PnP-ReG (eq. 13)."""

import torch

from rerg.dihedral import turned
from rerg.iteration import LIMIT, Solution, Watch, norm, per_image
from rerg.maps import GradientDescent

LABEL = "Adam-GD"
LINE = ":"
MARKER = "^"
OPTIONS = {"iterations": "count", "learning_rate": "positive"}
TUNED = "learning_rate"

MAP = GradientDescent


def solve(
    T: GradientDescent,
    *,
    iterations: int,
    learning_rate: float,
    watch: Watch | None = None,
) -> Solution:
    """Adam on the image with the gradient g(x), as the public code of PnP-ReG does (13).

    Step k applies N to the image under the (k mod 8)-th flip and rotation and turns the result
    back. It has no stopping rule: it ends at its limit; `residual` is ‖g(x)‖/‖x‖. An image whose
    gradient is not finite stays where it is, with an infinite residual.
    """
    x0 = T.start()
    x = x0.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    residual = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for k in range(1, iterations + 1):
        step = GradientDescent(turned(T.N, k), T.observation, T.scale)
        with torch.no_grad():
            x.grad = step.field(x.detach())
            residual = norm(x.grad) / norm(x.detach()).clamp_min(1e-30)
            residual = torch.where(residual.isfinite(), residual, torch.inf)
            last = x.detach().clone()
        optimizer.step()
        with torch.no_grad():
            x.copy_(torch.where(per_image(residual.isfinite()), x, last))
        if watch is not None:
            watch(k, x.detach(), residual)
    evaluations = torch.full((len(x0),), iterations, device=x0.device)
    return Solution(x.detach(), residual, evaluations, torch.full_like(evaluations, LIMIT))
