"""`rg`, the RG of Fermanian, Le Pendu and Guillemot (SIIMS 2023), trained with its denoiser."""

import torch.nn.functional as F

NETWORKS = {"rg": False, "denoiser": True}
WEIGHT = 0.004  # of the RG's term, in the public code of PnP-ReG


def loss(networks, batch, settings):
    """δ ‖D(x̂+n, s) - x̂‖₁ + 0.004 ‖s² R(D(x̂+n, s)) - (x̂+n - D(x̂+n, s))‖², n of level s'.

    Even steps: δ = 1 and s = s'. Odd steps: δ = 0 and s is drawn independently of s'.
    D(u, s) = u - N_D(u, s) and R = scale · N (docs/method.md, eq. 28).
    """
    true_level = batch.levels()
    noisy = batch.truth + true_level * batch.normal()
    delta = 1 - batch.step % 2
    s = true_level if delta else batch.levels()
    residual = networks["denoiser"](noisy, s)
    denoised = noisy - residual
    R = settings.scale * networks["rg"](denoised)
    regularizer = (s**2 * R - residual).square().mean()
    return delta * F.l1_loss(denoised, batch.truth) + WEIGHT * regularizer, {}
