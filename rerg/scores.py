"""The one long table of scores: a row per (dataset, problem, method, image).

Every table, figure and claim is computed from this table. What could not be measured is an empty
cell, and the log says why.
"""

import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rerg.config import InputError

log = logging.getLogger(__name__)

INITIAL, TRUTH = CONTROLS = ("initial", "truth")
KEYS = ("dataset", "problem", "method", "image")

# The type of every column, in the order of the file. Int64 and boolean hold empty cells.
COLUMNS = {
    "run": "str",
    "dataset": "str",
    "problem": "str",
    "method": "str",
    "image": "str",
    "psnr": "float64",
    "ssim": "float64",
    "lpips": "float64",
    "iterations": "Int64",
    "residual": "float64",
    "converged": "boolean",
    "seconds": "float64",
    "network_evaluations": "Int64",
    "peak_memory_mb": "float64",
    "device": "str",
    "seed": "Int64",
    "commit": "str",
    "error": "float64",
    "bound": "float64",
    "bound_r": "float64",
    "bound_q": "float64",
    "bound_violations": "Int64",
    "bound_iterates": "Int64",
    "trace": "str",
}
# What only the restoration itself can know; the file's `stats` hand it over.
STATS = (
    "iterations",
    "residual",
    "converged",
    "seconds",
    "network_evaluations",
    "peak_memory_mb",
    "device",
    "bound",
    "bound_r",
    "bound_q",
    "bound_violations",
    "bound_iterates",
)
RESAMPLES = 2000


def psnr(x: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE), peak 1.

    ``x`` and ``truth`` are RGB images (3, H, W) in [0, 1] scale; no border is cropped and nothing
    is clipped. Infinite for equal images.
    """
    mse = np.mean((x.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return float("inf") if mse == 0 else float(-10 * np.log10(mse))


def ssim(x: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity as Wang et al. (2004) define it, mean over the RGB channels.

    Gaussian window of standard deviation 1.5, population covariance, data range 1, by scikit-image.
    ``x`` and ``truth`` are (3, H, W) with H, W >= 11.
    """
    from skimage.metrics import structural_similarity  # collecting and reading need pandas only

    return float(
        structural_similarity(
            x.astype(np.float64),
            truth.astype(np.float64),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
    )


def score(
    *,
    run: str,
    dataset: str,
    problem: str,
    truth: Mapping[str, np.ndarray],
    observations: Path,
    restorations: Mapping[str, Path],
    lpips: Callable[[np.ndarray, np.ndarray], float] | None,
    seed: int,
    commit: str,
) -> pd.DataFrame:
    """Score all restorations of one problem on one dataset, and the two controls.

    ``truth`` maps the image's id to uint8 (H, W, 3) or float (3, H, W) in [0, 1];
    ``restorations`` maps the method to its file. Where the observation's initial image is smaller
    than the truth (super-resolution of a size that the factor does not divide) the truth is cropped
    to it at the top left. ``lpips`` is the distance of two (3, H, W) images in [0, 1], or None: its
    cells are then empty.

    A restoration that is missing, not finite or of another shape gives a row with empty metrics and
    a line in the log. Raises InputError for a file that is no npz, and for an observation without
    an image.
    """
    images, initial = {}, {}
    with _open(observations) as file:
        for image in sorted(truth):
            if f"{image}.x0" not in file:
                raise InputError(f"{observations}: no array '{image}.x0', the initial image")
            initial[image] = file[f"{image}.x0"]
            images[image] = _crop(_float(truth[image]), initial[image], observations, image)

    rows = [
        _row(INITIAL, image, x, images[image], lpips, f"{observations}: {image}")
        for image, x in initial.items()
    ]
    rows += [_row(TRUTH, image, x, x, lpips, image) for image, x in images.items()]
    for method, path in restorations.items():
        with _open(path) as file:
            rows += _restored(method, path, file, images, lpips)

    table = pd.DataFrame(rows).assign(
        run=run, dataset=dataset, problem=problem, seed=seed, commit=commit
    )
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def images_of(
    image: str, truth: np.ndarray, observations: Path, restorations: Mapping[str, Path]
) -> dict[str, np.ndarray]:
    """One image by every method and the controls: method to (3, H, W), in [0, 1] scale.

    The arguments are those of `score`. A method without a finite restoration is left out.
    """
    with _open(observations) as file:
        if f"{image}.x0" not in file:
            raise InputError(f"{observations}: no array '{image}.x0', the initial image")
        initial = file[f"{image}.x0"]
    truth = _crop(_float(truth), initial, observations, image)
    images = {INITIAL: initial, TRUTH: truth}
    for method, path in restorations.items():
        with _open(path) as file:
            x = file.get(image)
        if fault := _fault(x, truth.shape):
            log.warning("%s: %s: %s; it is not shown", path, image, fault)
        else:
            images[method] = x
    return images


def _open(path: Path) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: expected an npz file without pickles ({error})") from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise InputError(f"{path}: expected an npz file, found a single array")
    return file


def _float(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image.transpose(2, 0, 1).astype(np.float64) / 255
    return image.astype(np.float64)


def _crop(truth: np.ndarray, initial: np.ndarray, path: Path, image: str) -> np.ndarray:
    height, width = initial.shape[1:]
    if height > truth.shape[1] or width > truth.shape[2]:
        raise InputError(
            f"{path}: '{image}.x0' is {height}x{width}, larger than the image,"
            f" {truth.shape[1]}x{truth.shape[2]}"
        )
    return truth[:, :height, :width]


def _restored(
    method: str,
    path: Path,
    file: Mapping[str, np.ndarray],
    images: Mapping[str, np.ndarray],
    lpips: Callable[[np.ndarray, np.ndarray], float] | None,
) -> list[dict]:
    if "failed" in file:
        log.warning("%s: the method failed: %s", path, file["failed"])
        return [{"method": method, "image": image} for image in images]
    try:
        stats = json.loads(str(file["stats"])) if "stats" in file else {}
    except ValueError as error:
        raise InputError(f"{path}: 'stats' is not JSON ({error})") from None

    rows = []
    for image, truth in images.items():
        where = f"{path}: {image}"
        row = _row(method, image, file.get(image), truth, lpips, where)
        row |= {key: value for key, value in stats.get(image, {}).items() if key in STATS}
        if f"{image}.trace" in file:
            row["trace"] = _trace(file[f"{image}.trace"])
        rows.append(row)
    return rows


def _row(
    method: str,
    image: str,
    x: np.ndarray | None,
    truth: np.ndarray,
    lpips: Callable[[np.ndarray, np.ndarray], float] | None,
    where: str,
) -> dict:
    row: dict = {"method": method, "image": image}
    if fault := _fault(x, truth.shape):
        log.warning("%s: %s; metrics are empty", where, fault)
        return row
    x = x.astype(np.float64)
    row["psnr"] = psnr(x, truth)
    row["ssim"] = ssim(x, truth)
    row["lpips"] = None if lpips is None else lpips(x, truth)
    row["error"] = float(np.sqrt(np.mean((x - truth) ** 2)))
    return row


def _fault(x: np.ndarray | None, shape: tuple[int, ...]) -> str:
    """Why a restoration cannot be scored; empty where it can."""
    if x is None:
        return "no such array"
    if x.dtype.kind != "f":
        return f"expected float in [0, 1] scale, found {x.dtype}"
    if x.shape != shape:
        return f"expected shape {shape}, found {x.shape}"
    return "" if np.isfinite(x).all() else "values that are not finite"


def _trace(trace: np.ndarray) -> str:
    """[[network evaluations, PSNR in dB], ...] as JSON; a value that is not finite is null."""
    pairs = [
        [int(evaluations), round(float(quality), 4) if np.isfinite(quality) else None]
        for evaluations, _, quality in trace
    ]
    return json.dumps(pairs, separators=(",", ":"))


def read_trace(cell: str) -> np.ndarray:
    """The column ``trace`` of one row as an array (n, 2): network evaluations, PSNR in dB."""
    return np.array(json.loads(cell), dtype=np.float64).reshape(-1, 2)


def write_scores(table: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV; the same numbers give the same bytes (7 significant digits)."""
    table.to_csv(path, index=False, float_format="%.7g", lineterminator="\n")


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table of scores with the types of ``COLUMNS``.

    Raises InputError, one line that names the file and the column: a column or all rows are
    missing, a cell has another type, two rows have the same (dataset, problem, method, image).
    """
    try:
        text = pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV table ({str(error).strip()})") from None
    for column in COLUMNS:
        if column not in text:
            raise InputError(f"{path}: column '{column}' is missing")
    if text.empty:
        raise InputError(f"{path}: the table has no rows")
    for column in KEYS:
        if text[column].isna().any():
            raise InputError(f"{path}: column '{column}' has an empty cell")
    twice = text.duplicated(list(KEYS))
    if twice.any():
        key = ", ".join(text.loc[twice.idxmax(), list(KEYS)])
        raise InputError(f"{path}: two rows for {key}")
    return pd.DataFrame({name: _typed(text[name], kind, path) for name, kind in COLUMNS.items()})


def _typed(column: pd.Series, kind: str, path: Path) -> pd.Series:
    if kind == "str":
        return column
    if kind == "boolean":
        typed = column.map({"True": True, "False": False}).astype("boolean")
    else:
        typed = pd.to_numeric(column, errors="coerce")
        if kind == "Int64":
            typed = typed.where(typed % 1 == 0)
        typed = typed.astype(kind)
    wrong = column.notna() & typed.isna()
    if wrong.any():
        line = wrong.idxmax() + 2  # the header is line 1
        raise InputError(
            f"{path}: column '{column.name}', line {line}: '{column[wrong.idxmax()]}' is not {kind}"
        )
    return typed


def collect(paths: Iterable[Path]) -> pd.DataFrame:
    """Join the parts of the table and sort the rows by (dataset, problem, method, image)."""
    parts = [read_scores(path) for path in paths]
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(list(KEYS), ignore_index=True)


def resamples(count: int, seed: int) -> np.ndarray:
    """Weights (1 + 2000, count) of bootstrap means over ``count`` images.

    A row times the images' values is a mean; the first row is the plain mean. The same seed gives
    the same images to every method: the comparison is paired.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    return np.vstack([np.full((1, count), 1 / count), drawn])


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap samples, whose first is the plain estimate.

    (nan, nan) where a sample is not finite.
    """
    if not np.isfinite(samples).all():
        return float("nan"), float("nan")
    low, high = np.quantile(samples[1:], [0.025, 0.975])
    return float(low), float(high)


def bootstrap_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of ``values`` (n,), one value per image.

    (nan, nan) for fewer than two images, which say nothing about other images, or where a value is
    not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    return interval(resamples(len(values), seed) @ values)
