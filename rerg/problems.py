"""Inverse problems: y = A x̂ + n, as deepinv physics built from an entry of config/problems.yaml.

Boundaries are circular. Intensities lie in [0, 1]; noise and σ stand in the config in 1/255.
A and Aᵀ are deepinv's; its prox_l2 recomputes Aᵀy at each call, so the closed prox is ours, on the
spectra that its physics hold (docs/method.md, section 2). A physics of another kind, as a user may
bring one, is served by its own A and A_adjoint, with deepinv's conjugate gradients for the prox.
"""

import copy
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from deepinv.physics import BlurFFT, Denoising, Downsampling, Inpainting, LinearPhysics
from torch import Tensor, fft

from rerg.config import InputError
from rerg.files import Observed
from rerg.kernels import kernel_of
from rerg.precision import tf32
from rerg.specs import ProblemSpec


def generator(dataset: str, problem: str, image: str) -> np.random.Generator:
    """The generator of an observation's noise and mask: it depends on these three names only."""
    name = f"{dataset}/{problem}/{image}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:16]))


def _per_image(held: Tensor) -> bool:
    """Whether a mask, a filter or a spectrum is one for each image of a batch, (B, ., ., .)."""
    return held.dim() > 3 and len(held) > 1


def initial(y: Tensor, physics: LinearPhysics) -> Tensor:
    """The initial image x0: y; its bicubic upsampling; 0.5 in the pixels that a mask takes away."""
    if isinstance(physics, Inpainting):
        return physics.A_adjoint(y) + 0.5 * (1 - physics.mask)
    if isinstance(physics, Downsampling):
        return F.interpolate(y, scale_factor=physics.factor, mode="bicubic", align_corners=False)
    return y


_copies: WeakKeyDictionary[LinearPhysics, dict] = WeakKeyDictionary()


def _with_buffers(physics: LinearPhysics, change: Callable[[Tensor], Tensor]) -> LinearPhysics:
    """A copy of a physics whose own tensors are changed; all else is shared."""
    other = copy.copy(physics)
    other._buffers = {k: None if v is None else change(v) for k, v in physics._buffers.items()}
    return other


def _copy_on(physics: LinearPhysics, device: torch.device) -> LinearPhysics:
    """A copy of a physics on a device, as a module moves in place; made once."""
    copies = _copies.setdefault(physics, {})
    if device not in copies:
        copies[device] = copy.deepcopy(physics).to(device)
    return copies[device]


@dataclass(frozen=True)
class Observation:
    """A batch of observations of one problem: y = A x̂ + n with the physics that made it.

    y: (B, 3, h, w); x0: the initial image, (B, 3, H, W); sigma: σ in [0, 1], λ = σ².
    Indexing keeps some images of the batch, where `closed`.
    """

    y: Tensor
    x0: Tensor
    physics: LinearPhysics
    sigma: float

    @property
    def weight(self) -> float:
        """λ = σ²."""
        return self.sigma**2

    @cached_property
    def back_projection(self) -> Tensor:
        """Aᵀ y."""
        with tf32(False):  # deepinv's downsampling convolves
            return self.physics.A_adjoint(self.y)

    @cached_property
    def closed(self) -> bool:
        """Whether AAᵀ is diagonal in the pixels or in their spectrum, so that the prox is closed.

        Of the very classes: one that inherits from them has another A.
        """
        physics, shape = self.physics, self.x0.shape[-2:]
        if type(physics) is Downsampling:
            whole = not any(side % physics.factor for side in shape)
            spectrum = physics.Fh is not None and physics.Fh.shape[-2:] == shape
            return whole and spectrum and physics.padding == "circular"
        return type(physics) in (Denoising, Inpainting, BlurFFT)

    @cached_property
    def spectrum(self) -> Tensor | float:
        """The spectrum of AAᵀ, from those that deepinv's physics holds; half of it for a blur."""
        physics = self.physics
        if isinstance(physics, BlurFFT):
            return physics.mask[..., 0] ** 2
        if not isinstance(physics, Downsampling):
            return physics.mask**2
        # A decimated image has the mean of its aliases' spectra, a zero-filled one repeats its own.
        f = physics.factor
        return physics.Fh2.unflatten(-1, (f, -1)).unflatten(-3, (f, -1)).mean((-4, -2))

    @cached_property
    def _ones(self) -> Tensor:
        """The filter of φ = 1."""
        return self._filter(torch.ones_like)

    @cached_property
    def _resolvents(self) -> dict[float, Tensor]:
        """The filters of φ(s) = 1/(1/t + s), by t."""
        return {}

    def _filter(self, phi: Callable[[Tensor], Tensor]) -> Tensor:
        """What `_normal` multiplies by for Aᵀ φ(AAᵀ) A."""
        if isinstance(self.physics, Downsampling):
            return phi(self.spectrum) / self.physics.factor
        return self.spectrum * phi(self.spectrum)

    def _normal(self, x: Tensor, filtered: Tensor) -> Tensor:
        """Aᵀ φ(AAᵀ) A x, from the filter of φ."""
        physics, (height, width) = self.physics, x.shape[-2:]
        if not isinstance(physics, Downsampling):
            if not isinstance(physics, BlurFFT):
                return filtered * x
            return fft.irfft2(filtered * fft.rfft2(x), s=(height, width))
        # Rows are decimated and zero-filled in the half spectrum, columns in the image.
        f, half = physics.factor, width // 2 + 1
        blurred = (physics.Fh[..., :half] * fft.rfft2(x)).unflatten(-2, (f, -1)).sum(-3)
        low = fft.irfft2(blurred, s=(height // f, width))[..., ::f]
        low = fft.fft2(low) * filtered
        low = low.repeat(1, 1, 1, f)[..., None, :, :half]
        x = (physics.Fhc[..., :half].unflatten(-2, (f, -1)) * low).flatten(-3, -2)
        return fft.irfft2(x, s=(height, width))

    def gradient(self, x: Tensor) -> Tensor:
        """Aᵀ(A x - y), the gradient of F(x) = ½‖A x - y‖²."""
        if not self.closed:
            with tf32(False):  # a physics may convolve
                return self.physics.A_adjoint(self.physics.A(x) - self.y)
        return self._normal(x, self._ones) - self.back_projection

    def prox(self, z: Tensor, t: float) -> Tensor:
        """prox_{tF}(z) = argmin_x ½‖x - z‖² + t F(x) (docs/method.md, eq. 5 to 7)."""
        if not self.closed:
            # By conjugate gradients: Decolorize's own loses the kernel of A, Downsampling's is by
            # the FFT whatever its padding.
            with tf32(False):
                return LinearPhysics.prox_l2(self.physics, z, self.y, t)
        if t not in self._resolvents:  # a solver asks for the same at every evaluation
            self._resolvents[t] = self._filter(lambda squares: 1 / (1 / t + squares))
        w = z.add(self.back_projection, alpha=t)
        return w - self._normal(w, self._resolvents[t])

    def with_sigma(self, sigma: float) -> "Observation":
        """The same observation with another weight λ = σ²."""
        return replace(self, sigma=sigma)

    def scaled(self, factor: float) -> "Observation":
        """The same observation with σ times a factor, as tuning chooses it."""
        return self.with_sigma(factor * self.sigma)

    def starting_at(self, x0: Tensor) -> "Observation":
        """The same observation with another first iterate."""
        return replace(self, x0=x0)

    def to(self, device: str | torch.device, non_blocking: bool = False) -> "Observation":
        """The same observation on a device; this one stays where it is."""
        if torch.device(device) == self.y.device:
            return self

        def there(held: Tensor) -> Tensor:
            return held.to(device, non_blocking=non_blocking)

        if isinstance(self.physics, Inpainting):  # its masks are those of this batch alone
            physics = _with_buffers(self.physics, there)
        else:
            physics = _copy_on(self.physics, torch.device(device))
        return replace(self, y=there(self.y), x0=there(self.x0), physics=physics)

    def pinned(self) -> "Observation":
        """The same observation in pinned memory, which a GPU copies while the host goes on."""
        physics = self.physics
        if isinstance(physics, Inpainting):
            physics = _with_buffers(physics, Tensor.pin_memory)
        return replace(self, y=self.y.pin_memory(), x0=self.x0.pin_memory(), physics=physics)

    def __getitem__(self, index: Tensor) -> "Observation":
        # of a closed kind: what others hold per image is unknown
        physics = _with_buffers(self.physics, lambda v: v[index] if _per_image(v) else v)
        chosen = replace(self, y=self.y[index], x0=self.x0[index], physics=physics)
        if "back_projection" in self.__dict__:  # a solver drops finished images
            chosen.__dict__["back_projection"] = self.back_projection[index]
        return chosen


class Problem:
    """One inverse problem, from its spec.

    kernels: the names of kernel files to paths, for problems whose kernel is in a file; kernel:
    float64 (k, k) in the place of the spec's.
    """

    def __init__(
        self,
        spec: ProblemSpec,
        kernels: Mapping[str, Path | str] | None = None,
        kernel: np.ndarray | None = None,
    ):
        self.spec, self.name, self.operator = spec, spec.name, spec.operator
        self.factor = spec.factor
        self.noise, self.sigma = spec.noise / 255, spec.sigma / 255
        self._built: dict[tuple, LinearPhysics] = {}  # of those without masks
        self._kernels, self._kernel = kernels, kernel

    @cached_property
    def kernel(self) -> np.ndarray | None:
        """h, float64 (k, k), or None for an operator without a kernel."""
        if self._kernel is None and self.spec.kernel:
            return kernel_of(self.spec, self._kernels)
        return self._kernel

    def crop(self, x: Tensor) -> Tensor:
        """x (..., H, W) cut at the bottom right to multiples of the factor."""
        f = self.factor
        return x[..., : x.shape[-2] // f * f, : x.shape[-1] // f * f]

    def mask(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """A mask (H, W) of kept pixels, shared by the channels: exactly round(missing·HW) are 0."""
        mask = np.ones(math.prod(shape), dtype=np.uint8)
        gone = rng.permutation(mask.size)[: round(self.spec.missing * mask.size)]
        mask[gone] = 0
        return mask.reshape(shape)

    def physics(
        self,
        shape: tuple[int, int],
        masks: Tensor | None = None,
        like: Tensor = None,
        channels: int = 3,
    ) -> LinearPhysics:
        """The operator A for images (channels, H, W), with the dtype and device of `like`.

        masks: (B, 1, H, W) for completion; what has none is built once and shared.
        Raises InputError where the kernel exceeds the image.
        """
        like = torch.empty(0) if like is None else like
        size, device = (channels, *shape), str(like.device)
        if self.operator == "mask":
            return Inpainting(size, mask=masks.to(like), device=device)
        key = size, device, like.dtype
        if key not in self._built:
            self._built[key] = self._build(size, like)
        return self._built[key]

    def _build(self, size: tuple[int, int, int], like: Tensor) -> LinearPhysics:
        shape, device = size[1:], str(like.device)
        if self.operator == "identity":
            return Denoising(device=device).to(like.dtype)
        if max(self.kernel.shape) > min(shape):
            raise InputError(
                f"{self.name}: its kernel of {len(self.kernel)} x {len(self.kernel)} pixels needs "
                f"an image of at least that size, got {shape[0]} x {shape[1]}"
            )
        h = torch.as_tensor(self.kernel).to(like)[None, None]
        if self.operator == "blur":
            return BlurFFT(size, filter=h, device=device)
        return Downsampling(size, filter=h, factor=self.factor, device=device)

    def observe_image(self, dataset: str, image: str, x: Tensor) -> Observation:
        """Observe an image (3, H, W) of a data set, with the noise and mask that are its own."""
        return self.observe(x[None], [generator(dataset, self.name, image)])

    def observe(self, x: Tensor, rngs: list[np.random.Generator]) -> Observation:
        """Observe clean images x (B, 3, H, W), each with the noise and mask of its generator."""
        x = self.crop(x)
        masks = None
        if self.operator == "mask":
            drawn = np.stack([self.mask(x.shape[-2:], rng) for rng in rngs])
            masks = torch.from_numpy(drawn)[:, None].to(x)
        physics = self.physics(x.shape[-2:], masks, like=x)
        # The switch is the process's, and threads that draw for the CPU must not turn it.
        with tf32(False) if x.is_cuda else nullcontext():
            y = physics.A(x)
        if self.noise > 0:
            noise = [rng.standard_normal(y.shape[1:], dtype=np.float32) for rng in rngs]
            y = y + self.noise * torch.from_numpy(np.stack(noise)).to(y)
            if masks is not None:
                y = y * masks
        return Observation(y, initial(y, physics), physics, self.sigma)


def to_arrays(problem: Problem, images: Mapping[str, Observation]) -> Observed:
    """Observations of one image each, as their file holds them."""
    arrays = {}
    for image, o in images.items():
        arrays[image] = {"y": o.y[0].cpu().numpy(), "x0": o.x0[0].cpu().numpy()}
        if problem.operator == "mask":
            arrays[image]["mask"] = o.physics.mask[0, 0].cpu().numpy().astype(np.uint8)
    return Observed(asdict(problem.spec), problem.kernel, arrays)


def from_arrays(observed: Observed, device: str = "cpu") -> tuple[Problem, dict[str, Observation]]:
    """The problem of a file of observations, and batches of one by image.

    The kernel is the file's, so a reader needs neither the config nor kernel files.
    """
    kernel = None if observed.kernel is None else observed.kernel.astype(np.float64)
    problem = Problem(ProblemSpec(**observed.problem), kernel=kernel)
    observations = {}
    for image, parts in observed.images.items():
        y, x0 = (torch.from_numpy(parts[part])[None].to(device) for part in ("y", "x0"))
        masks = torch.from_numpy(parts["mask"])[None, None] if "mask" in parts else None
        physics = problem.physics(tuple(x0.shape[-2:]), masks, like=y)
        observations[image] = Observation(y, x0, physics, problem.sigma)
    return problem, observations


def batch(observations: list[Observation]) -> Observation:
    """One batch of observations of the same problem and size."""
    first = observations[0]
    physics = first.physics
    if isinstance(physics, Inpainting):
        mask = torch.cat([o.physics.mask for o in observations])
        physics = Inpainting(first.x0.shape[1:], mask=mask, device=str(mask.device))
    y = torch.cat([o.y for o in observations])
    return Observation(y, torch.cat([o.x0 for o in observations]), physics, first.sigma)


def batches(observations: Mapping[str, Observation], size: int) -> list[list[str]]:
    """Names of equal-sized images, at most `size` together, in the order of the file."""
    groups = defaultdict(list)
    for name, observation in observations.items():
        groups[observation.x0.shape].append(name)
    return [g[i : i + size] for g in groups.values() for i in range(0, len(g), size)]
