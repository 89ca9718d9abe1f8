"""`rerg`, the paper's method: the loss of deqgd, regularized by the bound."""

from torch import Tensor, nn

from rerg.batch import Batch
from rerg.bound import Iterate, probes, surrogate
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
    """E‖x* - x̂‖² / ‖x_0 - x̂‖² + β B(θ), half of the probes on the solver's path (eq. 31).

    Where no image has a fixed point the bound alone is minimised: it makes one exist again.
    """
    T = ProximalGradient(networks["rg"], batch.observation, spec.scale)
    path = Iterate(T.start(), batch.rng, spec.equilibrium.iterations)
    error, log = reconstruction_loss(T, batch, spec.equilibrium, watch=path)
    e = probes(batch.truth, batch.observation.x0, batch.rng, path.x, batch.noise)
    bound = surrogate(T, batch.truth, e)
    log["bound"] = bound.detach()
    return spec.parameters["beta"] * bound + (0 if error is None else error), log
