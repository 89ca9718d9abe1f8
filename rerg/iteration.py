"""Fixed points by iteration: the loop, and the accelerations that choose its next point.

Numbers in brackets are equations of docs/method.md, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STOPPED = ("limit", "converged", "stalled", "diverged")
LIMIT, CONVERGED, STALLED, DIVERGED = range(len(STOPPED))


@dataclass
class Solution:
    """What a solver returns, one value per image of the batch.

    x: the restoration's iterate (B, 3, H, W), finite; residual: ‖T(x) - x‖/‖T(x)‖ where it was
    measured; evaluations: of the map; code: why the image stopped, a place in STOPPED;
    fallbacks: plain steps of the batch that stand for singular Anderson steps.
    """

    x: Tensor
    residual: Tensor
    evaluations: Tensor
    code: Tensor
    fallbacks: int = 0

    @property
    def converged(self) -> Tensor:
        """Whether the residual came under the tolerance, (B,)."""
        return self.code == CONVERGED

    @property
    def stopped(self) -> list[str]:
        """Why each image stopped: one of STOPPED."""
        return [STOPPED[code] for code in self.code.tolist()]


Watch = Callable[[int, Tensor, Tensor], None]  # evaluations, iterates, residuals of the batch

NEAR = 0.1  # share of the refused step's residual at which Anderson is tried again
SHORTEST = 1 / 128  # of the damping: halved at most seven times
FLOOR = 1e-2  # residual above which no arithmetic sets a floor
PATIENCE, GAIN = (
    10,
    0.9,
)  # evaluations in which none came below 0.9 of the least: a stall is suspected
LARGEST = 10.0  # root mean square of an iterate whose restoration has intensities in [0, 1]


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

    def image(self, x: Tensor, T_x: Tensor) -> Tensor:
        """Where the plain step from x leads: T(x)."""
        return T_x

    def judge(self, step: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For the images evaluated, (B,) each: is x accepted, to be returned, does it stall.

        step: T(x) - x; residual: relative, infinite where the plain step leads out of bounds.
        """
        yes = torch.ones_like(residual, dtype=torch.bool)
        return yes, yes, ~yes

    def next(self, image: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        """The next x, from the plain step's image, T(x) - x and the relative residuals."""
        return image

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""


class Momentum(Plain):
    """Nesterov's extrapolation, restarted for an image when its residual grows (14)."""

    def __init__(self, x0: Tensor):
        self.previous = x0
        self.t = torch.ones(len(x0), dtype=x0.dtype, device=x0.device)
        self.residual = torch.full_like(self.t, torch.inf)

    def next(self, image: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        """image + β (image - previous image), with β = (t - 1)/t' and t' = (1 + √(1 + 4t²))/2."""
        self.t = torch.where(residual > self.residual, 1.0, self.t)
        t = (1 + (1 + 4 * self.t**2).sqrt()) / 2
        beta = (self.t - 1) / t
        y = torch.lerp(self.previous, image, per_image(1 + beta))
        self.previous, self.t, self.residual = image, t, residual
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

    window: how many iterates are mixed; ridge: Tikhonov term of the least-squares problem, relative
    to its trace. Where the system is singular or its solution not finite, the image takes the plain
    step, counted in `fallbacks`.
    """

    def __init__(self, x0: Tensor, window: int = 10, ridge: float = 1e-8):
        self.ridge, self.step = ridge, 0
        # A ring: the order of the iterates does not matter, so the oldest is overwritten in place.
        # Places that are not filled have no share in the mix.
        self.images = x0.new_zeros(len(x0), window, x0[0].numel())
        self.residuals = torch.zeros_like(self.images)
        self.gram = torch.zeros(len(x0), window, window, dtype=torch.float64, device=x0.device)
        self.filled = torch.zeros(len(x0), window, dtype=torch.bool, device=x0.device)
        self.fallbacks = torch.zeros((), dtype=torch.long, device=x0.device)

    def next(self, image: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        """Σ α_i image_i, Σ α = 1, of least ‖Σ α_i step_i‖."""
        i = self.step % self.filled.shape[1]
        self.step += 1
        self.images[:, i], self.residuals[:, i] = image.flatten(1), step.flatten(1)
        self.filled[:, i] = True
        # a row times a transposed matrix: the other way round, batches take twice the time
        row = (self.residuals[:, i : i + 1] @ self.residuals.mT)[:, 0]
        self.gram[:, i] = self.gram[:, :, i] = torch.where(self.filled, row, 0.0)
        gram = self.gram.clone()
        diagonal = gram.diagonal(dim1=1, dim2=2)
        ridge = self.ridge * diagonal.sum(1, keepdim=True).clamp_min(1e-300)
        diagonal += torch.where(self.filled, ridge, 1.0)
        alpha, info = torch.linalg.solve_ex(gram, self.filled[..., None].to(gram.dtype))
        alpha = alpha / alpha.sum(1, keepdim=True)
        sound = (info == 0) & alpha.sum((1, 2)).isfinite()
        self.fallbacks += (~sound).sum()
        y = alpha.to(image.dtype).mT @ self.images
        return torch.where(per_image(sound), y.view_as(image), image)

    def restart(self, images: Tensor) -> None:
        """Forget the iterates of these images (B,), which must be finite."""
        # Their places are freed only: no pass over the iterates, no wait for a device.
        self.filled &= ~images[:, None]
        self.gram.masked_fill_(images[:, None, None], 0.0)

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""
        self.images, self.residuals = self.images[index], self.residuals[index]
        self.gram, self.filled = self.gram[index], self.filled[index]


class Safeguarded(Plain):
    """Anderson's steps as long as the residual falls, momentum where it would not (15a, 15b).

    A step that raises the residual of an image is refused: it goes back to its last iterate z, and
    takes the plain step z + β (T(z) - z) from there, whatever its residual, then momentum's until
    the residual has fallen to a tenth, then Anderson's anew. Where the plain step raised the
    residual *and turned it round*, it was too long: β is halved, and it is taken anew. β is 1 at
    first, every image has its own, and the fixed points do not depend on it.

    Where the arithmetic sets a floor, T(x) - x is noise. Without a gain for ten evaluations the
    middle of a plain step that raised the residual is evaluated, too: if T(x) - x at start, middle
    and end is off a straight line by more than its own norm, the image stalls (15c).

    Nothing here waits for the device: all images go through the same operations.
    """

    def __init__(self, x0: Tensor, window: int = 10):
        self.anderson, self.momentum = Anderson(x0, window), Momentum(x0)
        self.residual = torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device)
        self.beta = torch.ones_like(self.residual)
        # The last accepted point by its plain step's image and T(z) - z.
        self.iterate, self.step = x0, torch.zeros_like(x0)
        # Whether the step under way is a plain one, and whether it is momentum's turn until the
        # residual is `near`.
        self.plain = torch.ones_like(self.residual, dtype=torch.bool)
        self.far = torch.zeros_like(self.plain)
        self.near = torch.zeros_like(self.residual)
        # The least residual; that of the last gain, and the evaluations since.
        self.least, self.gained = self.residual, self.residual
        self.idle = torch.zeros_like(self.residual, dtype=torch.long)
        # Whether the step under way is half of the last one, as that was too long or to look for a
        # floor, and T(x) - x at the end of the last one.
        self.long, self.probe = torch.zeros_like(self.plain), torch.zeros_like(self.plain)
        self.end = self.step

    @property
    def fallbacks(self) -> Tensor:
        """Plain steps that stand for singular Anderson steps."""
        return self.anderson.fallbacks

    def image(self, x: Tensor, T_x: Tensor) -> Tensor:
        """Where the plain step from x leads: x + β (T(x) - x)."""
        return torch.lerp(x, T_x, per_image(self.beta))

    def judge(self, step: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For the images evaluated, (B,) each: is x accepted, to be returned, does it stall."""
        best = (residual <= self.least) & ((residual <= self.residual) | self.plain)
        self.least = torch.where(best, residual, self.least)
        gain = self.least < GAIN * self.gained
        self.gained = torch.where(gain, self.least, self.gained)
        self.idle = torch.where(gain, 0, self.idle + 1)
        suspect = (self.idle >= PATIENCE) & (self.least < FLOOR)
        middle = suspect & (self.long | self.probe)
        stalled = middle & (norm(self.step - 2 * step + self.end) > norm(self.step))
        self.idle = torch.where(middle, 0, self.idle)  # straight: no floor
        out = residual.isinf()
        rose = ~(residual <= self.residual) | out
        turned = ((step * self.step).flatten(1).sum(1) < 0) | out
        # The norm may rise alone: of iterates that grow the relative residual need not.
        longer = (rose | (norm(step) > norm(self.step))) & turned & (self.beta > SHORTEST)
        self.long = self.plain & ~self.probe & longer
        self.probe = self.plain & ~self.probe & rose & suspect & ~middle & ~self.long
        self.refused = rose & ~self.plain
        self.end = torch.where(per_image(self.long | self.probe), step, self.end)
        return ~(self.long | self.probe | self.refused), best, stalled

    def next(self, image: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        """The next x, from the plain step's image, T(x) - x and the relative residuals."""
        halved = self.long | self.probe
        back = halved | self.refused
        self.near = torch.where(self.refused & ~self.far, NEAR * self.residual, self.near)
        self.residual = torch.where(back, self.residual, residual)
        self.step = torch.where(per_image(back), self.step, step)
        self.iterate = torch.where(per_image(back), self.iterate, image)
        self.iterate = self.iterate - per_image(torch.where(halved, self.beta / 2, 0.0)) * self.step
        self.beta = torch.where(self.long, self.beta / 2, self.beta)
        self.far = (self.far | self.refused) & (self.residual > self.near)
        self.momentum.restart(back | ~self.far)
        slow = self.momentum.next(self.iterate, self.step, self.residual)
        fast = self.anderson.next(self.iterate, self.step, self.residual)
        careful = back | self.far
        self.anderson.restart(careful)
        self.plain = back | (self.anderson.filled.sum(1) == 1)  # a window of one: a plain step
        return torch.where(per_image(careful), slow, fast)

    def keep(self, index: Tensor) -> None:
        """Forget all images of the batch but those."""
        self.anderson.keep(index)
        self.momentum.keep(index)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[index])


def fixed_point(
    T: Callable[[Tensor], Tensor],
    x0: Tensor,
    *,
    iterations: int,
    tolerance: float,
    acceleration: Callable[[Tensor], Plain] = Plain,
    largest: float = LARGEST,
    watch: Watch | None = None,
) -> Solution:
    """Iterate T from x0 until each image's relative residual ‖T(x) - x‖/‖T(x)‖ is ≤ tolerance.

    T: a map of a batch (B, 3, H, W); one that can be indexed (`T[index]`) is evaluated on the
    unfinished images only. Returned is the plain step's image, T(x), from the last x that the
    acceleration returns. An image whose iterate stops being finite, or whose root mean square
    exceeds `largest`, is stopped as diverged.
    watch: called after every evaluation with the number of evaluations, iterates and residuals.
    The device is waited for once an evaluation.
    """
    solution = Solution(
        x=x0,
        residual=torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device),
        evaluations=torch.zeros(len(x0), dtype=torch.long, device=x0.device),
        code=torch.full((len(x0),), LIMIT, device=x0.device),
    )
    limit = largest * x0[0].numel() ** 0.5
    rows = torch.arange(len(x0), device=x0.device)  # of the images that T is still applied to
    accelerate, x = acceleration(x0), x0
    for k in range(1, iterations + 1):
        T_x = T(x)
        step, image = T_x - x, accelerate.image(x, T_x)
        sound = norm(image) < limit  # false for NaN
        residual = torch.where(sound, norm(step) / norm(T_x).clamp_min(1e-30), torch.inf)
        accepted, kept, stalled = accelerate.judge(step, residual)
        running = solution.code[rows] == LIMIT
        kept = kept & sound & running
        code = torch.where(stalled, STALLED, LIMIT)
        code = torch.where(accepted & ~sound, DIVERGED, code)
        code = torch.where(kept & (residual <= tolerance), CONVERGED, code)
        going = running & (code == LIMIT)
        solution.x = put(solution.x, rows, kept, image)
        solution.residual = put(solution.residual, rows, kept, residual)
        solution.code = put(solution.code, rows, running, code)
        solution.evaluations = put(solution.evaluations, rows, running, torch.full_like(rows, k))
        if watch is not None:
            watch(k, solution.x, solution.residual)
        all_going, any_going = torch.stack([going.all(), going.any()]).tolist()  # the one wait
        if k == iterations or not any_going:
            break
        x = accelerate.next(image, step, residual)
        if hasattr(T, "__getitem__") and not all_going:
            index = going.nonzero()[:, 0]
            rows, x, T = rows[index], x[index], T[index]
            accelerate.keep(index)
    solution.fallbacks = int(accelerate.fallbacks)
    return solution


def put(values: Tensor, rows: Tensor, mask: Tensor, new: Tensor) -> Tensor:
    """A copy of `values` whose places rows[mask] hold new[mask]; no wait for the device."""
    mask = mask.view(-1, *[1] * (new.dim() - 1))
    if len(rows) == len(values):
        return torch.where(mask, new, values)
    return values.index_copy(0, rows, torch.where(mask, new, values[rows]))
