"""Equilibria: the maps whose fixed points are restorations, their solvers, implicit gradients.

With the gradient field g(x) = Aᵀ(Ax - y) + λR(x) and R = N/c, every map here but ADMM's has the
same fixed points, g(x*) = 0. Numbers in brackets are equations of docs/method.md, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
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


@dataclass
class Solution:
    """What a solver returns, one value per image of the batch.

    x: last iterate (B, 3, H, W), finite; residual: ‖T(x) - x‖/‖x‖ where it was last measured;
    evaluations: of the map; converged: whether the residual came under the tolerance;
    fallbacks: plain steps of the batch that stand for singular Anderson steps.
    """

    x: Tensor
    residual: Tensor
    evaluations: Tensor
    converged: Tensor
    fallbacks: int = 0


Watch = Callable[[int, Tensor, Tensor], None]  # evaluations, iterates, residuals of the batch

DIVERGED = 10.0  # root mean square of an iterate whose restoration has intensities in [0, 1]


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _per_image(v: Tensor) -> Tensor:
    return v.reshape(-1, 1, 1, 1)


class Plain:
    """x_{k+1} = T(x_k)."""

    fallbacks = 0

    def __init__(self, x0: Tensor):
        del x0

    def next(self, x: Tensor, T_x: Tensor, residual: Tensor) -> Tensor:
        """The point at which T is evaluated next, from T(x) and the relative residuals."""
        return T_x

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""


class Momentum:
    """Nesterov's extrapolation, restarted for an image when its residual grows (14)."""

    fallbacks = 0

    def __init__(self, x0: Tensor):
        self.previous = x0
        self.t = torch.ones(len(x0), dtype=x0.dtype, device=x0.device)
        self.residual = torch.full_like(self.t, torch.inf)

    def next(self, x: Tensor, T_x: Tensor, residual: Tensor) -> Tensor:
        """T(x) + β (T(x) - previous T(x)), with β = (t - 1)/t' and t' = (1 + √(1 + 4t²))/2."""
        self.t = torch.where(residual > self.residual, 1.0, self.t)
        t = (1 + (1 + 4 * self.t**2).sqrt()) / 2
        beta = (self.t - 1) / t
        y = T_x + _per_image(beta) * (T_x - self.previous)
        self.previous, self.t, self.residual = T_x, t, residual
        return y

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""
        self.previous, self.t = self.previous[index], self.t[index]
        self.residual = self.residual[index]


class Anderson:
    """Anderson acceleration (15): the affine mix of the last T(x_i) of least mixed residual.

    window: how many iterates are mixed; damping: share of T in the mix of x and T(x), in (0, 1];
    ridge: Tikhonov term of the least-squares problem, relative to its trace. Where the system is
    singular or its solution not finite, the image takes the plain step, counted in `fallbacks`.
    """

    def __init__(self, x0: Tensor, window: int = 5, damping: float = 1.0, ridge: float = 1e-8):
        self.window, self.damping, self.ridge = window, damping, ridge
        self.xs = self.fs = x0.new_empty(len(x0), 0, x0[0].numel())
        self.fallbacks = 0

    def next(self, x: Tensor, T_x: Tensor, residual: Tensor) -> Tensor:
        """Σ α_i ((1 - damping) x_i + damping T(x_i)), Σ α = 1, of least ‖Σ α_i (T(x_i) - x_i)‖."""
        latest = slice(-self.window, None)
        self.xs = torch.cat([self.xs, x.flatten(1)[:, None]], 1)[:, latest]
        self.fs = torch.cat([self.fs, T_x.flatten(1)[:, None]], 1)[:, latest]
        residuals = (self.fs - self.xs).double()  # their Gram matrix squares their condition
        gram = residuals @ residuals.mT
        ridge = self.ridge * gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-300)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        ones = torch.ones_like(gram[..., :1])
        alpha, info = torch.linalg.solve_ex(gram + ridge[:, None, None] * eye, ones)
        alpha = alpha / alpha.sum(1, keepdim=True)
        plain = (info != 0) | ~alpha.isfinite().all((1, 2))
        self.fallbacks += int(plain.sum())
        mixed = (1 - self.damping) * self.xs + self.damping * self.fs
        y = (torch.nan_to_num(alpha).to(mixed) * mixed).sum(1).view_as(x)
        return torch.where(_per_image(plain), T_x, y)

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""
        self.xs, self.fs = self.xs[index], self.fs[index]


def fixed_point(
    T: Field,
    x0: Tensor,
    *,
    iterations: int,
    tolerance: float,
    acceleration: Callable[[Tensor], Plain | Momentum | Anderson] = Plain,
    largest: float = DIVERGED,
    watch: Watch | None = None,
) -> Solution:
    """Iterate T from x0 until each image's relative residual ‖T(x) - x‖/‖T(x)‖ is ≤ tolerance.

    T: a map of a batch (B, 3, H, W); one that can be indexed (`T[index]`) is evaluated on the
    unfinished images only. The last T(x) is returned. An image whose iterate stops being finite,
    or whose root mean square exceeds `largest`, is stopped with `converged` False.
    watch: called after every evaluation with the number of evaluations, T(x) and the residuals.
    """
    solution = Solution(
        x=x0.clone(),
        residual=torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device),
        evaluations=torch.zeros(len(x0), dtype=torch.long, device=x0.device),
        converged=torch.zeros(len(x0), dtype=torch.bool, device=x0.device),
    )
    shrinks = hasattr(T, "__getitem__")
    limit = largest * x0[0].numel() ** 0.5
    active = torch.arange(len(x0), device=x0.device)
    alive = torch.ones_like(solution.converged)
    accelerate, x = acceleration(x0), x0
    for k in range(1, iterations + 1):
        T_x = T(x)
        size = _norm(T_x)
        residual = _norm(T_x - x) / size.clamp_min(1e-30)
        sound = alive[active] & size.isfinite() & (size <= limit)
        done = (residual <= tolerance) & sound
        if bool(sound.all()):
            solution.x[active], solution.residual[active] = T_x, residual
        else:
            solution.x[active[sound]] = T_x[sound]
            solution.residual[active[sound]] = residual[sound]
        alive[active] = sound
        solution.evaluations[active] = k
        solution.converged[active] = done
        if watch is not None:
            watch(k, solution.x, solution.residual)
        going = sound & ~done
        if not bool(going.any()) or k == iterations:
            break
        x = accelerate.next(x, T_x, residual)
        if shrinks and not bool(going.all()):
            active, x, T = active[going], x[going], T[going]
            accelerate.keep(going)
    solution.fallbacks = accelerate.fallbacks
    return solution


def adam(
    T: GradientDescent,
    x0: Tensor,
    *,
    iterations: int,
    learning_rate: float,
    watch: Watch | None = None,
) -> Solution:
    """Adam on the image with the gradient g(x), as the public code of PnP-ReG does (13).

    Step k applies N to the image under the (k mod 8)-th flip and rotation and turns the result
    back. It has no stopping rule: `converged` is False, `residual` is ‖g(x)‖/‖x‖. An image whose
    gradient is not finite stays where it is, with an infinite residual.
    """
    x = x0.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    residual = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for k in range(1, iterations + 1):
        turned = GradientDescent(
            lambda z, k=k: dihedral_inverse(T.N(dihedral(z, k)), k), T.observation, T.scale
        )
        with torch.no_grad():
            x.grad = turned.field(x.detach())
            residual = _norm(x.grad) / _norm(x.detach()).clamp_min(1e-30)
            residual = torch.where(residual.isfinite(), residual, torch.inf)
            last = x.detach().clone()
        optimizer.step()
        with torch.no_grad():
            x.copy_(torch.where(_per_image(residual.isfinite()), x, last))
        if watch is not None:
            watch(k, x.detach(), residual)
    evaluations = torch.full((len(x0),), iterations, device=x0.device)
    return Solution(x.detach(), residual, evaluations, torch.zeros_like(evaluations, dtype=bool))


def dihedral(x: Tensor, k: int) -> Tensor:
    """The (k mod 8)-th flip and rotation of x (..., H, W)."""
    x = torch.rot90(x, k % 4, (-2, -1))
    return x.flip(-1) if k % 8 >= 4 else x


def dihedral_inverse(x: Tensor, k: int) -> Tensor:
    """The inverse of `dihedral`."""
    x = x.flip(-1) if k % 8 >= 4 else x
    return torch.rot90(x, -(k % 4), (-2, -1))


def equilibrium(
    T: Field,
    x0: Tensor,
    *,
    iterations: int,
    tolerance: float,
    acceleration: Callable = Momentum,
    backward_iterations: int,
    backward_tolerance: float,
    report: Callable[[Solution], None] | None = None,
) -> tuple[Tensor, Solution]:
    """The fixed point x* of T with its implicit gradient, and the forward solution.

    With v = ∂ℓ/∂x* the backward pass solves u = J_T(x*)ᵀu + v by Anderson acceleration and passes
    u on to T, so that dℓ/dθ = uᵀ ∂T(x*; θ)/∂θ (17, 18). Its memory is that of
    one application of T. backward_iterations = 0 takes u = v, the Jacobian-free gradient.
    report: called in the backward pass with the solution u, so that its residual can be seen.
    """
    with torch.no_grad():
        solution = fixed_point(
            T, x0, iterations=iterations, tolerance=tolerance, acceleration=acceleration
        )
    z = solution.x.detach().requires_grad_()
    with torch.enable_grad():
        T_z = T(z)
        x = T_z.view_as(T_z)  # its hook must not see the gradients of the backward solve

    def solve(v: Tensor) -> Tensor:
        if backward_iterations == 0:
            return v

        def adjoint(u: Tensor) -> Tensor:
            return torch.autograd.grad(T_z, z, u, retain_graph=True)[0] + v

        with torch.no_grad():
            backward = fixed_point(
                adjoint,
                v,
                iterations=backward_iterations,
                tolerance=backward_tolerance,
                acceleration=Anderson,
                largest=torch.inf,
            )
        if report is not None:
            report(backward)
        return backward.x

    x.register_hook(solve)
    return x, solution
