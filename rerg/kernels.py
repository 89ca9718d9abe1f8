"""Kernels of the operators, from the spec of a problem; with numpy alone.

The configuration is checked by every Snakemake process, so this module does not import torch.
"""

import math
from collections.abc import Mapping

import numpy as np

from rerg.config import InputError
from rerg.specs import ProblemSpec

KERNEL_SIZE = 25  # pixels, at least; the blur kernels of PnP-ReG have this size
REACH = math.sqrt(2 * math.log(1e4))  # std from the centre, where a Gaussian has 1e-4 of its peak


def _bicubic(t: np.ndarray, a: float) -> np.ndarray:
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _gaussian(u: np.ndarray, v: np.ndarray, std: list[float], angle: float) -> np.ndarray:
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, across = c * v - s * u, s * v + c * u
    return np.exp(-((along / std[0]) ** 2 + (across / std[1]) ** 2) / 2)


def _motion(u: np.ndarray, v: np.ndarray, length: float, angle: float) -> np.ndarray:
    """A segment of that length, antialiased: the weight falls linearly over one pixel."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, across = np.abs(c * v - s * u), np.abs(s * v + c * u)
    beyond = np.maximum(along - (length - 1) / 2, 0)
    return np.maximum(1 - np.hypot(across, beyond), 0)


def _stored(spec: ProblemSpec, files: Mapping[str, str]) -> np.ndarray:
    """The kernel of a file, as it is there."""
    name, index = spec.kernel["file"], str(spec.kernel["index"])
    with np.load(files[name]) as content:
        if index not in content:
            raise InputError(
                f"config/problems.yaml: {spec.name}.kernel.index: {name} has {len(content)} "
                f"kernels, expected an index below {len(content)}, got {index}"
            )
        return content[index]


def normalized(h: np.ndarray, where: str) -> np.ndarray:
    """A kernel divided by its sum.

    Raises InputError, which begins with `where`, for anything but a matrix of finite values with a
    positive sum. A sum that is what cancelling left of 10⁶ times as much counts as none.
    """
    if h.ndim != 2 or h.size == 0:
        raise InputError(f"{where}: expected a matrix, found an array of shape {h.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        whole = h.sum() > 1e-6 * np.abs(h).sum()  # False for values or a sum beyond the finite
    if not whole:
        raise InputError(f"{where}: expected a kernel of finite values with a positive sum")
    return h / h.sum()


def kernel_size(spec: ProblemSpec, files: Mapping[str, str] | None = None) -> int:
    """The side (pixels) of the window that holds the kernel of a problem.

    For a Gaussian and a motion it is odd and at least 25: a Gaussian is cut where it is under 1e-4
    of its peak, a motion not at all. A kernel of a file has the file's size.
    0 without a kernel, and for one of a file that `files` does not have.
    Raises InputError for parameters that are not finite, and for an index that a file lacks.
    """
    kernel, factor = spec.kernel or {}, spec.factor
    if "file" in kernel:
        return max(_stored(spec, files).shape) if kernel["file"] in (files or {}) else 0
    if "bicubic" in kernel:
        return 6 * factor + 1
    if "gaussian" in kernel:
        reach = REACH * max(kernel["gaussian"])
    elif "motion" in kernel:
        reach = (kernel["motion"] + 1) / 2
    else:
        return 0
    if not math.isfinite(reach):
        where = f"config/problems.yaml: {spec.name}.kernel {kernel}"
        raise InputError(f"{where}: expected finite numbers")
    return max(KERNEL_SIZE, 2 * math.ceil(reach + (factor - 1) / 2) - 1)


def check_holds(
    side: int, spec: ProblemSpec, where: str, files: Mapping[str, str] | None = None
) -> None:
    """Hold a side (pixels) of images against the kernel of a problem, which needs as much room.

    Raises InputError, which begins with `where`: cut to a multiple of the factor it is smaller.
    """
    size, factor = kernel_size(spec, files), spec.factor
    if size > side // factor * factor:
        raise InputError(
            f"{where}: expected at least {-(-size // factor) * factor} pixels, as {spec.name} has "
            f"a kernel of {size} x {size}, got {side}"
        )


def kernel_of(spec: ProblemSpec, files: Mapping[str, str] | None = None) -> np.ndarray:
    """The kernel h (k, k) of a problem, float64, summing to 1.

    Convention (docs/method.md, eq. 4): (h * x)[i] = Σ_j h[j] x[i - (j - k//2)]; tap j weighs the
    pixel at offset k//2 - j. For a downsampling by f the kernel is centred on the block of f x f
    pixels that a low-resolution pixel covers, at offset (f - 1)/2: a ramp stays a ramp and nothing
    shifts.
    `files` maps the names of kernel files to prepared files, with keys "0", "1", ...
    Raises InputError for a kernel that is not finite or has no positive sum, and for an index that
    a file lacks.
    """
    kernel, factor = spec.kernel, spec.factor
    where = f"config/problems.yaml: {spec.name}.kernel {kernel}"
    if "file" in kernel:
        return normalized(_stored(spec, files), where)
    size = kernel_size(spec)
    offset = size // 2 - np.arange(size) - (factor - 1) / 2
    u, v = np.meshgrid(offset, offset, indexing="ij")
    with np.errstate(all="ignore"):  # what is not finite is refused below
        if "bicubic" in kernel:
            h = _bicubic(u / factor, kernel["bicubic"]) * _bicubic(v / factor, kernel["bicubic"])
        elif "gaussian" in kernel:
            h = _gaussian(u, v, kernel["gaussian"], kernel.get("angle", 0))
        else:
            h = _motion(u, v, kernel["motion"], kernel.get("angle", 0))
        return normalized(h, where)
