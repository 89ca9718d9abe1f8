"""A step's batch of a training: clean crops, their observation, and the step's generator."""

from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from rerg.group import Group, Part
from rerg.iteration import sent
from rerg.problems import Observation

LEVEL = 50 / 255  # highest standard deviation of the training noise, PnP-ReG's


@dataclass(frozen=True)
class Batch:
    """Clean crops x̂ (B, 3, s, s), an observation of them, and the generator of this step.

    noise: standard normal, of the shape of x̂; group: the processes that share the step, each with a
    part of its images.
    """

    truth: Tensor
    observation: Observation
    rng: np.random.Generator | Part
    step: int
    noise: Tensor
    group: Group = field(default_factory=Group)

    def to(self, device: str) -> "Batch":
        """The same batch on a device; the host does not wait for copies of pinned images."""
        # Only on the way to a GPU: the host would read what is not yet copied back.
        truth, noise = (x.to(device, non_blocking=True) for x in (self.truth, self.noise))
        observation = self.observation.to(device, non_blocking=True)
        return replace(self, truth=truth, noise=noise, observation=observation)

    def pinned(self) -> "Batch":
        """The same batch in pinned memory, which a GPU copies while the host goes on."""
        truth, noise = self.truth.pin_memory(), self.noise.pin_memory()
        return replace(self, truth=truth, noise=noise, observation=self.observation.pinned())

    def part(self, group: Group) -> "Batch":
        """What one of several processes takes of the batch."""
        if group.size == 1:
            return self
        mine, rng = group.part(len(self.truth)), Part(self.rng, group)
        parts = self.truth[mine], self.observation[mine], rng, self.step, self.noise[mine]
        return Batch(*parts, group)

    def levels(self) -> Tensor:
        """A noise level for each image, uniform on [0, 50/255], (B, 1, 1, 1)."""
        return sent(self.rng.uniform(0, LEVEL, (len(self.truth), 1, 1, 1)), self.truth)
