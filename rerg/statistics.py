"""Means, regrets and intervals over seeds and images: the only place that computes them.

The rules, for every table, figure and claim:

- A mean is over all seeds and all images of the rows that it is given, each with the same weight:
  the images of several datasets are pooled. An empty cell among them makes the mean empty.
- A PSNR above `CAP` counts as `CAP` in a mean, so that one perfect image does not make it infinite;
  the control `truth` keeps its infinite PSNR.
- The regret of a method on a problem is the mean PSNR of the best RG of its procedure minus its
  own. A procedure is a solver; its RGs are those that the registry calls so, destroyed trainings
  left out. A maximum or mean of it is over the problems that all RGs of the procedure were run on.
- An interval is of a bootstrap on two levels: seeds are resampled, then images, the same for every
  method, and a method without seeds keeps its one row. The deviations of the resampled weights from
  equal ones are stretched on each level (`stretch`), as three seeds resampled plainly cover 75 % of
  the truths at 95 % nominal. It is symmetric about the estimate (`interval`): a worst case is a
  maximum, which resampling shifts upwards, so the quantiles of RGs that are equal would all lie
  above the truth, 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from rerg.labels import TRUTH, in_order, procedures

CAP = 100.0  # dB
RESAMPLES = 2000
TAIL = 0.025  # on each side of an interval
POOLED = "all"  # in the place of a dataset: the images of all of them


def stretch(count: int) -> float:
    """The factor by which a bootstrap of ``count`` values is too narrow, √(n / (n - 1)) t / z.

    t and z are the 97.5 % points of Student's distribution with n - 1 degrees of freedom and of the
    normal one, as Hesterberg expands intervals (The American Statistician, 2015).
    """
    tail = stdtrit(count - 1, 1 - TAIL) / ndtri(1 - TAIL)
    return float(math.sqrt(count / (count - 1)) * tail)


def resampled(count: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Weights (1 + resamples, count) of bootstrap means, stretched; the first row is plain.

    A single value has no resamples: its weight is 1 throughout.
    """
    plain = np.full((1, count), 1 / count)
    if count == 1:
        return np.ones((1 + resamples, 1))
    drawn = generator.multinomial(count, plain[0], size=resamples) / count
    return np.vstack([plain, plain + stretch(count) * (drawn - plain)])


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The symmetric 95 % interval of bootstrap samples, whose first is the plain estimate.

    estimate ± the 95 % quantile of |sample - estimate| (Hall, The Annals of Statistics, 1988);
    (nan, nan) where a sample is not finite.
    """
    if not np.isfinite(samples).all():
        return math.nan, math.nan
    half = np.quantile(np.abs(samples[1:] - samples[0]), 1 - 2 * TAIL)
    return float(samples[0] - half), float(samples[0] + half)


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds, of one value per seed; nan for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


class Evidence:
    """What rows of the table of scores say, as bootstrap samples (1 + 2000,), plain estimate first.

    Attributes: `seeds` and `images` ((dataset, image) pairs) of all rows; `methods` and `problems`
    in the order of the config; `procedures`, solver to its RGs; `missing`, the (method, problem)
    that lack rows of an image or a seed; `destroyed`, method to what is to be said of its destroyed
    trainings, "seed 0: reason".
    """

    def __init__(
        self,
        scores: pd.DataFrame,
        methods: Mapping[str, Mapping],
        problems: Sequence[str],
        seed: int = 0,
        resamples: int = RESAMPLES,
    ):
        """methods: name to its entry, with `solver` and `variant` where it has one; problems: their
        order; seed: of the resampling.
        """
        self.entries, self.seed, self.resamples, self.scores = methods, seed, resamples, scores
        self.methods = in_order(scores["method"], list(methods))
        self.problems = in_order(scores["problem"], problems)
        self.seeds = sorted(int(s) for s in scores["seed"].dropna().unique())
        pairs = list(zip(scores["dataset"], scores["image"], strict=True))
        self.images = sorted(set(pairs))
        # Where each row stands in a table (seeds, images); -1 for one without a seed.
        of_image = {pair: i for i, pair in enumerate(self.images)}
        of_seed = {s: i for i, s in enumerate(self.seeds)}
        self._image = np.array([of_image[pair] for pair in pairs])
        self._seed = np.array([-1 if pd.isna(s) else of_seed[int(s)] for s in scores["seed"]])
        self._present = np.ones(len(scores), bool)
        if "absent" in scores:
            self._present = ~scores["absent"].to_numpy(bool)
        self._rows = scores.groupby(["method", "problem"], sort=False).indices
        self._columns: dict[str, np.ndarray] = {}
        self.procedures = procedures(self.methods, methods)
        self.missing = {key for key in self._rows if not self._whole(*key)}
        self.destroyed = _destroyed(scores)
        self._cells: dict[tuple[str, str, str], np.ndarray] = {}
        self._means: dict[tuple[str, str, str], np.ndarray] = {}

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(self.seed)
        return tuple(
            resampled(max(1, len(x)), self.resamples, generator) for x in (self.seeds, self.images)
        )

    def ran(self, method: str, problem: str) -> bool:
        """Whether there are rows of a method on a problem."""
        return (method, problem) in self._rows

    def rows(self, method: str, problem: str) -> pd.DataFrame:
        """The rows of a method on a problem, of all seeds and images."""
        return self.scores.iloc[self._rows[method, problem]]

    def _whole(self, method: str, problem: str) -> bool:
        rows = self._rows[method, problem]
        seeds = len(self.seeds) if (self._seed[rows] >= 0).any() else 1
        return self._present[rows].sum() == seeds * len(self.images)

    def cells(self, method: str, problem: str, column: str) -> np.ndarray:
        """A column of a method on a problem, (seeds, images), one row for a method without seeds.

        nan where the cell is empty or the row is missing. Rows of which some have a seed and some
        none, which no run writes, are nan throughout.
        """
        key = (method, problem, column)
        if key not in self._cells:
            self._cells[key] = self._tabulated(*key)
        return self._cells[key]

    def _tabulated(self, method: str, problem: str, column: str) -> np.ndarray:
        if column not in self._columns:
            self._columns[column] = self.scores[column].to_numpy("float64", na_value=math.nan)
        rows = self._rows[method, problem]
        with_seed = self._seed[rows] >= 0
        lines = len(self.seeds) if with_seed.any() else 1
        table = np.full((lines, len(self.images)), math.nan)
        if not with_seed.any() or with_seed.all():
            table[np.maximum(self._seed[rows], 0), self._image[rows]] = self._columns[column][rows]
        return np.minimum(table, CAP) if column == "psnr" and method != TRUTH else table

    def average(self, cells: np.ndarray) -> np.ndarray:
        """Samples of the mean of cells (seeds, images)."""
        of_seeds, of_images = self._weights
        by_image = of_seeds @ cells if len(cells) == len(self.seeds) > 1 else cells
        return (by_image * of_images).sum(axis=1)

    def mean(self, method: str, problem: str, column: str = "psnr") -> np.ndarray:
        """Samples of the mean of a column; nan where a cell is empty."""
        key = (method, problem, column)
        if key not in self._means:
            cells = self.cells(*key)
            whole = np.full(
                1 + self.resamples, cells.mean()
            )  # infinite for the truth, nan for a gap
            self._means[key] = self.average(cells) if np.isfinite(cells).all() else whole
        return self._means[key]

    def procedure(self, method: str) -> list[str]:
        """The RGs that a method's regret compares it with: those with its solver."""
        return self.procedures.get(self.entries.get(method, {}).get("solver", ""), [])

    def compared(self, method: str) -> list[str]:
        """The problems that a method and all RGs of its procedure were run on."""
        needed = [method, *self.procedure(method)]
        return [p for p in self.problems if all(self.ran(m, p) for m in needed)]

    def best(self, method: str, problem: str) -> np.ndarray:
        """Samples of the mean PSNR of the best RG of a method's procedure; nan where one is."""
        sound = [rg for rg in self.procedure(method) if rg not in self.destroyed]
        if not sound:
            return np.full(1 + self.resamples, math.nan)
        return np.max([self.mean(rg, problem) for rg in sound], axis=0)

    def regret(self, method: str, problem: str) -> np.ndarray:
        """Samples of the regret in dB on a problem of `compared`."""
        return self.best(method, problem) - self.mean(method, problem)

    def over(
        self, problems: Sequence[str], quantity: Callable[[str], np.ndarray], worst: bool = False
    ) -> np.ndarray:
        """Samples of the mean, or the maximum, over problems of a quantity; nan without any."""
        if not problems:
            return np.full(1 + self.resamples, math.nan)
        return (np.max if worst else np.mean)([quantity(p) for p in problems], axis=0)

    def worst_regret(self, method: str) -> np.ndarray:
        """Samples of the largest regret over the problems of `compared`."""
        return self.over(self.compared(method), lambda p: self.regret(method, p), worst=True)

    def mean_regret(self, method: str) -> np.ndarray:
        """Samples of the mean regret over the problems of `compared`."""
        return self.over(self.compared(method), lambda p: self.regret(method, p))

    def interval(self, samples: np.ndarray) -> tuple[float, float]:
        """`interval` of samples; (nan, nan) for one image, which says nothing about others."""
        return interval(samples) if len(self.images) > 1 else (math.nan, math.nan)

    def by_seed(self) -> dict[int, "Evidence"]:
        """The plain numbers of each seed alone: its rows, and those of methods without seeds."""
        seed, parts = self.scores["seed"], {}
        for s in self.seeds:
            rows = self.scores[seed.isna() | (seed == s)]
            parts[s] = Evidence(rows, self.entries, self.problems, resamples=0)
            # A method that one seed destroyed is compared in none, as in the whole.
            parts[s].destroyed = self.destroyed
        return parts


def _destroyed(scores: pd.DataFrame) -> dict[str, str]:
    rows = scores[scores["destroyed"].notna()]
    lines: dict[str, list[str]] = {}
    for (method, seed), group in rows.groupby(["method", "seed"], sort=True, dropna=False):
        of_seed = "" if pd.isna(seed) else f"seed {int(seed)}: "
        lines.setdefault(method, []).append(f"{of_seed}{group['destroyed'].iloc[0]}")
    return {method: "; ".join(reasons) for method, reasons in lines.items()}
