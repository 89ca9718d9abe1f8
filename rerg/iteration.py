"""Fixed points by iteration: the loop, and the accelerations that choose its next point.

Images are tensors and stay on their device. What is decided of each image is decided on the host,
in numpy, from the few numbers per image that an evaluation measures and that are read at once: so
the device is waited for once an evaluation, and is given little but the map to compute.
Numbers in brackets are equations of docs/method.md, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

STOPPED = ("limit", "converged", "stalled", "diverged")
LIMIT, CONVERGED, STALLED, DIVERGED = range(len(STOPPED))


@dataclass
class Solution:
    """What a solver returns, one value per image of the batch.

    x: the restoration's iterate (B, 3, H, W), finite; residual: ‖T(x) - x‖/‖T(x)‖ where it was
    measured; evaluations: of the map; code: why the image stopped, a place in STOPPED;
    fallbacks: plain steps that stand for singular Anderson steps, of all images.
    """

    x: Tensor
    residual: np.ndarray
    evaluations: np.ndarray
    code: np.ndarray
    fallbacks: int = 0

    @property
    def converged(self) -> np.ndarray:
        """Whether the residual came under the tolerance, (B,)."""
        return self.code == CONVERGED

    @property
    def stopped(self) -> list[str]:
        """Why each image stopped: one of STOPPED."""
        return [STOPPED[code] for code in self.code]


Watch = Callable[[int, Tensor, np.ndarray], None]  # evaluations, iterates, residuals of the batch

NEAR = 0.3  # share of the residual at the end of its turn at which Anderson is tried again
RISE = 2.0  # times the least residual: above it momentum's steps are refused
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


def read(*measured: Tensor) -> np.ndarray:
    """Numbers of each image, (B,) or (B, n) each, on the host, float64 (B, N): waits for them."""
    columns = [numbers if numbers.dim() == 2 else numbers[:, None] for numbers in measured]
    return torch.cat(columns, 1).detach().cpu().double().numpy()


def sent(values: np.ndarray, to: Tensor) -> Tensor:
    """Numbers from the host on the device of `to`, floating ones in its dtype; without a wait."""
    numbers = torch.from_numpy(values)
    numbers = numbers.to(to.dtype) if numbers.is_floating_point() else numbers
    return numbers.to(to.device, non_blocking=True)


def per_image(values: np.ndarray, to: Tensor) -> Tensor:
    """A number per image from the host, (B,), as (B, 1, 1, 1) on the device of `to`."""
    return sent(values, to).reshape(-1, 1, 1, 1)


def choose(first: np.ndarray, a: Tensor, b: Tensor) -> Tensor:
    """The images of a where `first` (B,) holds, else those of b."""
    if first.all():
        return a
    return torch.where(per_image(first, a), a, b) if first.any() else b


def scaled(numbers: np.ndarray, x: Tensor) -> Tensor:
    """Each image times its number."""
    return per_image(numbers, x) * x


class Plain:
    """x_{k+1} = T(x_k)."""

    fallbacks = 0

    def __init__(self, x0: Tensor):
        del x0

    def image(self, x: Tensor, T_x: Tensor) -> Tensor:
        """Where the plain step from x leads: T(x)."""
        return T_x

    def measure(self, step: Tensor) -> list[Tensor]:
        """What `judge` and `next` have to know of the steps T(x) - x: (B,) or (B, n) each."""
        return []

    def judge(
        self, residual: np.ndarray, length: np.ndarray, measured: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For the images evaluated, (B,) each: is x accepted, to be returned, does it stall.

        residual: relative, infinite where the plain step leads out of bounds; length: ‖T(x) - x‖;
        measured: (B, N), what `measure` returned.
        """
        yes = np.ones(len(residual), dtype=bool)
        return yes, yes, ~yes

    def next(self, image: Tensor, step: Tensor, residual: np.ndarray) -> Tensor:
        """The next x, from the plain step's image, T(x) - x and the relative residuals."""
        return image

    def keep(self, index: np.ndarray) -> None:
        """Forget all images of the batch but those."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, value[index])
            elif isinstance(value, Tensor):
                setattr(self, name, value[sent(index, value)])
            elif isinstance(value, Plain):
                value.keep(index)


class Momentum(Plain):
    """Nesterov's extrapolation, restarted for an image when its residual grows (14)."""

    def __init__(self, x0: Tensor):
        self.previous = x0
        self.t = np.ones(len(x0))
        self.residual = np.full(len(x0), np.inf)

    def judge(
        self, residual: np.ndarray, length: np.ndarray, measured: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All are accepted."""
        self.restart(residual > self.residual)
        self.residual = residual
        return super().judge(residual, length, measured)

    def next(self, image: Tensor, step: Tensor, residual: np.ndarray) -> Tensor:
        """image + β (image - previous image), with β = (t - 1)/t' and t' = (1 + √(1 + 4t²))/2."""
        t = (1 + np.sqrt(1 + 4 * self.t**2)) / 2
        beta = (self.t - 1) / t
        y = image + scaled(beta, image - self.previous) if beta.any() else image
        self.previous, self.t = image, t
        return y

    def restart(self, images: np.ndarray) -> None:
        """Forget the velocity of these images (B,)."""
        self.t = np.where(images, 1.0, self.t)


class Anderson(Plain):
    """Anderson acceleration (15): the affine mix of the last T(x_i) of least mixed residual.

    window: how many iterates are mixed; ridge: Tikhonov term of the least-squares problem, relative
    to its trace. Where the system is singular or its solution not finite, the image takes the plain
    step, counted in `fallbacks`.
    """

    def __init__(self, x0: Tensor, window: int = 10, ridge: float = 1e-8):
        self.ridge, self.evaluated, self.fallbacks = ridge, 0, 0
        # A ring: the order of the iterates does not matter, so the oldest is overwritten in place.
        # Places that are not filled have no share in the mix.
        self.images = x0.new_zeros(len(x0), window, x0[0].numel())
        self.steps = torch.zeros_like(self.images)
        self.gram = np.zeros((len(x0), window, window))
        self.filled = np.zeros((len(x0), window), dtype=bool)
        self.row = np.zeros((len(x0), window))

    def measure(self, step: Tensor) -> list[Tensor]:
        """Products of the steps with those of the ring, where they take the oldest place."""
        i = self.evaluated % self.filled.shape[1]
        self.steps[:, i] = step.flatten(1)
        # a row times a transposed matrix: the other way round, batches take twice the time
        return [(self.steps[:, i : i + 1] @ self.steps.mT)[:, 0]]

    def judge(
        self, residual: np.ndarray, length: np.ndarray, measured: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All are accepted."""
        self.row = measured
        return super().judge(residual, length, measured)

    def next(self, image: Tensor, step: Tensor, residual: np.ndarray) -> Tensor:
        """Σ α_i image_i, Σ α = 1, of least ‖Σ α_i step_i‖."""
        i = self.evaluated % self.filled.shape[1]
        self.evaluated += 1
        self.images[:, i] = image.flatten(1)
        self.filled[:, i] = True
        # What overflowed has no place: it is about to be refused, or the image is finished.
        row = np.where(self.filled & np.isfinite(self.row), self.row, 0)
        self.gram[:, i] = self.gram[:, :, i] = row
        ridge = self.ridge * np.einsum("bii->b", self.gram)[:, None]
        gram = self.gram.copy()
        np.einsum("bii->bi", gram)[:] += np.where(self.filled, np.maximum(ridge, 1e-300), 1)
        ones = self.filled[..., None].astype(float)
        solved, info = torch.linalg.solve_ex(torch.from_numpy(gram), torch.from_numpy(ones))
        with np.errstate(all="ignore"):
            alpha = solved.mT.numpy() / solved.numpy().sum(1, keepdims=True)
        sound = (info.numpy() == 0) & np.isfinite(alpha).all((1, 2))
        self.fallbacks += int((~sound).sum())
        y = sent(alpha, image) @ self.images
        return choose(sound, y.view_as(image), image)

    def restart(self, images: np.ndarray) -> None:
        """Forget the iterates of these images (B,), which must be finite."""
        # Their places are freed only: no pass over the iterates.
        self.filled[images], self.gram[images] = False, 0


class Safeguarded(Plain):
    """Anderson's steps as long as the residual falls, momentum where it would not (15a, 15b).

    A step that raises the residual of an image is refused: it goes back to its last iterate z, and
    takes the plain step z + β (T(z) - z) from there, whatever its residual, then momentum's until
    the residual has fallen to 0.3 of that, then Anderson's anew. So does an image of which
    Anderson's gained nothing for ten evaluations. Momentum's are refused above twice the least
    residual, as the way to an equilibrium may lead through larger ones. Where the plain step
    raised the residual *and turned it round*, it was too long: β is halved, and it is taken anew.
    β is 1 at first, every image has its own, and the fixed points do not depend on it.

    Where the arithmetic sets a floor, T(x) - x is noise. Without a gain for ten evaluations the
    middle of a plain step that raised the residual is evaluated, too, and momentum's steps that
    raised it are refused: if T(x) - x at start, middle and end of the plain one is off a straight
    line by more than its own norm, the image stalls (15c).
    """

    def __init__(self, x0: Tensor, window: int = 10):
        self.anderson, self.momentum = Anderson(x0, window), Momentum(x0)
        images = len(x0)
        self.residual, self.beta = np.full(images, np.inf), np.ones(images)
        # The last accepted point by its plain step's image, T(z) - z and the length of that.
        self.iterate, self.step, self.length = x0, torch.zeros_like(x0), np.zeros(images)
        # Whether the step under way is a plain one, and whether it is momentum's turn until the
        # residual is `near`.
        self.plain, self.far = np.ones(images, dtype=bool), np.zeros(images, dtype=bool)
        self.near = np.zeros(images)
        # The least residual and length; the residual of the last gain, and the evaluations since.
        self.least = self.shortest = self.gained = self.residual
        self.idle = np.zeros(images, dtype=int)
        # Whether the last candidate is refused, and whether its step turned round. Whether the step
        # under way is half of the last one, as that was too long or to look for a floor; T(x) - x
        # at the end of that.
        self.refused = self.turned = self.long = self.probe = self.far
        self.end = self.step

    @property
    def fallbacks(self) -> int:
        """Plain steps that stand for singular Anderson steps."""
        return self.anderson.fallbacks

    def image(self, x: Tensor, T_x: Tensor) -> Tensor:
        """Where the plain step from x leads: x + β (T(x) - x)."""
        return T_x if (self.beta == 1).all() else x + scaled(self.beta, T_x - x)

    def measure(self, step: Tensor) -> list[Tensor]:
        """Anderson's, whether the step turned round, and in the middle of a step its bend."""
        measured = [*self.anderson.measure(step), (step * self.step).flatten(1).sum(1)]
        if (self.long | self.probe).any():
            measured.append(norm(self.step - 2 * step + self.end))
        return measured

    def judge(
        self, residual: np.ndarray, length: np.ndarray, measured: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For the images evaluated, (B,) each: is x accepted, to be returned, does it stall."""
        window = self.anderson.filled.shape[1]
        turn, bend = measured[:, window], measured[:, -1]
        self.anderson.judge(residual, length, measured[:, :window])
        best = residual <= self.least
        self.least = np.where(best, residual, self.least)
        gain = self.least < GAIN * self.gained
        self.gained = np.where(gain, self.least, self.gained)
        self.idle = np.where(gain, 0, self.idle + 1)
        suspect = (self.idle >= PATIENCE) & (self.least < FLOOR)
        middle = suspect & (self.long | self.probe)
        stalled = middle & (bend > self.length)
        self.idle = np.where(middle, 0, self.idle)  # straight: no floor
        out = np.isinf(residual)
        self.shortest = np.fmin(self.shortest, length)  # of what overflowed it is NaN
        beyond = (residual > RISE * self.least) | (length > RISE * self.shortest)
        # Momentum's steps are free up to there, but where a floor is to be looked for.
        free = self.far & ~self.plain & ~suspect
        rose = np.where(free, beyond, residual > self.residual) | out
        self.turned = (turn < 0) | out
        # The norm may rise alone: of iterates that grow the relative residual need not.
        longer = (rose | (length > self.length)) & self.turned & (self.beta > SHORTEST)
        self.long = self.plain & ~self.probe & longer
        self.probe = self.plain & ~self.probe & rose & suspect & ~middle & ~self.long
        self.refused = rose & ~self.plain
        accepted = ~(self.long | self.probe | self.refused)
        self.length = np.where(accepted, length, self.length)
        return accepted, best, stalled

    def next(self, image: Tensor, step: Tensor, residual: np.ndarray) -> Tensor:
        """The next x, from the plain step's image, T(x) - x and the relative residuals."""
        halved = self.long | self.probe
        back = halved | self.refused
        self.residual = np.where(back, self.residual, residual)
        ends = self.refused | (self.idle >= PATIENCE)  # what ends Anderson's turn
        self.near = np.where(ends & ~self.far, NEAR * self.residual, self.near)
        self.end = choose(halved, step, self.end)
        self.step = choose(back, self.step, step)
        self.iterate = choose(back, self.iterate, image)
        if halved.any():
            shortened = scaled(np.where(halved, self.beta / 2, 0), self.step)
            self.iterate = self.iterate - shortened
        self.beta = np.where(self.long, self.beta / 2, self.beta)
        self.far = (self.far | ends) & (self.residual > self.near)
        self.momentum.restart(back | ~self.far | self.turned)
        slow = self.momentum.next(self.iterate, self.step, self.residual)
        careful = back | self.far
        fast = slow
        if not careful.all():
            fast = self.anderson.next(self.iterate, self.step, self.residual)
        self.anderson.restart(careful)
        self.plain = back | (self.anderson.filled.sum(1) == 1)  # a window of one: a plain step
        return choose(careful, slow, fast)


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
    """
    images = len(x0)
    solution = Solution(
        x=x0,
        residual=np.full(images, np.inf),
        evaluations=np.zeros(images, dtype=int),
        code=np.full(images, LIMIT),
    )
    limit = largest * x0[0].numel() ** 0.5
    rows = np.arange(images)  # of the images that T is still applied to
    accelerate, x = acceleration(x0), x0
    for k in range(1, iterations + 1):
        T_x = T(x)
        step, image = T_x - x, accelerate.image(x, T_x)
        # the one wait
        numbers = read(norm(image), norm(step), norm(T_x), *accelerate.measure(step))
        size, length, whole, measured = *numbers[:, :3].T, numbers[:, 3:]
        sound = size < limit  # false for NaN
        with np.errstate(invalid="ignore"):
            residual = np.where(sound, length / np.maximum(whole, 1e-30), np.inf)
        accepted, kept, stalled = accelerate.judge(residual, length, measured)
        running = solution.code[rows] == LIMIT
        kept = kept & sound & running
        code = np.where(stalled, STALLED, LIMIT)
        code = np.where(accepted & ~sound, DIVERGED, code)
        code = np.where(kept & (residual <= tolerance), CONVERGED, code)
        going = running & (code == LIMIT)
        solution.x = put(solution.x, rows, kept, image)
        solution.residual[rows[kept]] = residual[kept]
        solution.code[rows[running]] = code[running]
        solution.evaluations[rows[running]] = k
        if watch is not None:
            watch(k, solution.x, solution.residual.copy())
        if k == iterations or not going.any():
            break
        x = accelerate.next(image, step, residual)
        if hasattr(T, "__getitem__") and not going.all():
            index = np.flatnonzero(going)
            there = sent(index, x)
            rows, x, T = rows[index], x[there], T[there]
            accelerate.keep(index)
    solution.fallbacks = accelerate.fallbacks
    return solution


def put(images: Tensor, rows: np.ndarray, mask: np.ndarray, new: Tensor) -> Tensor:
    """A copy of `images` whose places rows[mask] hold new[mask]; no wait for the device."""
    if len(rows) == len(images):
        return choose(mask, new, images)
    if not mask.any():
        return images
    chosen = new[sent(np.flatnonzero(mask), new)]
    return images.index_copy(0, sent(rows[mask], images), chosen)
