"""Total variation by the primal-dual algorithm of Chambolle and Pock (2011)."""

import torch
from deepinv.models import TVDenoiser

nabla, nabla_adjoint = TVDenoiser.nabla, TVDenoiser.nabla_adjoint


def restore(y, physics, sigma, x0, weight, iterations):
    """argmin_x ½‖Ax - y‖² + weight·σ·TV(x), TV isotropic and per channel."""
    tau, step = 0.25, 0.5  # tau · step · ‖∇‖² ≤ 1, since ‖∇‖² ≤ 8
    x, x_bar, u = x0, x0, torch.zeros_like(nabla(x0))
    # The problem is divided by weight·σ, so that the dual variable lies in the unit ball.
    for _ in range(iterations):
        u = u + step * nabla(x_bar)
        u = u / u.norm(dim=-1, keepdim=True).clamp_min(1)
        x_next = physics.prox_l2(x - tau * nabla_adjoint(u), y, tau / (weight * sigma))
        x, x_bar = x_next, 2 * x_next - x
    return x
