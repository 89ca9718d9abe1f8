"""`adam`: Adam on the image with the gradient field, the procedure of PnP-ReG (eq. 13)."""

import numpy as np
import torch

from rerg.dihedral import turned
from rerg.iteration import LIMIT, Solution, Watch, choose, norm, read
from rerg.maps import GradientDescent

LABEL = "Adam-GD"
LINE = ":"
MARKER = "^"
OPTIONS = {"iterations": "count", "learning_rate": "positive"}
TUNED = "learning_rate"
DESCENT = True

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
    residual = np.zeros(len(x0))
    for k in range(1, iterations + 1):
        step = GradientDescent(turned(T.N, k), T.observation, T.scale)
        with torch.no_grad():
            x.grad = step.field(x.detach())
            length, size = read(norm(x.grad), norm(x)).T  # the one wait
            sound = np.isfinite(length)
            residual = np.where(sound, length / np.maximum(size, 1e-30), np.inf)
            last = None if sound.all() else x.detach().clone()
            if last is not None:  # Adam's moments must stay finite
                x.grad = choose(sound, x.grad, torch.zeros_like(x))
        optimizer.step()
        if last is not None:
            with torch.no_grad():
                x.copy_(choose(sound, x, last))
        if watch is not None:
            watch(k, x.detach(), residual)
    evaluations = np.full(len(x0), iterations)
    return Solution(x.detach(), residual, evaluations, np.full_like(evaluations, LIMIT))
