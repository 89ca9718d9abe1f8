"""`deqgd`: the reconstruction error at the equilibrium, by implicit differentiation."""

from torch import Tensor, nn

from rerg.batch import Batch
from rerg.maps import ProximalGradient
from rerg.reconstruction import reconstruction_loss
from rerg.specs import ModelSpec

LABEL = "DEQGD"
COLOR = "#CC79A7"
NETWORKS = {"rg": False}
REGULARIZING_GRADIENT = True
EQUILIBRIUM = True


def loss(networks: nn.ModuleDict, batch: Batch, spec: ModelSpec) -> tuple[Tensor | None, dict]:
    """E‖x* - x̂‖² / ‖x_0 - x̂‖² (docs/method.md, eq. 30)."""
    T = ProximalGradient(networks["rg"], batch.observation, spec.scale)
    return reconstruction_loss(T, batch, spec.equilibrium)
