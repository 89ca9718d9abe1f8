"""Fixed points by iteration: the loop, and the accelerations that choose its next point.

Numbers in brackets are equations of docs/method.md, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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

NEAR = 0.1  # share of the refused step's residual at which Anderson is tried again
DIVERGED = 10.0  # root mean square of an iterate whose restoration has intensities in [0, 1]


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each image of a batch, (B,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def per_image(v: Tensor) -> Tensor:
    """A value per image, (B,), as (B, 1, 1, 1)."""
    return v.reshape(-1, 1, 1, 1)


class Plain:
    """x_{k+1} = T(x_k)."""

    fallbacks = 0

    def __init__(self, x0: Tensor):
        del x0

    def accepts(self, residual: Tensor) -> Tensor:
        """For each image, whether the T(x) of that relative residual becomes the iterate."""
        return torch.ones_like(residual, dtype=torch.bool)

    def next(self, T_x: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        """The next x, from T(x), the step T(x) - x and the relative residuals."""
        return T_x

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""


class Momentum(Plain):
    """Nesterov's extrapolation, restarted for an image when its residual grows (14)."""

    def __init__(self, x0: Tensor):
        self.previous = x0
        self.t = torch.ones(len(x0), dtype=x0.dtype, device=x0.device)
        self.residual = torch.full_like(self.t, torch.inf)

    def next(self, T_x: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        """T(x) + β (T(x) - previous T(x)), with β = (t - 1)/t' and t' = (1 + √(1 + 4t²))/2."""
        self.t = torch.where(residual > self.residual, 1.0, self.t)
        t = (1 + (1 + 4 * self.t**2).sqrt()) / 2
        beta = (self.t - 1) / t
        y = torch.lerp(self.previous, T_x, per_image(1 + beta))
        self.previous, self.t, self.residual = T_x, t, residual
        return y

    def restart(self, images: Tensor) -> None:
        """Forget the velocity of these images (B,)."""
        self.t = torch.where(images, 1.0, self.t)
        self.residual = torch.where(images, torch.inf, self.residual)

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""
        self.previous, self.t = self.previous[index], self.t[index]
        self.residual = self.residual[index]


class Anderson(Plain):
    """Anderson acceleration (15): the affine mix of the last T(x_i) of least mixed residual.

    window: how many iterates are mixed; damping: share of T in the mix of x and T(x), in (0, 1];
    ridge: Tikhonov term of the least-squares problem, relative to its trace. Where the system is
    singular or its solution not finite, the image takes the plain step, counted in `fallbacks`.
    """

    def __init__(self, x0: Tensor, window: int = 10, damping: float = 1.0, ridge: float = 1e-8):
        self.damping, self.ridge, self.step = damping, ridge, 0
        # A ring: the order of the iterates does not matter, so the oldest is overwritten in place.
        # Empty places hold zeros and have no share in the mix.
        self.images = x0.new_zeros(len(x0), window, x0[0].numel())
        self.residuals = torch.zeros_like(self.images)
        self.gram = torch.zeros(len(x0), window, window, dtype=torch.float64, device=x0.device)
        self.filled = torch.zeros(len(x0), window, dtype=torch.bool, device=x0.device)

    def next(self, T_x: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        """Σ α_i ((1 - damping) x_i + damping T(x_i)), Σ α = 1, of least ‖Σ α_i (T(x_i) - x_i)‖."""
        i = self.step % self.filled.shape[1]
        self.step += 1
        self.images[:, i], self.residuals[:, i] = T_x.flatten(1), step.flatten(1)
        self.filled[:, i] = True
        # a row times a transposed matrix: the other way round, batches take twice the time
        row = (self.residuals[:, i : i + 1] @ self.residuals.mT)[:, 0]
        self.gram[:, i] = self.gram[:, :, i] = row
        gram = self.gram.clone()
        diagonal = gram.diagonal(dim1=1, dim2=2)
        ridge = self.ridge * diagonal.sum(1, keepdim=True).clamp_min(1e-300)
        diagonal += torch.where(self.filled, ridge, 1.0)
        alpha, info = torch.linalg.solve_ex(gram, self.filled[..., None].to(gram))
        alpha = alpha / alpha.sum(1, keepdim=True)
        sound = (info == 0) & alpha.sum((1, 2)).isfinite()
        alpha = alpha.to(T_x).mT
        y = alpha @ self.images
        if self.damping < 1:
            y = y - (1 - self.damping) * (alpha @ self.residuals)
        y = y.view_as(T_x)
        if bool(sound.all()):
            return y
        self.fallbacks += int((~sound).sum())
        return torch.where(per_image(sound), y, T_x)

    def restart(self, images: Tensor) -> None:
        """Forget the iterates of these images (B,)."""
        # by their numbers, as a mask would pass over the iterates of all images
        rows = (images & self.filled.any(1)).nonzero()[:, 0]
        for kept in (self.images, self.residuals, self.gram, self.filled):
            kept[rows] = 0

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""
        self.images, self.residuals = self.images[index], self.residuals[index]
        self.gram, self.filled = self.gram[index], self.filled[index]


class Safeguarded(Plain):
    """Anderson's steps as long as the residual falls, momentum where it would not (15a).

    A step that raises the residual of an image is refused: it goes back to its last iterate, and
    takes the plain step from there, whatever its residual, then momentum's until the residual
    has fallen to a tenth, then Anderson's anew. So a residual never grows but by a plain step.
    """

    def __init__(self, x0: Tensor, window: int = 10):
        self.anderson, self.momentum = Anderson(x0, window), Momentum(x0)
        self.residual = torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device)
        self.iterate = x0
        # Whether the step under way is a plain one, and whether it is momentum's turn until the
        # residual is `near`.
        self.plain = torch.ones_like(self.residual, dtype=torch.bool)
        self.far = torch.zeros_like(self.plain)
        self.near = torch.zeros_like(self.residual)

    @property
    def fallbacks(self) -> int:
        """Plain steps that stand for singular Anderson steps."""
        return self.anderson.fallbacks

    def accepts(self, residual: Tensor) -> Tensor:
        """For each image, whether the T(x) of that relative residual becomes the iterate."""
        return (residual <= self.residual) | self.plain

    def next(self, T_x: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        """The next x, from T(x), the step T(x) - x and the relative residuals."""
        refused = ~self.accepts(residual)
        if not bool((refused | self.far).any()):
            self.residual, self.iterate, self.plain = residual, T_x, refused
            return self.anderson.next(T_x, step, residual)
        self.near = torch.where(refused & ~self.far, NEAR * self.residual, self.near)
        self.residual = torch.where(refused, self.residual, residual)
        if bool(refused.any()):
            self.iterate = torch.where(per_image(refused), self.iterate, T_x)
        else:
            self.iterate = T_x
        self.far = (self.far | refused) & (self.residual > self.near)
        self.plain = refused
        if not bool(self.far.any()):
            return self.anderson.next(T_x, step, residual)
        self.momentum.restart(refused | ~self.far)
        y = self.momentum.next(self.iterate, step, residual)
        if not bool(self.far.all()):
            y = torch.where(per_image(self.far), y, self.anderson.next(T_x, step, residual))
        self.anderson.restart(self.far)
        return y

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""
        self.anderson.keep(index)
        self.momentum.keep(index)
        self.residual, self.iterate = self.residual[index], self.iterate[index]
        self.plain, self.far, self.near = self.plain[index], self.far[index], self.near[index]


def fixed_point(
    T: Callable[[Tensor], Tensor],
    x0: Tensor,
    *,
    iterations: int,
    tolerance: float,
    acceleration: Callable[[Tensor], Plain] = Plain,
    largest: float = DIVERGED,
    watch: Watch | None = None,
) -> Solution:
    """Iterate T from x0 until each image's relative residual ‖T(x) - x‖/‖T(x)‖ is ≤ tolerance.

    T: a map of a batch (B, 3, H, W); one that can be indexed (`T[index]`) is evaluated on the
    unfinished images only. The last T(x) that the acceleration accepts is returned. An image whose
    iterate stops being finite, or whose root mean square exceeds `largest`, is stopped with
    `converged` False.
    watch: called after every evaluation with the number of evaluations, iterates and residuals.
    """
    solution = Solution(
        x=x0,
        residual=torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device),
        evaluations=torch.zeros(len(x0), dtype=torch.long, device=x0.device),
        converged=torch.zeros(len(x0), dtype=torch.bool, device=x0.device),
    )
    shrinks = hasattr(T, "__getitem__")
    limit = largest * x0[0].numel() ** 0.5
    active = torch.arange(len(x0), device=x0.device)
    alive = torch.ones_like(solution.converged)  # of the active images
    accelerate, x = acceleration(x0), x0
    for k in range(1, iterations + 1):
        T_x = T(x)
        step, size = T_x - x, norm(T_x)
        sound = size < limit  # false for NaN
        residual = torch.where(sound, norm(step) / size.clamp_min(1e-30), torch.inf)
        accepted = accelerate.accepts(residual)
        alive = alive & (sound | ~accepted)
        kept = accepted & alive
        if len(active) == len(x0) and bool(kept.all()):
            solution.x, solution.residual = T_x, residual
        else:  # not in place, as the acceleration may hold the tensors
            rows = (active[kept],)
            solution.x = solution.x.index_put(rows, T_x[kept])
            solution.residual = solution.residual.index_put(rows, residual[kept])
        if watch is not None:
            watch(k, solution.x, solution.residual)
        done = kept & (residual <= tolerance)
        going = alive & ~done
        all_going = bool(going.all())
        if not all_going or k == iterations:
            solution.evaluations[active] = k
            solution.converged[active] = done
            if k == iterations or not bool(going.any()):
                break
        x = accelerate.next(T_x, step, residual)
        if shrinks and not all_going:
            active, alive, x, T = active[going], alive[going], x[going], T[going]
            accelerate.keep(going)
    solution.fallbacks = accelerate.fallbacks
    return solution
