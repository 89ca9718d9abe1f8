"""`rg1`: the bound on the reconstruction error, optimised directly."""

from rerg.bound import probes, surrogate
from rerg.equilibrium import ProximalGradient

NETWORKS = {"rg": False}


def loss(networks, batch, settings):
    """B(θ) of the fast map, over the mix of problems (docs/method.md, eq. 29)."""
    T = ProximalGradient(networks["rg"], batch.observation, settings.scale)
    return surrogate(T, batch.truth, probes(batch.truth, batch.observation.x0, batch.rng)), {}
