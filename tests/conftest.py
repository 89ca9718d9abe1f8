"""What the tests share: one thread, the problems of the config, clean images, a trained RG."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from deepinv.physics import Inpainting

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)
PROBLEMS = yaml.safe_load((ROOT / "config" / "problems.yaml").read_text())


def clean_images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random images (B, 3, H, W) in [0, 1], float32, with smooth parts and edges."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:height, :width] / max(height, width)
    x = np.empty((batch, 3, height, width), dtype=np.float32)
    for image in x:
        for channel in image:
            a, b, phase = rng.uniform([-6, -6, 0], 6)
            channel[:] = 0.5 + 0.25 * np.sin(a * u + b * v + phase)
        for _ in range(4):
            normal, height_of_edge = rng.standard_normal(2), rng.uniform(-0.2, 0.2, 3)
            side = normal[0] * (u - rng.uniform()) + normal[1] * (v - rng.uniform()) > 0
            image += height_of_edge[:, None, None].astype(np.float32) * side
    return torch.from_numpy(x.clip(0, 1))


def white(shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal noise."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape))).to(dtype)


def dense(physics, like: torch.Tensor) -> torch.Tensor:
    """A as a matrix (hw, HW) that acts on each channel, by applying it to the basis.

    For completion it is the first mask's. HW must be a multiple of 3.
    """
    if isinstance(physics, Inpainting):
        return torch.diag(physics.mask[0, 0].flatten())
    size = like[0, 0].numel()
    basis = torch.eye(size, dtype=like.dtype).view(size // 3, 3, *like.shape[-2:])
    return physics.A(basis).flatten(2).flatten(0, 1).T


@pytest.fixture(scope="session", params=list(PROBLEMS))
def name(request) -> str:
    """The name of every problem of config/problems.yaml."""
    return request.param
