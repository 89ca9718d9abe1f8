"""Sparsity in a wavelet basis, by ADMM."""

import torch
from deepinv.models import WaveletDenoiser

THRESHOLD = 0.05  # of each step, in intensities: it sets the speed, not the result


def restore(y, physics, sigma, x0, weight, wavelet, level, iterations):
    """argmin_x ½‖Ax - y‖² + weight·σ‖Wx‖₁, W the details of an orthogonal wavelet transform."""
    soft = WaveletDenoiser(level=level, wv=wavelet, mode="reflect", device=y.device)
    v, u = x0, torch.zeros_like(x0)
    for _ in range(iterations):
        x = physics.prox_l2(v - u, y, THRESHOLD / (weight * sigma))
        v = soft(x + u, THRESHOLD)
        u = u + x - v
    return v
