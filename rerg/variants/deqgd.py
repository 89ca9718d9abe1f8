"""`deqgd`: the reconstruction error at the equilibrium, by implicit differentiation."""

from rerg.equilibrium import ProximalGradient
from rerg.variants import reconstruction_loss

NETWORKS = {"rg": False}


def loss(networks, batch, settings):
    """E‖x* - x̂‖² / ‖x_0 - x̂‖² (docs/method.md, eq. 30)."""
    T = ProximalGradient(networks["rg"], batch.observation, settings.scale)
    value, _, log = reconstruction_loss(T, batch, settings)
    return value, log
