"""`rg1`: the bound on the reconstruction error, optimised directly."""

from torch import Tensor, nn

from rerg.batch import Batch
from rerg.bound import probes, surrogate
from rerg.maps import ProximalGradient
from rerg.specs import ModelSpec

LABEL = "RG1"
COLOR = "#009E73"
NETWORKS = {"rg": False}
REGULARIZING_GRADIENT = True


def loss(networks: nn.ModuleDict, batch: Batch, spec: ModelSpec) -> tuple[Tensor, dict]:
    """B(θ) of the fast map, over the mix of problems (docs/method.md, eq. 29)."""
    T = ProximalGradient(networks["rg"], batch.observation, spec.scale)
    e = probes(batch.truth, batch.observation.x0, batch.rng, noise=batch.noise)
    return surrogate(T, batch.truth, e), {}
