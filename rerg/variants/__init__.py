"""The variants: ways to train an RG. Each module holds one loss, and nothing else differs.

A variant's module has `NETWORKS`, the networks that it trains (name to "has a noise map"), and
`loss(networks, batch, settings)`, which returns the loss and what is worth logging.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from rerg.equilibrium import ADMM, GradientDescent, Map, ProximalGradient, equilibrium
from rerg.parallel import Group, Part
from rerg.problems import Observation

VARIANTS = ("red", "rg", "rg1", "deqgd", "rerg", "mtdeq")
LEVEL = 50 / 255  # highest standard deviation of the training noise, PnP-ReG's
GREY_LEVEL = 1 / 255  # an initial image closer than that weighs no more: flat noise-free crops


@dataclass(frozen=True)
class Batch:
    """Clean crops x̂ (B, 3, s, s), an observation of them, and the generator of this step.

    group: the processes that share the step, each with a part of its images.
    """

    truth: Tensor
    observation: Observation
    rng: np.random.Generator | Part
    step: int
    group: Group = field(default_factory=Group)

    def to(self, device: str) -> "Batch":
        """The same batch on a device; the host does not wait for copies of pinned images."""
        physics = self.observation.physics.to(device)
        # On the way to a GPU only: the host would read what is not yet copied back.
        return self._images(lambda x: x.to(device, non_blocking=True), physics)

    def pinned(self) -> "Batch":
        """The same batch in pinned memory, which a GPU copies while the host goes on."""
        return self._images(Tensor.pin_memory, self.observation.physics)

    def _images(self, change: Callable[[Tensor], Tensor], physics) -> "Batch":
        y, x0 = change(self.observation.y), change(self.observation.x0)
        observation = replace(self.observation, y=y, x0=x0, physics=physics)
        return replace(self, truth=change(self.truth), observation=observation)

    def part(self, group: Group) -> "Batch":
        """What one of several processes takes of the batch."""
        if group.size == 1:
            return self
        mine = group.part(len(self.truth))
        rng = Part(self.rng, group)
        return Batch(self.truth[mine], self.observation[mine], rng, self.step, group)

    def normal(self) -> Tensor:
        """Standard normal noise of the shape of x̂."""
        return torch.from_numpy(self.rng.standard_normal(self.truth.shape, np.float32)).to(
            self.truth
        )

    def levels(self) -> Tensor:
        """A noise level for each image, uniform on [0, 50/255], (B, 1, 1, 1)."""
        drawn = self.rng.uniform(0, LEVEL, (len(self.truth), 1, 1, 1))
        return torch.from_numpy(drawn).to(self.truth)


@dataclass(frozen=True)
class Settings:
    """scale: R = scale · N; beta: weight of the bound; equilibrium: keywords of the solves;
    lost_above: relative residual above which an image counts as having no fixed point."""

    scale: float
    beta: float
    equilibrium: dict
    lost_above: float


def module(variant: str) -> ModuleType:
    """The module that holds a variant's loss."""
    return importlib.import_module(f"rerg.variants.{variant}")


def restoring_map(
    variant: str, networks: nn.ModuleDict, observation: Observation, scale: float, solver: str
) -> Map:
    """The map whose fixed point is a variant's restoration, for a solver of the config."""
    if variant == "mtdeq":
        return admm_map(networks, observation, scale)
    kind = ProximalGradient if solver == "fast" else GradientDescent
    return kind(networks["rg"], observation, scale)


def admm_map(networks: nn.ModuleDict, observation: Observation, scale: float) -> ADMM:
    """PnP-ADMM with D(u) = u - N(u, σ), a denoiser told the σ of the problem."""
    N = networks["denoiser"]
    return ADMM(lambda u: u - N(u, observation.sigma), observation, scale)


def relative_errors(x: Tensor, batch: Batch) -> Tensor:
    """‖x - x̂‖² / ‖x_0 - x̂‖² of each image of a batch, (B,). The division balances the problems."""
    error = (x - batch.truth).square().flatten(1).mean(1)
    start = (batch.observation.x0 - batch.truth).square().flatten(1).mean(1)
    return error / start.clamp_min(GREY_LEVEL**2)


def reconstruction_loss(T: Map, batch: Batch, settings: Settings):
    """E‖x* - x̂‖² / ‖x_0 - x̂‖² at the equilibrium, with its implicit gradient.

    Returns (loss, x*, log). Images whose fixed point is lost are left out of the mean; where all
    are lost the loss is None. The backward pass adds the median relative residual of its own solve
    to the log, as `backward`.
    """
    z, solution = equilibrium(
        T,
        T.start(),
        report=lambda u: log.update(backward=u.residual.median().item()),
        **settings.equilibrium,
    )
    x = T.restoration(z)
    kept = solution.residual <= settings.lost_above
    log = {
        "converged": solution.converged.float().mean().item(),
        "lost": 1 - kept.float().mean().item(),
        "residual": solution.residual.median().item(),
    }
    count = batch.group.mean(kept.sum().to(x))  # as the mean is over the images of all processes
    if not bool(count):
        return None, x, log
    return relative_errors(x, batch)[kept].sum() / count, x, log
