"""The eight flips and rotations of an image."""

from collections.abc import Callable

import torch
from torch import Tensor

TURNS = 8


def dihedral(x: Tensor, k: int) -> Tensor:
    """The (k mod 8)-th flip and rotation of x (..., H, W)."""
    x = torch.rot90(x, k % 4, (-2, -1))
    return x.flip(-1) if k % TURNS >= 4 else x


def dihedral_inverse(x: Tensor, k: int) -> Tensor:
    """The inverse of `dihedral`."""
    x = x.flip(-1) if k % TURNS >= 4 else x
    return torch.rot90(x, -(k % 4), (-2, -1))


def turned(N: Callable[[Tensor], Tensor], k: int) -> Callable[[Tensor], Tensor]:
    """τ⁻¹ N τ with the (k mod 8)-th flip and rotation τ."""
    return lambda x: dihedral_inverse(N(dihedral(x, k)), k)
