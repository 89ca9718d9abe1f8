"""`mtdeq`, the multi-task DEQ prior: a denoiser trained at the fixed point of PnP-ADMM."""

from torch import Tensor, nn

from rerg.batch import Batch
from rerg.maps import ADMM
from rerg.problems import Observation
from rerg.reconstruction import reconstruction_loss
from rerg.specs import ModelSpec

LABEL = "MTDEQ"
COLOR = "#0072B2"
NETWORKS = {"denoiser": True}
DENOISER = "denoiser"
EQUILIBRIUM = True
SOLVERS = ("fast",)  # its fixed points are not those of a gradient field


def restoring_map(networks: nn.ModuleDict, observation: Observation, scale: float) -> ADMM:
    """PnP-ADMM with D(u) = u - N(u, σ), a denoiser told the σ of the problem (eq. 20)."""
    N = networks["denoiser"]
    return ADMM(lambda u: u - N(u, observation.sigma), observation, scale)


def loss(networks: nn.ModuleDict, batch: Batch, spec: ModelSpec) -> tuple[Tensor | None, dict]:
    """E‖x* - x̂‖² / ‖x_0 - x̂‖², x* of the fixed point of PnP-ADMM (docs/method.md, eq. 32)."""
    T = restoring_map(networks, batch.observation, spec.scale)
    return reconstruction_loss(T, batch, spec.equilibrium)
