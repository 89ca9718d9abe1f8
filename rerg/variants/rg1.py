"""`rg1`: the bound on the reconstruction error, optimised directly."""

import torch
from torch import Tensor, nn

from rerg.batch import Batch
from rerg.bound import Iterate, probes, surrogate
from rerg.maps import ProximalGradient
from rerg.solvers import fast
from rerg.specs import ModelSpec

LABEL = "RG1"
COLOR = "#009E73"
NETWORKS = {"rg": False}
REGULARIZING_GRADIENT = True

STEPS = 8  # of the solver, from whose path a probe is taken


def loss(networks: nn.ModuleDict, batch: Batch, spec: ModelSpec) -> tuple[Tensor, dict]:
    """B(θ) of the fast map, over the mix of problems, half of the probes on its path (eq. 29)."""
    T = ProximalGradient(networks["rg"], batch.observation, spec.scale)
    path = Iterate(T.start(), batch.rng, STEPS)
    tolerance = spec.equilibrium.tolerance
    with torch.no_grad():
        fast.solve(T, iterations=STEPS, tolerance=tolerance, watch=path)
    e = probes(batch.truth, batch.observation.x0, batch.rng, path.x, batch.noise)
    bound = surrogate(T, batch.truth, e)
    return bound, {"error": bound.detach().exp()}
