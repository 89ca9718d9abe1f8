"""A photograph of any size and with any boundary, restored by windows that overlap.

The operators of rerg are circular, photographs are not. So where an operator reaches over the
border, a photograph is continued by its mirror image, which a blur's window fades into the blur
of itself, so that opposite sides meet without an edge. A window is restored with a margin of its
surroundings, and its margin is cut off again. Memory is that of a window.
"""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rerg.config import InputError
from rerg.iteration import Solution
from rerg.problems import Problem
from rerg.reconstructor import RG
from rerg.specs import ProblemSpec

STOPPED = {"limit": "at the limit, not converged", "stalled": "stalled, not converged"}
TILE = 448  # pixels of y, without the margin: 1 GB with a network of 64 channels
MARGIN = 32  # pixels of y; a blur's is wider by its kernel


class Window(NamedTuple):
    """A window on one axis: where it lies on the padded axis; its own pixels there and in it."""

    whole: slice
    own: slice
    inside: slice


def windows(size: int, margin: int, padding: int, tile: int) -> Iterator[Window]:
    """Cut an axis of `size` pixels, padded by `padding` at both ends, into windows.

    `own` counts from the axis's first pixel without the padding.
    """
    parts = math.ceil(size / tile)
    edges = [round(size * i / parts) for i in range(parts + 1)]
    for start, stop in pairwise(edges):
        first = max(start + padding - margin, 0)
        last = min(stop + padding + margin, size + 2 * padding)
        inside = slice(start + padding - first, stop + padding - first)
        yield Window(slice(first, last), slice(start, stop), inside)


def magnified(part: slice, factor: int) -> slice:
    """A part of an axis of y as one of x."""
    return slice(factor * part.start, factor * part.stop)


def taper(y: Tensor, blurred: Tensor, margin: int) -> Tensor:
    """y (..., H, W) that fades over `margin` pixels into its circular blur at the borders."""
    ramp = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(margin).to(y) + 0.5) / margin)
    rows, columns = (torch.ones(side).to(y) for side in y.shape[-2:])
    for weight in (rows, columns):
        weight[:margin] *= ramp
        weight[-margin:] *= ramp.flip(0)
    return torch.lerp(blurred, y, rows[:, None] * columns)


class Restorer:
    """Restores photographs that one problem has degraded.

    kernel: (k, k) in the place of the problem's; mask: of known pixels, (H, W), for completion.
    Calling it with y (C, h, w) gives x (C, H, W) and a line: network evaluations of a window, the
    largest relative residual, and whether all windows converged.
    """

    def __init__(
        self,
        rg: RG,
        spec: ProblemSpec,
        kernel: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        tile: int = TILE,
    ):
        self.rg, self.mask, self.tile = rg, mask, tile
        self.problem = Problem(spec, kernel=kernel)

    def __call__(self, y: Tensor) -> tuple[Tensor, str]:
        """The restoration, and how it was reached.

        Raises InputError where the mask has another size, or an iteration diverges.
        """
        shape, problem = tuple(y.shape[-2:]), self.problem
        if self.mask is not None and self.mask.shape != shape:
            raise InputError(
                f"--mask: expected {shape[1]} x {shape[0]} pixels as the picture has, "
                f"got {self.mask.shape[1]} x {self.mask.shape[0]}"
            )
        blurs = problem.operator == "blur"
        margin = MARGIN + (max(problem.kernel.shape) if blurs else 0)
        padding = margin if blurs or problem.operator == "downsampling" else 0
        sides = ((0, 0), (padding, padding), (padding, padding))
        padded = torch.from_numpy(np.pad(y.numpy(), sides, mode="symmetric"))
        factor = problem.factor
        x = y.new_empty(len(y), shape[0] * factor, shape[1] * factor)
        solutions = []
        parts = list(product(*(windows(side, margin, padding, self.tile) for side in shape)))
        for part in tqdm(parts, unit="tile", leave=False, disable=len(parts) == 1 or None):
            rows, columns = (window.whole for window in part)
            own = tuple(magnified(window.own, factor) for window in part)
            inside = tuple(magnified(window.inside, factor) for window in part)
            solution = self._restore(padded[None, :, rows, columns], (rows, columns), margin)
            x[:, *own] = solution.x[0][:, *inside].cpu()
            solutions.append(solution)
        return x, self._report(solutions)

    def _restore(self, y: Tensor, where: tuple[slice, slice], margin: int) -> Solution:
        problem, factor = self.problem, self.problem.factor
        masks = None
        if self.mask is not None:
            masks = torch.from_numpy(self.mask[where])[None, None].to(y)
        size = (y.shape[-2] * factor, y.shape[-1] * factor)
        physics = problem.physics(size, masks, like=y, channels=y.shape[1])
        if problem.operator == "blur":
            y = taper(y, physics.A(y), margin)
        return self.rg.solve(y, physics, problem.sigma)

    def _report(self, solutions: list[Solution]) -> str:
        evaluations = sorted(int(s.evaluations[0]) for s in solutions)
        residual = max(float(s.residual[0]) for s in solutions)
        stopped = Counter(s.stopped[0] for s in solutions)
        if stopped["diverged"]:
            raise InputError(
                "the iteration diverged: these weights have no equilibrium here; "
                "try a larger --sigma"
            )
        count = f"{len(solutions)} tiles, " if len(solutions) > 1 else ""
        several = "" if evaluations[0] == evaluations[-1] else f"{evaluations[0]} to "
        lost = [f"{stopped[way]} {words}" for way, words in STOPPED.items() if stopped[way]]
        return (
            f"{count}{several}{evaluations[-1]} network evaluations, residual {residual:.1e}, "
            + (", ".join(lost).removeprefix("1 " if len(solutions) == 1 else "") or "converged")
        )
