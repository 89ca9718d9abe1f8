"""Verdicts on claims: what the scores say, by the intervals of `rerg.statistics`."""

import html
import textwrap
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from rerg.expressions import QUANTITIES, Comparison, Operation, Quantity, quantities
from rerg.labels import INITIAL, in_order
from rerg.statistics import POOLED, RESAMPLES, Evidence, interval
from rerg.tables import html_table

REPRODUCED, FAILED, UNDECIDED = "reproduced", "not reproduced", "undecided"
REGRETS = ("regret", "worst_regret", "mean_regret")
ACROSS = ("worst_regret", "mean_regret", "mean_psnr")  # speak of the problems at large
ALIKE = 0.005  # dB: what the tables print as 0.00
COLUMNS = 100  # of a terminal


class Undecidable(Exception):
    """What the scores lack to judge a claim."""


class Reading:
    """The quantities of one claim, each as bootstrap samples (1 + 2000,), plain estimate first.

    Attributes: `evidence`; `methods` that the claim names; `problems` that all of them were run on,
    and, where it reads a regret, all RGs of their procedures. A method or problem that is not in
    the scores, a destroyed training among them, too few problems, and regrets among reconstructions
    that are none raise Undecidable.
    """

    def __init__(self, evidence: Evidence, comparison: Comparison):
        self.evidence = evidence
        used = list(quantities(comparison))
        named = {name for q in used for name in _arguments(q, "method")}
        if missing := sorted(named - set(evidence.methods)):
            raise Undecidable(f"needs {', '.join(missing)}, not in this run")
        self.methods = in_order(named, evidence.methods)
        regretting = _regretting(used)
        for method in in_order(regretting, evidence.methods):
            if not evidence.procedure(method):
                raise Undecidable(f"{method} has no other RG with its solver in this run")
        rivals = {rg for method in regretting for rg in evidence.procedure(method)}
        needed = in_order(named | rivals, evidence.methods)
        for method in needed:
            if method in evidence.destroyed:
                raise Undecidable(
                    f"{method} was destroyed in training, {evidence.destroyed[method]}"
                )
        self.problems = [p for p in evidence.problems if all(evidence.ran(m, p) for m in needed)]
        if lacking := sorted(
            {p for q in used for p in _arguments(q, "problem")} - {*self.problems}
        ):
            raise Undecidable(f"needs {', '.join(lacking)} by {', '.join(needed)}")
        if named and not self.problems:
            raise Undecidable(f"no problem was run by all of {', '.join(needed)}")
        self._require_enough(used)
        for method in in_order(regretting, evidence.methods):
            self._require_reconstructions(method)

    def _require_enough(self, used: Sequence[Quantity]) -> None:
        """A maximum or mean over few of the problems does not speak of them at large."""
        count = len(self.evidence.problems)
        if any(q.name in ACROSS for q in used) and len(self.problems) < max(2, count / 2):
            raise Undecidable(
                f"needs at least half of the run's problems, and two;"
                f" all its methods have {len(self.problems)} of {count}"
            )

    def _require_reconstructions(self, method: str) -> None:
        """Regrets compare reconstructions that differ, the best of them above the initial image."""
        evidence, rgs = self.evidence, self.evidence.procedure(method)
        problems = evidence.compared(method)
        for problem in problems:
            for rg in [INITIAL, *rgs]:
                self.cells(rg, problem, "psnr")
            if evidence.best(method, problem)[0] <= evidence.mean(INITIAL, problem)[0]:
                raise Undecidable(f"no RG is better than the initial image on {problem}")
        if max(evidence.regret(rg, p)[0] for rg in rgs for p in problems) < ALIKE:
            raise Undecidable(f"{', '.join(rgs)} restore alike on every problem")

    def below_initial(self, method: str) -> list[str]:
        """The problems where a method is no better than the initial image."""
        mean = self.evidence.mean
        return [
            p for p in self.evidence.compared(method) if mean(method, p)[0] <= mean(INITIAL, p)[0]
        ]

    def cells(self, method: str, problem: str, column: str) -> np.ndarray:
        """A column, (seeds, images); raises Undecidable where a cell is empty."""
        if not self.evidence.ran(method, problem):
            raise Undecidable(f"needs {method} on {problem}")
        cells = self.evidence.cells(method, problem, column)
        if np.isnan(cells).any():
            raise Undecidable(f"{column} of {method} on {problem} is empty for an image")
        return cells

    def mean(self, method: str, problem: str, column: str) -> np.ndarray:
        self.cells(method, problem, column)
        return self.evidence.mean(method, problem, column)

    def psnr(self, method: str, problem: str) -> np.ndarray:
        return self.mean(method, problem, "psnr")

    def mean_psnr(self, method: str) -> np.ndarray:
        return self.evidence.over(self.problems, lambda p: self.psnr(method, p))

    def regret(self, method: str, problem: str) -> np.ndarray:
        self.cells(method, problem, "psnr")
        return self.evidence.regret(method, problem)

    def worst_regret(self, method: str) -> np.ndarray:
        return self._of_all(self.evidence.worst_regret, method)

    def mean_regret(self, method: str) -> np.ndarray:
        return self._of_all(self.evidence.mean_regret, method)

    def _of_all(self, quantity: Callable[[str], np.ndarray], method: str) -> np.ndarray:
        for problem in self.evidence.compared(method):
            self.cells(method, problem, "psnr")
        return quantity(method)

    def evaluations(self, method: str) -> np.ndarray:
        return self.evidence.over(
            self.problems, lambda p: self.mean(method, p, "network_evaluations")
        )

    def gap(self, first: str, second: str) -> np.ndarray:
        pairs = []
        for p in self.problems:
            both = self.cells(first, p, "converged") * self.cells(second, p, "converged")
            apart = self.cells(first, p, "psnr") - self.cells(second, p, "psnr")
            pairs.append((both, np.abs(apart)))
        count = sum(both.mean() for both, _ in pairs)
        if count == 0:
            raise Undecidable(f"{first} and {second} have no image where both converged")
        plain = sum((both * apart).mean() for both, apart in pairs) / count
        # The ratio of two means to first order, as that of stretched weights has poles.
        parts = [self.evidence.average(both * (apart - plain)) for both, apart in pairs]
        return plain + np.sum(parts, axis=0) / count

    def violations(self, method: str) -> np.ndarray:
        def total(column: str) -> float:
            return sum(self.cells(method, p, column).sum() for p in self.problems)

        if total("bound_iterates") == 0:
            raise Undecidable(f"{method} has no iterate with q < 1, where the bound can be checked")
        return np.full(1 + RESAMPLES, total("bound_violations"))  # one refutes, however resampled


def _arguments(quantity: Quantity, kind: str) -> list[str]:
    kinds = QUANTITIES[quantity.name]
    return [name for name, k in zip(quantity.arguments, kinds, strict=True) if k == kind]


def _regretting(used: Sequence[Quantity]) -> set[str]:
    return {q.arguments[0] for q in used if q.name in REGRETS}


def _value(tree: Any, reading: Reading) -> np.ndarray:
    match tree:
        case Quantity(name, arguments):
            return getattr(reading, name)(*arguments)
        case Operation("min" | "max" as name, operands):
            choose = np.minimum if name == "min" else np.maximum
            return reduce(choose, [_value(operand, reading) for operand in operands])
        case Operation(function, operands):
            with np.errstate(divide="ignore", invalid="ignore"):
                return function(*(_value(operand, reading) for operand in operands))
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


def decide(claim: dict, evidence: Evidence) -> dict:
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
        reading = Reading(evidence, comparison)
        result |= {"images": len(evidence.images), "problems": reading.problems}
        left, right = (
            np.broadcast_to(_value(side, reading), 1 + RESAMPLES)
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
        found = verdict(comparison.sign, low, high)
        if found == REPRODUCED:
            _require_a_winner(comparison, reading)
        result["verdict"] = found
    except Undecidable as reason:
        result["reason"] = str(reason)
    return result


def _require_a_winner(comparison: Comparison, reading: Reading) -> None:
    """What is no better than the initial image does not win by a small regret."""
    smaller = comparison.left if comparison.sign in ("<", "<=") else comparison.right
    for method in sorted(_regretting(list(quantities(smaller)))):
        if problems := reading.below_initial(method):
            raise Undecidable(
                f"{method} is no better than the initial image on {', '.join(problems)}"
            )


def _plain(value: float) -> float:
    return float(f"{value:.7g}")


def judge(claims: Sequence[dict], evidence: Evidence) -> dict:
    """Judge all claims; the content of claims.json."""
    return {
        "run": ", ".join(sorted(set(evidence.scores["run"].dropna()))),
        "datasets": sorted({dataset for dataset, _ in evidence.images}),
        "seeds": evidence.seeds,
        "problems": evidence.problems,
        "claims": [decide(claim, evidence) for claim in claims],
    }


HEAD = ["claim", "verdict", "left", "right", "left − right, 95 %"]
TEXTS = 2  # of its columns hold text, the others numbers


def scorecard(result: dict) -> str:
    """claims.md, in 100 columns: whose seeds, how many claims are reproduced, and each claim."""
    rows = [[claim["id"], claim["verdict"], *_numbers(claim)] for claim in result["claims"]]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < TEXTS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |\n"

    rule = ["-" * w for w in widths[:TEXTS]] + ["-" * (w - 1) + ":" for w in widths[TEXTS:]]
    text = f"# Claims, run {result['run']}: {_seeds(result)}\n\n{_summary(result)}\n"
    text += line(HEAD) + line(rule) + "".join(map(line, rows))
    return text + "".join(_details(claim, len(result["problems"])) for claim in result["claims"])


def _seeds(result: dict) -> str:
    if len(result["seeds"]) > 1:
        return "seeds " + ", ".join(map(str, result["seeds"]))
    of_seed = f"one seed ({result['seeds'][0]})" if result["seeds"] else "no seed"
    return f"{of_seed}, and they speak of that one alone"


def _summary(result: dict) -> str:
    verdicts = [claim["verdict"] for claim in result["claims"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (REPRODUCED, FAILED, UNDECIDED))
    datasets = result["datasets"]
    pooled = ", pooled" if len(datasets) > 1 else ""
    folder = POOLED if len(datasets) > 1 else "".join(datasets)
    drawn = "seeds and images" if len(result["seeds"]) > 1 else "images"
    about = (
        f"{counts}. Test images of {', '.join(datasets)}{pooled}; the numbers are those of"
        f" tables/{folder}. A verdict is that of the 95 % bootstrap interval of left − right over"
        f" {drawn}: wholly on the claimed side, wholly on the other, or on both (undecided). The"
        " words of a claim are its source's; how they are turned into numbers is ours."
    )
    return _wrapped(about)


def _details(claim: dict, problems: int) -> str:
    text = f"\n## {claim['id']}: {claim['verdict']}\n\n"
    if claim["reason"]:
        text += _wrapped(f"Undecided for a reason: {claim['reason']}.") + "\n"
    text += _wrapped(f"{claim['text']} ({claim['source']})") + "\n"
    text += _wrapped(f"Read as: {claim['reading']}") + "\n"
    text += textwrap.indent(_wrapped(claim["expression"], COLUMNS - 4), " " * 4)
    if claim["images"] is not None:
        some = f"On {len(claim['problems'])} of {problems} problems: {', '.join(claim['problems'])}"
        whole = len(claim["problems"]) == problems
        on = f"On all {problems} problems" if whole else some
        text += "\n" + _wrapped(f"{on}; {claim['images']} images.")
    return text


def _wrapped(text: str, width: int = COLUMNS) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False) + "\n"


def page(result: dict) -> str:
    """The scorecard as HTML, for Snakemake's report."""
    head = ["verdict", "claim", "source", "how it is read", *HEAD[2:]]
    rows = []
    for claim in result["claims"]:
        reason = f" ({claim['reason']})" if claim["reason"] else ""
        reading = f"{claim['reading']} {claim['expression']}"
        row = [claim["verdict"], claim["text"] + reason, claim["source"], reading]
        row += _numbers(claim)
        rows.append([html.escape(cell) for cell in row])
    return html_table(head, rows, levels=4, notes=[html.escape(f"{_seeds(result)}.")])


def _numbers(claim: dict) -> list[str]:
    return [_number(claim["left"]), _number(claim["right"]), _difference(claim)]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _difference(claim: dict) -> str:
    if claim["interval"] is None:
        return _number(claim["difference"])
    low, high = (_number(end) for end in claim["interval"])
    return f"{_number(claim['difference'])} [{low}, {high}]"
