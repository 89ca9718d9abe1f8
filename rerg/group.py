"""The processes that share a step of a training: means over them, each one's part of a batch."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """The processes of one training; this is number `rank` of `size`, on a device of its own."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the processes."""
        return self._reduced(x, torch.distributed.ReduceOp.SUM) / self.size

    def max(self, x: Tensor) -> Tensor:
        """The largest over the processes."""
        return self._reduced(x, torch.distributed.ReduceOp.MAX)

    def _reduced(self, x: Tensor, op) -> Tensor:
        if self.size == 1:
            return x
        x = x.to(self.device, copy=True)  # NCCL takes tensors of its GPU only
        torch.distributed.all_reduce(x, op)
        return x

    def average_gradients(self, networks: nn.Module) -> None:
        """Give every process the mean of all gradients."""
        if self.size == 1:
            return
        grads = [p.grad for p in networks.parameters() if p.grad is not None]
        flat = self.mean(torch.cat([g.flatten() for g in grads]))
        for g, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(mean.view_as(g))

    def part(self, images: int) -> Tensor:
        """Indices of this process's images of a batch; the parts are equal."""
        return torch.arange(images).chunk(self.size)[self.rank]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()


class Part:
    """A generator that draws for the whole batch and hands out the part of one process.

    So the batch of a step is the same however many processes share it.
    """

    def __init__(self, rng: np.random.Generator, group: Group):
        self.rng, self.group = rng, group

    def _mine(self, draw, shape) -> np.ndarray:
        whole = draw((shape[0] * self.group.size, *shape[1:]))
        return whole[self.group.part(len(whole)).numpy()]

    def standard_normal(self, shape, dtype="float64") -> np.ndarray:
        """Standard normal numbers, (B, ...)."""
        return self._mine(lambda whole: self.rng.standard_normal(whole, dtype), shape)

    def uniform(self, low: float, high: float, shape) -> np.ndarray:
        """Uniform numbers, (B, ...)."""
        return self._mine(lambda whole: self.rng.uniform(low, high, whole), shape)

    def integers(self, high: int) -> int:
        """An integer below `high`, the same for every process."""
        return int(self.rng.integers(high))
