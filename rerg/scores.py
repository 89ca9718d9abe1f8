"""The one long table of scores: a row per (dataset, problem, method, seed, image).

Every table, figure and claim is computed from this table. What could not be measured is an empty
cell, and the log says why. A method that is not trained has one row for all seeds, whose `seed` is
empty.
"""

import csv
import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rerg.config import InputError
from rerg.files import Observed, Restored, fault, read_observed, read_restored
from rerg.labels import CONTROLS, INITIAL, TRUTH
from rerg.metrics import psnr
from rerg.statistics import POOLED

log = logging.getLogger(__name__)

KEYS = ("dataset", "problem", "method", "seed", "image")

# The type of every column, in the order of the file. Int64 and boolean hold empty cells.
COLUMNS = {
    "run": "str",
    "dataset": "str",
    "problem": "str",
    "method": "str",
    "seed": "Int64",
    "image": "str",
    "psnr": "float64",
    "ssim": "float64",
    "lpips": "float64",
    "iterations": "Int64",
    "residual": "float64",
    "converged": "boolean",
    "stopped": "str",
    "destroyed": "str",
    "seconds": "float64",
    "network_evaluations": "Int64",
    "peak_memory_mb": "float64",
    "device": "str",
    "precision": "str",
    "commit": "str",
    "error": "float64",
    "bound": "float64",
    "bound_r": "float64",
    "bound_q": "float64",
    "bound_violations": "Int64",
    "bound_iterates": "Int64",
    "trace": "str",
}
LATER = ("stopped", "destroyed", "precision")  # columns that older tables lack
STOPPED = ("converged", "stalled", "limit", "diverged")
# What only the restoration itself can know; the file's `stats` hand it over.
STATS = (
    "iterations",
    "residual",
    "converged",
    "stopped",
    "destroyed",
    "seconds",
    "network_evaluations",
    "peak_memory_mb",
    "device",
    "precision",
    "bound",
    "bound_r",
    "bound_q",
    "bound_violations",
    "bound_iterates",
)
NAMED = 5  # of many missing cells or images, those that a line names


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
    restorations: Mapping[tuple[str, int | None], Path],
    lpips: Callable[[np.ndarray, np.ndarray], float] | None,
    commit: str,
) -> pd.DataFrame:
    """Score all restorations of one problem on one dataset, and the two controls.

    ``truth`` maps the image's id to uint8 (H, W, 3) or float (3, H, W) in [0, 1]; ``restorations``
    maps the method and its seed, None for one without training, to its file. Where the
    observation's initial image is smaller than the truth (super-resolution of a size that the
    factor does not divide) the truth is cropped to it at the top left. ``lpips`` is the distance of
    two (3, H, W) images in [0, 1], or None: its cells are then empty.

    A restoration that is missing, not finite or of another shape gives a row with empty metrics and
    a line in the log. Raises InputError for a file that is no npz, for an observation without an
    image, and for statistics of another type than `COLUMNS`.
    """
    observed = read_observed(observations)
    initial = {image: _initial(observed, image, observations) for image in sorted(truth)}
    images = {
        image: _crop(_float(truth[image]), x, observations, image) for image, x in initial.items()
    }
    rows = [
        _row(INITIAL, None, image, x, images[image], lpips, f"{observations}: {image}")
        for image, x in initial.items()
    ]
    rows += [_row(TRUTH, None, image, x, x, lpips, image) for image, x in images.items()]
    for (method, seed), path in restorations.items():
        rows += _restored(method, seed, path, read_restored(path), images, lpips)

    table = pd.DataFrame(rows).assign(run=run, dataset=dataset, problem=problem, commit=commit)
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def images_of(
    image: str, truth: np.ndarray, observations: Path, restorations: Mapping[str, Path]
) -> dict[str, np.ndarray]:
    """One image by every method and the controls: method to (3, H, W), in [0, 1] scale.

    ``truth`` and ``observations`` are those of `score`; ``restorations`` maps the method to a file,
    of one seed. A method without a finite restoration is left out.
    """
    initial = _initial(read_observed(observations), image, observations)
    truth = _crop(_float(truth), initial, observations, image)
    images = {INITIAL: initial, TRUTH: truth}
    for method, path in restorations.items():
        restored = read_restored(path)
        x = restored.images.get(image)
        if reason := restored.failed or fault(x, truth.shape):
            log.warning("%s: %s: %s; it is not shown", path, image, reason)
        else:
            images[method] = x
    return images


def _initial(observed: Observed, image: str, path: Path) -> np.ndarray:
    if image not in observed.images:
        raise InputError(f"{path}: no observation of the image '{image}'")
    return observed.images[image]["x0"]


def _float(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image.transpose(2, 0, 1).astype(np.float64) / 255
    return image.astype(np.float64)


def _crop(truth: np.ndarray, initial: np.ndarray, path: Path, image: str) -> np.ndarray:
    height, width = initial.shape[1:]
    if height > truth.shape[1] or width > truth.shape[2]:
        raise InputError(
            f"{path}: the initial image of '{image}' is {height}x{width}, larger than the image,"
            f" {truth.shape[1]}x{truth.shape[2]}"
        )
    return truth[:, :height, :width]


def _restored(
    method: str,
    seed: int | None,
    path: Path,
    restored: Restored,
    images: Mapping[str, np.ndarray],
    lpips: Callable[[np.ndarray, np.ndarray], float] | None,
) -> list[dict]:
    if restored.failed:
        log.warning("%s: the method failed: %s", path, restored.failed)
        return [{"method": method, "seed": seed, "image": image} for image in images]
    rows = []
    for image, truth in images.items():
        where = f"{path}: {image}"
        row = _row(method, seed, image, restored.images.get(image), truth, lpips, where)
        row |= _stats(restored.stats, image, path)
        if image in restored.traces:
            row["trace"] = _trace(restored.traces[image])
        rows.append(row)
    return rows


def _row(
    method: str,
    seed: int | None,
    image: str,
    x: np.ndarray | None,
    truth: np.ndarray,
    lpips: Callable[[np.ndarray, np.ndarray], float] | None,
    where: str,
) -> dict:
    row: dict = {"method": method, "seed": seed, "image": image}
    if reason := fault(x, truth.shape):
        log.warning("%s: %s; metrics are empty", where, reason)
        return row
    x = x.astype(np.float64)
    row["psnr"] = psnr(x, truth)
    row["ssim"] = ssim(x, truth)
    row["lpips"] = None if lpips is None else lpips(x, truth)
    row["error"] = float(np.sqrt(np.mean((x - truth) ** 2)))
    return row


def _is_a(kind: str, value: object) -> bool:
    if kind == "str":
        return isinstance(value, str)
    if kind == "boolean" or isinstance(value, bool):
        return kind == "boolean" and isinstance(value, bool)
    return isinstance(value, int) or (
        isinstance(value, float) and (kind == "float64" or value.is_integer())
    )


def _stats(stats: Mapping, image: str, path: Path) -> dict:
    """The statistics of one image that are columns; an empty text is an empty cell."""
    found = stats.get(image, {}) if isinstance(stats, Mapping) else None
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: 'stats' is not a mapping of images to mappings")
    row = {key: found[key] for key in STATS if found.get(key) not in (None, "")}
    for key, value in row.items():
        kind = COLUMNS[key]
        if not _is_a(kind, value):
            raise InputError(f"{path}: stats of '{image}': {key}: {value!r} is not {kind}")
    if row.get("stopped", STOPPED[0]) not in STOPPED:
        raise InputError(
            f"{path}: stats of '{image}': stopped: expected one of {', '.join(STOPPED)},"
            f" got {row['stopped']}"
        )
    return row


def _trace(trace: np.ndarray) -> str:
    """[[network evaluations, PSNR in dB], ...] as JSON; a value that is not finite is null."""
    pairs = [
        [int(evaluations), round(float(quality), 4) if np.isfinite(quality) else None]
        for evaluations, _, quality in trace
    ]
    return json.dumps(pairs, separators=(",", ":"))


def read_trace(cell: str) -> np.ndarray:
    """The column ``trace`` of one row as an array (n, 2): network evaluations, PSNR in dB.

    The evaluations increase, n >= 1. Raises InputError for any other text.
    """
    try:
        trace = np.array(json.loads(cell), dtype=np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        trace = np.empty((0, 2))
    steps = trace[:, 0]
    if not (len(trace) and np.isfinite(steps).all() and (np.diff(steps) > 0).all()):
        raise InputError(f"expected [[evaluations, PSNR], ...] as JSON, got '{cell[:40]}'")
    return trace


def write_scores(table: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV; the same numbers give the same bytes (7 significant digits)."""
    columns = list(COLUMNS)
    text = table[columns].to_csv(index=False, float_format="%.7g", lineterminator="\n")
    Path(path).write_text(text, encoding="utf-8", newline="")


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table of scores with the types of ``COLUMNS``; older tables lack some, read as empty.

    Raises InputError, one line that names the file and the column: the separator is not a comma, a
    column or all rows are missing, a row or the file has broken off, a cell has another type, two
    rows have the same (dataset, problem, method, seed, image).
    """
    head, lines = _read_csv(Path(path))
    for column in COLUMNS:
        if column not in head and column not in LATER:
            raise InputError(f"{path}: column '{column}' is missing")
        if head.count(column) > 1:
            raise InputError(f"{path}: column '{column}' stands there twice")
    if not lines:
        raise InputError(f"{path}: the table has no rows")
    # Ids are text, whatever they look like: "50", "1e3" and "NA" too.
    numbers, rows = zip(*lines, strict=True)
    text = pd.DataFrame(rows, columns=head, index=list(numbers), dtype="str")
    text = text.reindex(columns=list(COLUMNS)).replace("", None)
    for column in ("dataset", "problem", "method", "image"):
        if text[column].isna().any():
            raise InputError(f"{path}: column '{column}' has an empty cell")
    table = pd.DataFrame({name: _typed(text[name], kind, path) for name, kind in COLUMNS.items()})
    twice = table.duplicated(list(KEYS))
    if twice.any():
        raise InputError(f"{path}: two rows for {_key(table.loc[twice.idxmax()])}")
    return table.reset_index(drop=True)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The head of a CSV file, and the number and the cells of each line."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV table ({error})") from None
    try:
        reader = csv.reader(io.StringIO(content, newline=""), strict=True)
        head = next(reader, [])
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV table ({error})") from None
    if not head:
        raise InputError(f"{path}: not a CSV table (it is empty)")
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(head) == 1 and sign in head[0]:
            raise InputError(f"{path}: the cells are separated by {name}; expected commas")
    if len(head) == 1:
        raise InputError(f"{path}: expected cells separated by commas, got '{head[0][:40]}'")
    for number, row in lines:
        if len(row) != len(head):
            raise InputError(
                f"{path}: line {number}: expected {len(head)} cells, as in the head, got {len(row)}"
            )
    if not content.endswith("\n"):
        raise InputError(f"{path}: the last line has no end; the file seems to have broken off")
    return head, lines


def _typed(column: pd.Series, kind: str, path: Path) -> pd.Series:
    """A column of text with its type; the index holds the numbers of the lines."""
    wrong = pd.Series(False, index=column.index)
    typed, expected = column, kind
    if kind == "boolean":
        typed = column.map({"True": True, "False": False}).astype("boolean")
        wrong = typed.isna()
    elif kind in ("Int64", "float64"):
        typed = pd.to_numeric(column, errors="coerce")
        typed = typed.where(typed != -math.inf)
        if kind == "Int64":  # seeds and counts
            typed = typed.where((typed % 1 == 0) & (typed >= 0) & (typed < 2**53))
        typed = typed.astype(kind)
        wrong = typed.isna()
    elif column.name == "stopped":
        wrong, expected = ~column.isin(STOPPED), f"one of {', '.join(STOPPED)}"
    elif column.name == "trace":
        wrong, expected = ~column.map(_is_trace, na_action="ignore").eq(True), "a trace"
    wrong &= column.notna()
    if wrong.any():
        cell = column[wrong.idxmax()]
        shown = cell if len(cell) <= 40 else f"{cell[:40]}…"
        raise InputError(
            f"{path}: column '{column.name}', line {wrong.idxmax()}: '{shown}' is not {expected}"
        )
    return typed


def _is_trace(cell: str) -> bool:
    try:
        read_trace(cell)
    except InputError:
        return False
    return True


def _key(row: pd.Series) -> str:
    seed = "" if pd.isna(row["seed"]) else f", seed {row['seed']}"
    return f"{row['dataset']}, {row['problem']}, {row['method']}{seed}, {row['image']}"


def collect(paths: Iterable[Path]) -> pd.DataFrame:
    """Join the parts of the table and sort the rows by (dataset, problem, method, seed, image)."""
    parts = [read_scores(path) for path in paths]
    if not parts:
        raise InputError("no part of the table of scores: the run has no problem or no test set")
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(list(KEYS), ignore_index=True)


# What a run's config says of its table, as plain values:
#   datasets  the test sets
#   images    dataset to the ids of its images, none where they are not known
#   seeds     of the trainings
#   methods   name to {problems: those that it restores, seeded: whether it has a row per seed}
Expected = Mapping


def _without_needless_seeds(table: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """Rows of methods that have no seed, without the one that older tables give to every row."""
    of_method = table.groupby("method")["seed"]
    alone = (of_method.nunique() == 1) & (of_method.count() == of_method.size())
    seeded = [name for name, entry in expected["methods"].items() if entry["seeded"]]
    one = alone.index[alone].difference(seeded)
    return table.assign(seed=table["seed"].mask(table["method"].isin(one)))


def _expected_keys(table: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """The keys of all rows that a run should have; of unknown images, those that the table has."""
    images = dict(table.groupby("dataset")["image"].unique())
    images |= {name: ids for name, ids in expected["images"].items() if ids}
    problems = list(dict.fromkeys(p for e in expected["methods"].values() for p in e["problems"]))
    entries = {c: {"problems": problems, "seeded": False} for c in CONTROLS} | dict(
        expected["methods"]
    )
    rows = [
        (dataset, problem, method, seed, image)
        for dataset in expected["datasets"]
        for method, entry in entries.items()
        for problem in entry["problems"]
        for seed in (expected["seeds"] if entry["seeded"] else [None])
        for image in images.get(dataset, [])
    ]
    keys = pd.DataFrame(rows, columns=list(KEYS))
    return keys.astype({key: COLUMNS[key] for key in KEYS})


def complete(table: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """The rows that the config expects, those that the table lacks with empty cells.

    Rows of methods, problems, datasets, images and seeds that the config does not know are left
    out. The column `absent` tells the rows that were added; a mean over one of them is empty, so
    nothing is computed from the rows that survived. `compare` says what was added and left out.
    Raises InputError where no row is left, or none of a dataset or of an image: all would be empty.
    """
    known = _without_needless_seeds(table, expected)
    keys = _expected_keys(known[known["dataset"].isin(expected["datasets"])], expected)
    merged = keys.merge(known, on=list(KEYS), how="left", indicator=True)
    merged = merged.assign(absent=merged.pop("_merge") == "left_only")
    if merged["absent"].all():
        raise InputError(
            f"the scores have no row of this run: they are of {_names(table['dataset'])} on"
            f" {_names(table['problem'])}, the config is of {', '.join(expected['datasets'])};"
            " name the config that made them by --configfile"
        )
    if gone := [name for name in expected["datasets"] if name not in set(known["dataset"])]:
        raise InputError(
            f"no row of {', '.join(gone)}; expected all test sets of the config, or those that the"
            " scores have as its datasets.test"
        )
    lost = merged.groupby(["dataset", "image"])["absent"].all()
    if lost.any():
        raise InputError(
            f"no row of {_some([f'{image} of {name}' for name, image in lost.index[lost]])}, on any"
            " problem; expected all images of config/datasets.yaml, or of the run's provenance"
        )
    return merged[[*COLUMNS, "absent"]]


def of_dataset(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The rows of one dataset, or of all of them for `rerg.statistics.POOLED`."""
    return table if dataset == POOLED else table[table["dataset"] == dataset]


def compare(
    table: pd.DataFrame, expected: Expected, provenance: Mapping | None = None, sha256: str = ""
) -> list[str]:
    """What does not fit between a table, the config and the provenance beside it, in lines.

    Rows that are missing, names and seeds that the config does not know, rows of two runs; and,
    where the provenance describes its table, another number of rows than it says or another file
    (``sha256`` is that of the table's file). Empty where all fits.
    """
    lines = []
    known = _without_needless_seeds(table, expected)
    keys = _expected_keys(known, expected)
    for column, plural, names in (
        ("dataset", "datasets", expected["datasets"]),
        ("problem", "problems", list(keys["problem"])),
        ("method", "methods", [*expected["methods"], *CONTROLS]),
        ("seed", "seeds", expected["seeds"]),
    ):
        present = known[column].dropna()
        if len(unknown := present[~present.isin(names)]):
            lines.append(f"{plural} that the config lacks, left out: {_names(unknown)}")
        known = known[known[column].isna() | known[column].isin(names)]
    merged = keys.merge(known[list(KEYS)], on=list(KEYS), how="outer", indicator=True)
    missing, further = (merged[merged["_merge"] == side] for side in ("left_only", "right_only"))
    if len(missing):
        lines.append(f"{_count(missing)} missing, their cells are empty: {_cells(missing)}")
    if len(further):
        lines.append(f"{_count(further)} that the config does not expect: {_cells(further)}")
    runs = table["run"].fillna("without a name").value_counts()
    if len(runs) > 1:
        lines.append("rows of several runs: " + ", ".join(f"{r} ({n})" for r, n in runs.items()))
    about = (provenance or {}).get("scores", {})
    if about.get("rows", len(table)) != len(table):
        lines.append(f"{_count(table)}, where the provenance says {about['rows']}")
    elif about.get("sha256", sha256) != sha256:
        lines.append("not the file that the provenance describes: it was changed since")
    return lines


def _names(values: Iterable) -> str:
    return ", ".join(sorted({str(value) for value in values}))


def _count(rows: pd.DataFrame) -> str:
    return "1 row" if len(rows) == 1 else f"{len(rows)} rows"


def _cells(rows: pd.DataFrame) -> str:
    groups = rows.groupby(["method", "problem", "dataset", "seed"], dropna=False, sort=False)
    cells = [
        f"{method} on {problem} of {dataset}{'' if pd.isna(seed) else f', seed {seed}'}"
        f" ({len(images) if len(images) > 1 else images.iloc[0]})"
        for (method, problem, dataset, seed), images in groups["image"]
    ]
    return _some(cells)


def _some(parts: list[str]) -> str:
    more = f", and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return "; ".join(parts[:NAMED]) + more


def load_scores(path: Path, expected: Expected, provenance: Path | None = None) -> pd.DataFrame:
    """`read_scores`, held against config and provenance: the `complete` table.

    Images that the config does not know are those of the files that the provenance lists. Each line
    of `compare` goes to the log. Raises InputError as `read_scores` and `complete` do, and for a
    provenance that is no JSON.
    """
    table, about = read_scores(path), None
    if provenance is not None:
        try:
            about = json.loads(Path(provenance).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{provenance}: not a provenance ({error})") from None
    data = (about or {}).get("data", {})
    images = {
        name: ids or sorted({Path(file).stem for file in data.get(name, [])})
        for name, ids in expected["images"].items()
    }
    expected = {**expected, "images": images}
    try:
        whole = complete(table, expected)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for line in compare(table, expected, about, sha256):
        log.warning("%s: %s", path, line)
    return whole
