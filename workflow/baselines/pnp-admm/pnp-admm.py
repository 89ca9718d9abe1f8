"""Plug-and-play ADMM with a denoiser of one fixed level."""

import torch


def restore(y, physics, sigma, x0, denoiser, level, iterations):
    """x = prox_{tF}(v - u); v = D(x + u, s); u = u + x - v, with s = level/255 and t = s²/σ²."""
    s = level / 255
    v, u = x0, torch.zeros_like(x0)
    for _ in range(iterations):
        x = physics.prox_l2(v - u, y, (s / sigma) ** 2)
        v = denoiser(x + u, s)
        u = u + x - v
    return x
