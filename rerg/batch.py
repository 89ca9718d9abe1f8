"""A step's batch of a training: clean crops, their observation, and the step's generator."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rerg.group import Group, Part
from rerg.problems import Observation

LEVEL = 50 / 255  # highest standard deviation of the training noise, PnP-ReG's


@dataclass(frozen=True)
class Batch:
    """Clean crops x̂ (B, 3, s, s), an observation of them, and the generator of this step.

    noise: standard normal of the shape of x̂, where it was drawn ahead; group: the processes that
    share the step, each with a part of its images.
    """

    truth: Tensor
    observation: Observation
    rng: np.random.Generator | Part
    step: int
    noise: Tensor | None = None
    group: Group = field(default_factory=Group)

    def to(self, device: str) -> "Batch":
        """The same batch on a device; the host does not wait for copies of pinned images."""

        # Only on the way to a GPU: the host would read what is not yet copied back.
        def there(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        observation = self.observation.to(device, non_blocking=True)
        return replace(
            self, truth=there(self.truth), noise=there(self.noise), observation=observation
        )

    def pinned(self) -> "Batch":
        """The same batch in pinned memory, which a GPU copies while the host goes on."""
        o, noise = self.observation, self.noise
        observation = replace(o, y=o.y.pin_memory(), x0=o.x0.pin_memory())
        noise = None if noise is None else noise.pin_memory()
        return replace(self, truth=self.truth.pin_memory(), noise=noise, observation=observation)

    def part(self, group: Group) -> "Batch":
        """What one of several processes takes of the batch."""
        if group.size == 1:
            return self
        mine = group.part(len(self.truth))
        noise = None if self.noise is None else self.noise[mine]
        rng = Part(self.rng, group)
        return Batch(self.truth[mine], self.observation[mine], rng, self.step, noise, group)

    def normal(self) -> Tensor:
        """Standard normal noise of the shape of x̂, once drawn the same at each call."""
        if self.noise is not None:
            return self.noise
        return torch.from_numpy(self.rng.standard_normal(self.truth.shape, np.float32)).to(
            self.truth
        )

    def levels(self) -> Tensor:
        """A noise level for each image, uniform on [0, 50/255], (B, 1, 1, 1)."""
        drawn = self.rng.uniform(0, LEVEL, (len(self.truth), 1, 1, 1))
        return torch.from_numpy(drawn).to(self.truth)
