"""Files of observations and restorations: their keys, writing, reading and checking.

Both are npz files without pickles. What belongs to an image has a key `<image>/<part>`, so an image
may have any name that a file can have. This module needs no torch, as scores and guards use it.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rerg.atomic import whole
from rerg.config import InputError


@dataclass(frozen=True)
class Observed:
    """The observations of one problem on one dataset.

    problem: its entry of config/problems.yaml with its `name`; kernel: (k, k) or None; images: id
    to `y` (3, h, w) and `x0` (3, H, W), the initial image, float32, and for completion `mask`
    (H, W), uint8.
    """

    problem: dict
    kernel: np.ndarray | None
    images: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Restored:
    """The restorations of one problem on one dataset by one method.

    images: id to x (3, H, W) in [0, 1] scale, not clipped; stats: id to what the method reports of
    itself; traces: id to rows of (network evaluations, relative residual, PSNR in dB); failed: the
    reason where the method failed, and there are no images.
    """

    images: dict[str, np.ndarray] = field(default_factory=dict)
    stats: dict[str, dict] = field(default_factory=dict)
    traces: dict[str, np.ndarray] = field(default_factory=dict)
    failed: str = ""


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as npz."""
    # np.savez has names of its own
    with whole(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        for key, array in arrays.items():
            # the date of the format's beginning: the same arrays give the same bytes
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: expected an npz file, found a single array")
        with file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected an npz file without pickles ({error})") from None


def _of_images(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    images: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        image, slash, part = key.rpartition("/")
        if slash:
            images.setdefault(image, {})[part] = array
    return images


def write_observed(path: Path, observed: Observed) -> None:
    """Write a file of observations: `problem` (JSON), `kernel`, `<image>/y`, `/x0` and `/mask`."""
    arrays = {"problem": np.array(json.dumps(observed.problem))}
    if observed.kernel is not None:
        arrays["kernel"] = observed.kernel.astype(np.float32)
    for image, parts in observed.images.items():
        arrays |= {f"{image}/{part}": array for part, array in parts.items()}
    _write(path, arrays)


def read_observed(path: Path) -> Observed:
    """Read a file of `write_observed`.

    Raises InputError where it is missing, no npz, or an image lacks `y` or `x0`.
    """
    arrays = _read(path)
    images = _of_images(arrays)
    for image, parts in images.items():
        for part in ("y", "x0"):
            if part not in parts:
                raise InputError(f"{path}: no array '{image}/{part}'")
    if "problem" not in arrays:
        raise InputError(f"{path}: no array 'problem'; expected a file of observations")
    return Observed(json.loads(str(arrays["problem"])), arrays.get("kernel"), images)


def write_restored(path: Path, restored: Restored) -> None:
    """Write a file of restorations: `<image>/x`, `<image>/trace`, `stats` (JSON); or `failed`."""
    if restored.failed:
        return _write(path, {"failed": np.array(restored.failed)})
    arrays = {f"{image}/x": x for image, x in restored.images.items()}
    arrays |= {f"{image}/trace": trace for image, trace in restored.traces.items()}
    _write(path, {**arrays, "stats": np.array(json.dumps(restored.stats))})


def read_restored(path: Path) -> Restored:
    """Read a file of `write_restored`; what it lacks is empty.

    Raises InputError where it is missing, no npz, or its `stats` are no JSON.
    """
    arrays = _read(path)
    if "failed" in arrays:
        return Restored(failed=str(arrays["failed"]) or "no reason given")
    try:
        stats = json.loads(str(arrays["stats"])) if "stats" in arrays else {}
    except ValueError as error:
        raise InputError(f"{path}: 'stats' is not JSON ({error})") from None
    images = _of_images(arrays)
    return Restored(
        images={image: parts["x"] for image, parts in images.items() if "x" in parts},
        stats=stats,
        traces={image: parts["trace"] for image, parts in images.items() if "trace" in parts},
    )


def restorations_of(problem: str, paths: Iterable[Path]) -> dict[tuple[str, int | None], Path]:
    """(method, seed) to the file with its restorations of a problem, among the paths of a run.

    paths: folders `<method>/<seed>/<batch>` with a file per problem, and files
    `<problem>/<method>.npz`. The seed is None where nothing is trained (`all`).
    """
    found = {}
    for path in map(Path, paths):
        if path.suffix == ".npz":
            if path.parent.name == problem:
                found[path.stem, None] = path
        elif (file := path / f"{problem}.npz").exists():
            method, seed = path.parts[-3:-1]
            found[method, int(seed) if seed.isdecimal() else None] = file
    return found


def fault(x: np.ndarray | None, shape: tuple[int, ...]) -> str:
    """Why an array is no restoration of an image of that shape, in a line; "" where it is one."""
    if x is None:
        return "no such array"
    if x.dtype.kind != "f":
        return f"expected float in [0, 1] scale, got {x.dtype}"
    if x.shape != shape:
        return f"expected shape {shape}, got {x.shape}"
    return "" if np.isfinite(x).all() else "values that are not finite"
