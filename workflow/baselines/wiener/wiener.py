"""Wiener's filter for circular blur, in closed form."""

import math

import torch


def restore(y, physics, sigma, x0, weight):
    """X = H̄Y / (|H|² + weight·σ²·|ω|²): natural images have a spectrum that falls as 1/|ω|²."""
    height, width = y.shape[-2:]
    impulse = torch.zeros_like(y)
    impulse[..., 0, 0] = 1
    H = torch.fft.fft2(physics.A(impulse))
    v = torch.fft.fftfreq(height, device=y.device)[:, None]
    u = torch.fft.fftfreq(width, device=y.device)
    power = (2 * math.pi) ** 2 * (u**2 + v**2)
    X = H.conj() * torch.fft.fft2(y) / (H.abs() ** 2 + weight * sigma**2 * power)
    return torch.fft.ifft2(X).real
