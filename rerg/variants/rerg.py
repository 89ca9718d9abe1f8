"""`rerg`, the paper's method: the loss of deqgd, regularized by the bound."""

from rerg.bound import probes, surrogate
from rerg.equilibrium import ProximalGradient
from rerg.variants import reconstruction_loss

NETWORKS = {"rg": False}


def loss(networks, batch, settings):
    """E‖x* - x̂‖² / ‖x_0 - x̂‖² + β B(θ), the bound's probes also at x* (docs/method.md, eq. 31).

    Where no image has a fixed point the bound alone is minimised: it makes one exist again.
    """
    T = ProximalGradient(networks["rg"], batch.observation, settings.scale)
    value, x, log = reconstruction_loss(T, batch, settings)
    e = probes(batch.truth, batch.observation.x0, batch.rng, x)
    bound = surrogate(T, batch.truth, e)
    log["bound"] = bound.item()
    return settings.beta * bound + (0 if value is None else value), log
