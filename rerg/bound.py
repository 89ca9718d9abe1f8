"""The bound on the reconstruction error of a fixed-point iteration (docs/method.md, section 4).

For a map T with fixed point x*, ground truth x̂, r = ‖T(x̂) - x̂‖ and a radial factor q < 1,
‖T(x) - T(x̂)‖ ≤ q ‖x - x̂‖, the error is at most r / (1 - q). Norms are root mean squares.
Numbers in brackets are equations there.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rerg.iteration import choose, sent

LEVEL = 50 / 255  # highest standard deviation of a probe's white noise
TINY = 1e-12  # keeps the gradient of a root mean square finite at zero
SHORTEST = 1e-4  # root mean square of a probe; float32 noise rules q below it


def rms(x: Tensor) -> Tensor:
    """Root mean square of each image of a batch, (B,)."""
    return x.flatten(1).square().mean(1).clamp_min(TINY**2).sqrt()


def radial_factor(T_x: Tensor, T_truth: Tensor, x: Tensor, truth: Tensor) -> Tensor:
    """q = ‖T(x) - T(x̂)‖ / ‖x - x̂‖ of each image, (B,) (22)."""
    return rms(T_x - T_truth) / rms(x - truth)


def error_bound(r: Tensor, q: Tensor, residual: Tensor) -> Tensor:
    """(r + ρ) / (1 - q), the bound on ‖x - x̂‖ at a point of residual ρ = ‖T(x) - x‖; inf at q ≥ 1.

    Proof (24): ‖x - x̂‖ ≤ ‖x - T(x)‖ + ‖T(x) - T(x̂)‖ + ‖T(x̂) - x̂‖ ≤ ρ + q ‖x - x̂‖ + r.
    """
    return torch.where(q < 1, (r + residual) / (1 - q).clamp_min(1e-12), torch.inf)


def iteration_bound(r: Tensor, q: Tensor, start: Tensor, k: int) -> Tensor:
    """q^k ‖x_0 - x̂‖ + (1 - q^k)/(1 - q) r, the bound on ‖x_k - x̂‖ for x_{k+1} = T(x_k) (23).

    q is the largest radial factor over x_0 ... x_{k-1}; start = ‖x_0 - x̂‖; inf at q ≥ 1.
    """
    bound = q**k * start + (1 - q**k) / (1 - q).clamp_min(1e-12) * r
    return torch.where(q < 1, bound, torch.inf)


class Iterate:
    """A random iterate of a solve for each image: the `watch` of its solver.

    x: (B, 3, H, W), x0 before the first evaluation. Bound (23) is about q along the iterates. The
    choice is uniform where every evaluation gives an iterate; with the guard one whose residual is
    not the least so far gives none, and its share goes to the iterates before it. An image that is
    finished stays as it is, so that its choice does not depend on its batch.
    """

    def __init__(self, x0: Tensor, rng, iterations: int):
        self.x = x0
        self.drawn = rng.uniform(0, 1, (len(x0), iterations))
        self.residual = np.full(len(x0), np.inf)

    def __call__(self, k: int, x: Tensor, residual: np.ndarray) -> None:
        """Take the iterate of the k-th evaluation, if it gave one, with probability 1/k."""
        chosen = (self.drawn[:, k - 1] * k < 1) & (residual != self.residual)
        self.x = choose(chosen, x.detach(), self.x)
        self.residual = residual


def probes(truth: Tensor, x0: Tensor, rng, iterate: Tensor, noise: Tensor) -> Tensor:
    """Perturbations e (B, 3, H, W) at which the radial factor is probed in training, one an image.

    Half of them lead to an iterate of the solver. The others are in equal shares: white noise of
    standard deviation U(0, 50/255); t (x_0 - x̂) with t ~ U(0, 1); the second plus 0.3 of the first.
    rng: of the shares and lengths; noise: standard normal, of the shape of truth.
    """

    def uniform() -> Tensor:
        return sent(rng.uniform(0, 1, (len(truth), 1, 1, 1)), truth)

    white, radial = LEVEL * uniform() * noise, uniform() * (x0 - truth)
    kind = uniform()
    e = torch.where(kind < 1 / 3, white, torch.where(kind < 2 / 3, radial, radial + 0.3 * white))
    return torch.where(uniform() < 0.5, iterate - truth, e)


def surrogate(T: Callable[[Tensor], Tensor], truth: Tensor, e: Tensor) -> Tensor:
    """B = mean[ log(r + 1e-3) - log(max(1 - q, 0.02)) + 5 relu(q - 0.98) ], the bound for training.

    It (26) is the logarithm of r / (1 - q), made finite where q ≥ 1 and pushed towards q < 1 there.
    truth, e: (B, 3, H, W); q is measured at x̂ + e. Probes shorter than 1e-4, as a flat image has
    in noise-free problems, count as that long, so that they weigh little.
    """
    T_truth = T(truth)
    r = rms(T_truth - truth)
    q = rms(T(truth + e) - T_truth) / rms(e).clamp_min(SHORTEST)
    return (
        torch.log(r + 1e-3) - torch.log((1 - q).clamp_min(0.02)) + 5 * torch.relu(q - 0.98)
    ).mean()
