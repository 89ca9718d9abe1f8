"""The maps whose fixed points are restorations: proximal gradient, gradient descent, ADMM.

With the gradient field g(x) = Aᵀ(Ax - y) + λR(x) and R = N/c, every map here but ADMM's has the
same fixed points, g(x*) = 0. Numbers in brackets are equations of docs/method.md, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rerg.problems import Observation

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ProximalGradient:
    """T(x) = prox_{(c/λ)F}(x - N(x)), proximal gradient with the step c/λ: the fast map (11).

    N: the network, scale = 1/c. Indexing keeps some images of the batch.
    """

    N: Field
    observation: Observation
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        t = 1 / (self.scale * self.observation.weight)
        return self.observation.prox(x - self.N(x), t)

    def __getitem__(self, index: Tensor) -> "ProximalGradient":
        return ProximalGradient(self.N, self.observation[index], self.scale)

    def start(self) -> Tensor:
        """The first iterate, x0."""
        return self.observation.x0

    def restoration(self, x: Tensor) -> Tensor:
        """The restoration that the state x stands for: itself."""
        return x


@dataclass(frozen=True)
class GradientDescent(ProximalGradient):
    """T(x) = x - η g(x), gradient descent (9); η = 1/(1 + 2λ/c), for ‖A‖ ≤ 1, N 2-Lipschitz."""

    def field(self, x: Tensor) -> Tensor:
        """g(x) = Aᵀ(Ax - y) + (λ/c) N(x) (8)."""
        return self.observation.gradient(x) + self.observation.weight * self.scale * self.N(x)

    def __call__(self, x: Tensor) -> Tensor:
        return x - self.field(x) / (1 + 2 * self.observation.weight * self.scale)

    def __getitem__(self, index: Tensor) -> "GradientDescent":
        return GradientDescent(self.N, self.observation[index], self.scale)


@dataclass(frozen=True)
class ADMM:
    """z ↦ z + D(2x - z) - x with x = prox_{(c/λ)F}(z): plug-and-play ADMM on one state z (20).

    D: a denoiser; at a fixed point D(2x - z) = x. The restoration is x.
    """

    D: Field
    observation: Observation
    scale: float

    def restoration(self, z: Tensor) -> Tensor:
        """x = prox_{(c/λ)F}(z)."""
        return self.observation.prox(z, 1 / (self.scale * self.observation.weight))

    def __call__(self, z: Tensor) -> Tensor:
        x = self.restoration(z)
        return z + self.D(2 * x - z) - x

    def __getitem__(self, index: Tensor) -> "ADMM":
        return ADMM(self.D, self.observation[index], self.scale)

    def start(self) -> Tensor:
        """The first state, x0."""
        return self.observation.x0


Map = ProximalGradient | GradientDescent | ADMM
