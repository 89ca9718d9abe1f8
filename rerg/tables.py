"""Tables of quality, regret and solvers, computed from the table of scores alone.

A quality is the mean over the images of one (problem, method). Where one image has no value the
cell is empty: the mean over the images that survived would flatter the method.
"""

import html
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rerg.scores import CONTROLS, INITIAL, TRUTH, interval, resamples

log = logging.getLogger(__name__)

# The four regularizing gradients that the paper compares. RED is their warm start and MTDEQ a
# denoiser in PnP-ADMM: neither enters the regret.
RGS = ("rg", "rg1", "deqgd", "rerg")
CONTROL_LABELS = {INITIAL: "initial image", TRUTH: "ground truth"}
BEST = {"psnr": "max", "ssim": "max", "lpips": "min"}
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4}

SOLVER_HEADS = {
    "psnr": "PSNR (dB)",
    "network_evaluations": "evaluations",
    "residual": "residual",
    "converged": "converged",
    "tightness": "bound / error",
    "unbounded": "q ≥ 1",
    "iterates": "iterates",
    "violations": "violations",
}
SOLVER_FORMATS = {
    "psnr": "{:.2f}",
    "network_evaluations": "{:.0f}",
    "residual": "{:.0e}",
    "converged": "{:.0%}",
    "tightness": "{:.2f}",
    "unbounded": "{:.0f}",
    "iterates": "{:.0f}",
    "violations": "{:.0f}",
}
REGRET_HEADS = {
    "max": "max",
    "max_low": "max, 2.5 %",
    "max_high": "max, 97.5 %",
    "mean": "mean",
    "mean_low": "mean, 2.5 %",
    "mean_high": "mean, 97.5 %",
}
REGRET_ENDS = ["max_low", "max_high", "mean_low", "mean_high"]


def labels_of(methods: Mapping[str, Mapping]) -> dict[str, str]:
    """Method to label, the controls included."""
    return CONTROL_LABELS | {name: entry["label"] for name, entry in methods.items()}


def short_names(problems: Mapping[str, Mapping]) -> dict[str, str]:
    """Problem to the name on axes and in heads; a star marks a problem held out of training."""
    return {
        name: entry["short"] + ("" if entry["trained"] else " *")
        for name, entry in problems.items()
    }


def in_order(present: pd.Series, order: Sequence[str]) -> list[str]:
    """The names that are present, in the given order; names that the order lacks come last."""
    names = set(present)
    known = [name for name in order if name in names]
    return known + sorted(names - set(known))


def order_of_methods(methods: Mapping[str, Mapping]) -> list[str]:
    """The initial image first, the ground truth last, between them the methods as configured."""
    return [INITIAL, *methods, TRUTH]


def without_comparisons(scores: pd.DataFrame, methods: Mapping[str, Mapping]) -> pd.DataFrame:
    """The rows but those of variants that ran on a part of the problems, to compare solvers."""
    counts = scores.groupby("method")["problem"].nunique()
    partial = counts.index[counts < scores["problem"].nunique()]
    comparisons = [name for name in partial if "variant" in methods.get(name, {})]
    return scores[~scores["method"].isin(comparisons)]


def mean_of(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean of a column over the images: methods x problems, sorted by name, empty where one is."""
    cells = scores[["method", "problem"]].assign(value=scores[column].astype("float64"))
    groups = cells.groupby(["method", "problem"])["value"]
    means = groups.mean().where(groups.count() == groups.size())
    for method, problem in means.index[means.isna()]:
        log.warning("%s of %s on %s is empty: an image has no value", column, method, problem)
    return means.unstack("problem")


def quality(
    scores: pd.DataFrame,
    metric: str,
    methods: Mapping[str, Mapping],
    problems: Mapping[str, Mapping],
) -> pd.DataFrame:
    """Mean of ``metric`` over the images, methods x problems, and `mean` over the problems.

    Only a method that has all problems of the table has a mean. A variant that was run on some of
    them to compare solvers is left out: it is the same RG once more (see `solvers`).
    """
    rows = in_order(without_comparisons(scores, methods)["method"], order_of_methods(methods))
    columns = in_order(scores["problem"], list(problems))
    table = mean_of(scores, metric).reindex(index=rows, columns=columns)
    return table.assign(mean=table.mean(axis=1, skipna=False))


def psnr_samples(scores: pd.DataFrame, seed: int) -> dict[tuple[str, str], np.ndarray]:
    """Mean PSNR of every (method, problem), the plain one and one per bootstrap resample.

    All draw the same images. A (method, problem) without a finite PSNR for each image is left out.
    """
    images = scores["dataset"] + "/" + scores["image"]
    values = scores.assign(image=images).pivot(
        index="image", columns=["method", "problem"], values="psnr"
    )
    weights = resamples(len(values), seed)
    return {
        key: weights @ values[key].to_numpy() for key in values if np.isfinite(values[key]).all()
    }


def regret(
    scores: pd.DataFrame, problems: Mapping[str, Mapping], seed: int, rgs: Sequence[str] = RGS
) -> pd.DataFrame:
    """Regret in dB: the best RG's mean PSNR of a problem minus this RG's.

    RGs x problems, then `max` and `mean` over the problems, each with the ends `low` and `high` of
    its 95 % bootstrap interval over images. Where an RG lacks a problem its cell, maximum and mean
    are empty; with one image the ends are.
    """
    samples = psnr_samples(scores, seed)
    rows = in_order(scores["method"][scores["method"].isin(rgs)], rgs)
    columns = in_order(scores["problem"], list(problems))
    count = len(scores[["dataset", "image"]].drop_duplicates())
    regrets = {}
    for problem in columns:
        present = {rg: samples[rg, problem] for rg in rows if (rg, problem) in samples}
        if present:
            best = np.max(list(present.values()), axis=0)
            regrets |= {(rg, problem): best - quality for rg, quality in present.items()}

    table = []
    for rg in rows:
        row = {p: regrets[rg, p][0] if (rg, p) in regrets else math.nan for p in columns}
        if all((rg, p) in regrets for p in columns):
            every = np.stack([regrets[rg, p] for p in columns])
            for name, values in (("max", every.max(axis=0)), ("mean", every.mean(axis=0))):
                low, high = interval(values) if count > 1 else (math.nan, math.nan)
                row |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
        table.append(row)
    index = pd.Index(rows, name="method")
    return pd.DataFrame(table, index=index).reindex(columns=[*columns, *REGRET_HEADS])


def solvers(
    scores: pd.DataFrame, methods: Mapping[str, Mapping], problems: Mapping[str, Mapping]
) -> pd.DataFrame:
    """What every solver needed, a row per (problem, method) that reports its solver.

    `psnr` mean in dB; `network_evaluations` and `residual` medians; `converged` share of the
    images; `tightness` median of bound / error where q < 1; `unbounded` images with q >= 1, which
    have no bound; `iterates` where the bound was checked and its `violations`.
    """
    table = scores[~scores["method"].isin(CONTROLS)]
    table = table.assign(
        tightness=table["bound"] / table["error"],
        unbounded=(table["bound_q"] >= 1).astype("float64").where(table["bound_q"].notna()),
        **{
            name: table[name].astype("float64")
            for name in ("network_evaluations", "converged", "bound_violations", "bound_iterates")
        },
    )

    def total(values: pd.Series) -> float:
        return values.sum(min_count=1)

    summary = table.groupby(["problem", "method"]).agg(
        psnr=("psnr", lambda values: values.mean(skipna=False)),
        network_evaluations=("network_evaluations", "median"),
        residual=("residual", "median"),
        converged=("converged", "mean"),
        tightness=("tightness", "median"),
        unbounded=("unbounded", total),
        iterates=("bound_iterates", total),
        violations=("bound_violations", total),
    )
    summary = summary.dropna(how="all", subset=["network_evaluations", "residual", "tightness"])
    order = [
        (problem, method)
        for problem in in_order(table["problem"], list(problems))
        for method in in_order(table["method"], list(methods))
    ]
    return summary.reindex([key for key in order if key in summary.index])


def marks(table: pd.DataFrame, best: str, decimals: int) -> pd.DataFrame:
    """Mark every cell "best", "second" or "": methods x problems, the controls left out.

    Values that print alike share their place: the ranking is of the printed numbers. ``best`` is
    "max" or "min".
    """
    ranked = table.drop(index=[c for c in CONTROLS if c in table.index]).round(decimals)
    places = ranked.rank(method="dense", ascending=best == "min").reindex(table.index)
    return places.map(lambda place: {1: "best", 2: "second"}.get(place, ""))


def write_table(
    table: pd.DataFrame,
    folder: Path,
    name: str,
    *,
    rows: Sequence[Mapping[str, str]],
    columns: Mapping[str, str],
    formats: str | Mapping[str, str],
    marked: pd.DataFrame,
) -> None:
    """Write ``{name}.csv`` (names and plain numbers), ``.md``, ``.tex`` and ``.html`` (as printed).

    ``rows`` are the labels of each level of the index, ``columns`` those of the columns.
    ``formats`` is one format of a number for all columns, or one per column. The best of a column
    is bold, the second underlined, as ``marked`` says (a column that it lacks has neither). The
    LaTeX is a `tabular` that needs booktabs; the HTML is what Snakemake's report can show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", float_format="%.7g", lineterminator="\n")

    levels = table.index.names
    head = [*levels, *(columns.get(column, column) for column in table.columns)]
    for suffix, style in (("md", _MARKDOWN), ("tex", _LATEX), ("html", _HTML)):
        body = []
        for position, key in enumerate(table.index):
            parts = key if isinstance(key, tuple) else (key,)
            row = [
                style["text"](names.get(part, part))
                for names, part in zip(rows, parts, strict=True)
            ]
            for column in table.columns:
                form = formats if isinstance(formats, str) else formats[column]
                mark = "" if column not in marked else marked.iloc[position][column]
                row.append(_cell(table.iloc[position][column], form, mark, style))
            body.append(row)
        text = style["table"]([style["text"](h) for h in head], body, len(levels))
        (folder / f"{name}.{suffix}").write_text(text)


def _cell(value: float, form: str, mark: str, style: Mapping) -> str:
    if math.isnan(value):
        return ""
    text = style["infinity"] if math.isinf(value) else style["text"](form.format(value))
    return style.get(mark, "{}").replace("{}", text)


def _markdown(head: list[str], body: list[list[str]], levels: int) -> str:
    rule = ["---"] * levels + ["---:"] * (len(head) - levels)
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *body])


def _latex(head: list[str], body: list[list[str]], levels: int) -> str:
    lines = [" & ".join(row) + r" \\" for row in [head, *body]]
    alignment = "l" * levels + "r" * (len(head) - levels)
    top = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*top, *lines[1:], r"\bottomrule", r"\end{tabular}", ""])


_PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<style>
  body {{ font-family: sans-serif; }}
  table {{ border-collapse: collapse; font-size: 0.85em; }}
  td, th {{ padding: 0.2em 0.6em; text-align: left; border-bottom: thin solid #ddd; }}
  td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
</style>
<table>
{}</table>
"""


def html_table(head: list[str], body: list[list[str]], levels: int) -> str:
    """A page with one table of HTML cells, of which the first ``levels`` of a row hold text."""

    def row(cells: list[str], tag: str) -> str:
        kinds = [""] * levels + [" class=n"] * (len(cells) - levels)
        parts = (f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(parts)}</tr>\n"

    return _PAGE.format(row(head, "th") + "".join(row(cells, "td") for cells in body))


# What pdflatex does not take as it stands. Greek letters and signs are set in mathematics.
_TEX = {
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "*": "$^{*}$",
    "σ": r"$\sigma$",
    "β": r"$\beta$",
    "η": r"$\eta$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "°": r"$^{\circ}$",
    "−": "$-$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


_MARKDOWN = {
    "text": lambda text: text.replace("|", r"\|").replace("*", r"\*"),
    "infinity": "∞",
    "best": "**{}**",
    "second": "<u>{}</u>",
    "table": _markdown,
}
_LATEX = {
    "text": _tex,
    "infinity": r"$\infty$",
    "best": r"\textbf{{}}",
    "second": r"\underline{{}}",
    "table": _latex,
}
_HTML = {
    "text": html.escape,
    "infinity": "∞",
    "best": "<b>{}</b>",
    "second": "<u>{}</u>",
    "table": html_table,
}


def write_tables(
    scores: pd.DataFrame,
    folder: Path,
    methods: Mapping[str, Mapping],
    problems: Mapping[str, Mapping],
    seed: int,
) -> None:
    """Write `psnr`, `ssim`, `lpips`, `regret` and `solvers` of one dataset into a folder."""
    labels, names = labels_of(methods), short_names(problems)
    for metric, best in BEST.items():
        table = quality(scores, metric, methods, problems)
        write_table(
            table,
            folder,
            metric,
            rows=[labels],
            columns=names,
            formats=f"{{:.{DECIMALS[metric]}f}}",
            marked=marks(table, best, DECIMALS[metric]),
        )
    table = regret(scores, problems, seed)
    write_table(
        table,
        folder,
        "regret",
        rows=[labels],
        columns=names | REGRET_HEADS,
        formats="{:.2f}",
        marked=marks(table.drop(columns=REGRET_ENDS), "min", 2),
    )
    write_table(
        solvers(scores, methods, problems),
        folder,
        "solvers",
        rows=[names, labels],
        columns=SOLVER_HEADS,
        formats=SOLVER_FORMATS,
        marked=pd.DataFrame(),
    )
