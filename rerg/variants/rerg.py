"""`rerg`, the paper's method: the loss of deqgd, regularized by the bound."""

from torch import Tensor, nn

from rerg.batch import Batch
from rerg.bound import probes, surrogate
from rerg.maps import ProximalGradient
from rerg.reconstruction import reconstruction_loss
from rerg.specs import ModelSpec

LABEL = "RERG"
COLOR = "#D55E00"
NETWORKS = {"rg": False}
REGULARIZING_GRADIENT = True
EQUILIBRIUM = True
PARAMETERS = {"beta": 0.2}  # weight of the bound


def loss(networks: nn.ModuleDict, batch: Batch, spec: ModelSpec) -> tuple[Tensor, dict]:
    """E‖x* - x̂‖² / ‖x_0 - x̂‖² + β B(θ), the bound's probes also at x* (docs/method.md, eq. 31).

    Where no image has a fixed point the bound alone is minimised: it makes one exist again.
    """
    T = ProximalGradient(networks["rg"], batch.observation, spec.scale)
    value, x, log = reconstruction_loss(T, batch, spec.equilibrium)
    e = probes(batch.truth, batch.observation.x0, batch.rng, x, batch.noise)
    bound = surrogate(T, batch.truth, e)
    log["bound"] = bound.item()
    return spec.parameters["beta"] * bound + (0 if value is None else value), log
