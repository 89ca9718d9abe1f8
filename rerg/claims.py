"""Verdicts on claims: what the scores say, by a paired bootstrap over the images.

The interval is over images alone; it says nothing about another seed of the training.
"""

import html
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from rerg.expressions import QUANTITIES, Comparison, Operation, Quantity, quantities
from rerg.scores import interval, resamples
from rerg.tables import RGS, html_table

REPRODUCED, FAILED, UNDECIDED = "reproduced", "not reproduced", "undecided"
REGRETS = ("regret", "worst_regret", "mean_regret")


class Undecidable(Exception):
    """What the scores lack to judge a claim."""


class Evidence:
    """The quantities of `rerg.expressions`, for one claim, each as bootstrap samples (1 + 2000,).

    The first sample is the plain estimate. Images of all datasets are pooled. The problems are
    those that all methods of the claim were run on; a method or problem that is not in the scores,
    or an empty cell among what is needed, raises Undecidable.
    """

    def __init__(self, scores: pd.DataFrame, comparison: Comparison, seed: int):
        used = list(quantities(comparison))
        present = set(scores["method"])
        methods = {name for q in used for name in _arguments(q, "method")}
        if missing := sorted(methods - present):
            raise Undecidable(f"needs method {', '.join(missing)}, not in this run")
        self.rgs = [rg for rg in RGS if rg in present]
        if any(q.name in REGRETS for q in used):
            methods |= set(self.rgs)
        ran = scores.groupby("method")["problem"].agg(set)
        common = set.intersection(*(ran[name] for name in methods)) if methods else set()
        if missing := sorted({p for q in used for p in _arguments(q, "problem")} - common):
            raise Undecidable(f"needs problem {', '.join(missing)} by all its methods")
        if methods and not common:
            raise Undecidable(f"no problem was run by all of {', '.join(sorted(methods))}")
        self.problems = sorted(common)
        rows = scores[scores["method"].isin(methods) & scores["problem"].isin(common)]
        keys = [rows["method"], rows["problem"], rows["dataset"] + "/" + rows["image"]]
        self.rows = rows.set_index(pd.MultiIndex.from_arrays(keys)).sort_index()
        self.images = sorted(set(keys[2]))
        self.weights = resamples(max(1, len(self.images)), seed)

    def _cells(self, method: str, problem: str, column: str) -> np.ndarray:
        cells = self.rows.loc[(method, problem), column].reindex(self.images)
        if cells.isna().any():
            raise Undecidable(f"{column} of {method} on {problem} is empty for an image")
        return cells.to_numpy(dtype=np.float64)

    def psnr(self, method: str, problem: str) -> np.ndarray:
        return self.weights @ self._cells(method, problem, "psnr")

    def mean_psnr(self, method: str) -> np.ndarray:
        return np.mean([self.psnr(method, p) for p in self.problems], axis=0)

    def regret(self, method: str, problem: str) -> np.ndarray:
        best = np.max([self.psnr(rg, problem) for rg in self.rgs], axis=0)
        return best - self.psnr(method, problem)

    def worst_regret(self, method: str) -> np.ndarray:
        return np.max([self.regret(method, p) for p in self.problems], axis=0)

    def mean_regret(self, method: str) -> np.ndarray:
        return np.mean([self.regret(method, p) for p in self.problems], axis=0)

    def evaluations(self, method: str) -> np.ndarray:
        return np.mean(
            [self.weights @ self._cells(method, p, "network_evaluations") for p in self.problems],
            axis=0,
        )

    def gap(self, first: str, second: str) -> np.ndarray:
        total, count = 0.0, 0.0
        for p in self.problems:
            both = self._cells(first, p, "converged") * self._cells(second, p, "converged")
            apart = np.abs(self._cells(first, p, "psnr") - self._cells(second, p, "psnr"))
            total += self.weights @ (both * apart)
            count += self.weights @ both
        if count[0] == 0:
            raise Undecidable(f"{first} and {second} have no image where both converged")
        # A resample without such an image says nothing; it takes the plain estimate.
        plain = np.full_like(count, total[0] / count[0])
        return np.divide(total, count, out=plain, where=count > 0)

    def violations(self, method: str) -> np.ndarray:
        checked = sum(self._cells(method, p, "bound_iterates").sum() for p in self.problems)
        if checked == 0:
            raise Undecidable(f"{method} has no iterate with q < 1, where the bound can be checked")
        count = sum(self._cells(method, p, "bound_violations").sum() for p in self.problems)
        return np.full(len(self.weights), count)  # one violation refutes, whatever the resample


def _arguments(quantity: Quantity, kind: str) -> list[str]:
    kinds = QUANTITIES[quantity.name]
    return [name for name, k in zip(quantity.arguments, kinds, strict=True) if k == kind]


def _value(tree: Any, evidence: Evidence) -> np.ndarray:
    match tree:
        case Quantity(name, arguments):
            return getattr(evidence, name)(*arguments)
        case Operation("min" | "max" as name, operands):
            choose = np.minimum if name == "min" else np.maximum
            return reduce(choose, [_value(operand, evidence) for operand in operands])
        case Operation(function, operands):
            with np.errstate(divide="ignore", invalid="ignore"):
                return function(*(_value(operand, evidence) for operand in operands))
    return np.float64(tree)


def verdict(sign: str, low: float, high: float) -> str:
    """The verdict on `difference sign 0` for the interval [low, high] of the difference."""
    if sign in (">", ">="):
        low, high = -high, -low
    strict = sign in ("<", ">")
    if high < 0 or (high == 0 and not strict):
        return REPRODUCED
    if low > 0 or (low == 0 and strict):
        return FAILED
    return UNDECIDED


def decide(claim: dict, scores: pd.DataFrame, seed: int) -> dict:
    """Judge one claim of `rerg.expressions.read_claims`.

    Returns the claim with `verdict`, `reason` (why it is undecided for lack of something, else
    empty), `left`, `right`, `difference` and its 95 % `interval`, the number of `images` and the
    `problems`. Numbers that could not be had are None.
    """
    comparison = claim["comparison"]
    result = {key: value for key, value in claim.items() if key != "comparison"}
    result |= {"verdict": UNDECIDED, "reason": "", "left": None, "right": None, "difference": None}
    result |= {"interval": None, "images": None, "problems": []}
    try:
        evidence = Evidence(scores, comparison, seed)
        result |= {"images": len(evidence.images), "problems": evidence.problems}
        left, right = (
            np.broadcast_to(_value(side, evidence), len(evidence.weights))
            for side in (comparison.left, comparison.right)
        )
        difference = left - right
        if not np.isfinite(difference).all():
            raise Undecidable("the numbers are not finite")
        result |= {"left": _plain(left[0]), "right": _plain(right[0])}
        result |= {"difference": _plain(difference[0])}
        counts_only = all(q.name == "violations" for q in quantities(comparison))
        if len(evidence.images) < 2 and not counts_only:
            raise Undecidable("one image has no interval over images")
        low, high = interval(difference)
        result |= {"interval": [_plain(low), _plain(high)]}
        result["verdict"] = verdict(comparison.sign, low, high)
    except Undecidable as reason:
        result["reason"] = str(reason)
    return result


def _plain(value: float) -> float:
    return float(f"{value:.7g}")


def judge(claims: Sequence[dict], scores: pd.DataFrame, seed: int) -> dict:
    """Judge all claims; the content of claims.json."""
    return {
        "run": ", ".join(sorted(set(scores["run"]))),
        "datasets": sorted(set(scores["dataset"])),
        "seed": seed,
        "claims": [decide(claim, scores, seed) for claim in claims],
    }


HEAD = ["verdict", "claim", "source", "how it is read", "left", "right", "left − right", "images"]


def scorecard(result: dict) -> str:
    """claims.md: how many claims are reproduced, and a row per claim."""
    verdicts = [claim["verdict"] for claim in result["claims"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (REPRODUCED, FAILED, UNDECIDED))
    text = f"""# Claims, run {result["run"]}

{counts}. Test images of {", ".join(result["datasets"])}.

A verdict is that of the 95 % bootstrap interval of left − right over the images: wholly on the
claimed side, wholly on the other, or on both (undecided). It says nothing about other seeds of the
training. The words of a claim are its source's; how they are turned into numbers is ours.

"""
    rows = [HEAD, ["---"] * 4 + ["---:"] * 4]
    for claim in result["claims"]:
        name, *cells = _cells(claim)
        rows.append([f"**{name}**", *(cell.replace("|", r"\|") for cell in cells)])
    return text + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(result: dict) -> str:
    """The scorecard's rows as HTML, for Snakemake's report."""
    rows = [[html.escape(cell) for cell in _cells(claim)] for claim in result["claims"]]
    return html_table(HEAD, rows, levels=4)


def _cells(claim: dict) -> list[str]:
    reason = f" ({claim['reason']})" if claim["reason"] else ""
    return [
        claim["verdict"],
        claim["text"] + reason,
        claim["source"],
        f"{claim['reading']} {claim['expression']}",
        _number(claim["left"]),
        _number(claim["right"]),
        _difference(claim),
        "" if claim["images"] is None else str(claim["images"]),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _difference(claim: dict) -> str:
    if claim["interval"] is None:
        return _number(claim["difference"])
    low, high = (_number(end) for end in claim["interval"])
    return f"{_number(claim['difference'])} [{low}, {high}]"
