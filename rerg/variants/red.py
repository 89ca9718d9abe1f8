"""`red`, regularization by denoising: N estimates the noise. The warm start of the others."""

from torch import Tensor, nn

from rerg.batch import Batch
from rerg.specs import ModelSpec

LABEL = "RED"
COLOR = "#E69F00"
NETWORKS = {"rg": False}
DENOISER = "rg"  # blind


def loss(networks: nn.ModuleDict, batch: Batch, spec: ModelSpec) -> tuple[Tensor, dict]:
    """E‖N(x̂ + e) - e‖², e white noise of level U(0, 50/255) (docs/method.md, eq. 27)."""
    del spec
    e = batch.levels() * batch.noise
    return (networks["rg"](batch.truth + e) - e).square().mean(), {}
