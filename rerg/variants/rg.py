"""`rg`, the RG of Fermanian, Le Pendu and Guillemot (SIIMS 2023), trained with its denoiser."""

import torch.nn.functional as F
from torch import Tensor, nn

from rerg.batch import Batch
from rerg.specs import ModelSpec

LABEL = "RG"
COLOR = "#56B4E9"
NETWORKS = {"rg": False, "denoiser": True}
REGULARIZING_GRADIENT = True
DENOISER = "denoiser"
WEIGHT = 0.004  # of the RG's term, in the public code of PnP-ReG


def loss(networks: nn.ModuleDict, batch: Batch, spec: ModelSpec) -> tuple[Tensor, dict]:
    """δ ‖D(x̂+e, s') - x̂‖₁ + 0.004 ‖s'² R(D(x̂+e, s')) - (x̂+e - D(x̂+e, s'))‖², e of level s.

    Even steps: δ = 1 and s' = s. Odd steps: δ = 0 and s' is drawn independently of s.
    D(u, s) = u - N_D(u, s) and R = scale · N (docs/method.md, eq. 28).
    """
    level = batch.levels()
    noisy = batch.truth + level * batch.noise
    delta = 1 - batch.step % 2
    told = level if delta else batch.levels()
    residual = networks["denoiser"](noisy, told)
    denoised = noisy - residual
    R = spec.scale * networks["rg"](denoised)
    regularizer = (told**2 * R - residual).square().mean()
    return delta * F.l1_loss(denoised, batch.truth) + WEIGHT * regularizer, {}
