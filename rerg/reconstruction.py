"""The reconstruction error at an equilibrium, as a loss: of `deqgd`, `rerg` and `mtdeq`."""

import math
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from rerg.batch import Batch
from rerg.equilibrium import equilibrium
from rerg.iteration import Watch, sent
from rerg.maps import Map
from rerg.specs import EquilibriumSpec

GREY_LEVEL = 1 / 255  # an initial image closer than that weighs no more: flat noise-free crops


def relative_errors(x: Tensor, batch: Batch) -> Tensor:
    """‖x - x̂‖² / ‖x_0 - x̂‖² of each image of a batch, (B,). The division balances the problems."""
    error = (x - batch.truth).square().flatten(1).mean(1)
    start = (batch.observation.x0 - batch.truth).square().flatten(1).mean(1)
    return error / start.clamp_min(GREY_LEVEL**2)


def reconstruction_loss(
    T: Map, batch: Batch, spec: EquilibriumSpec, watch: Watch | None = None
) -> tuple[Tensor | None, dict[str, float | Tensor]]:
    """E‖x* - x̂‖² / ‖x_0 - x̂‖² at the equilibrium, with its implicit gradient.

    Returns (loss, log). Images whose fixed point is lost are left out of the mean; where all are
    lost the loss is None, and the log's `error` not a number. The backward pass adds the median
    relative residual of its own solve to the log, as `backward`. watch: of the forward solve.
    """
    options = asdict(spec)
    lost_above = options.pop("lost_above")
    z, solution = equilibrium(
        T,
        T.start(),
        report=lambda u: log.update(backward=float(np.median(u.residual))),
        watch=watch,
        **options,
    )
    kept = solution.residual <= lost_above
    log = {
        "error": math.nan,
        "converged": float(solution.converged.mean()),
        "lost": float(1 - kept.mean()),
        "residual": float(np.median(solution.residual)),
    }
    # as the mean is over the images of all processes
    count = batch.group.mean(torch.tensor(float(kept.sum()))).item()
    if not count:
        return None, log
    errors = relative_errors(T.restoration(z), batch)
    loss = errors[sent(np.flatnonzero(kept), errors)].sum() / count
    log["error"] = loss.detach()
    return loss, log
