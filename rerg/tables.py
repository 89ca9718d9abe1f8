"""Tables of quality, regret and solvers: problems as rows, methods as columns.

Where one image of one seed has no value the cell is empty: the mean over what survived would
flatter the method. Where there are several seeds a mean stands with ± the standard deviation over
them. The columns of a method with a destroyed training carry a † and are not ranked.
"""

import html
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rerg.labels import (
    CONTROLS,
    INITIAL,
    TRUTH,
    in_order,
    labels_of,
    short_names,
    solver_label,
    variant_label,
)
from rerg.statistics import Evidence, spread

log = logging.getLogger(__name__)

BEST = {"psnr": "max", "ssim": "max", "lpips": "min"}
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4}
DESTROYED = " †"  # after the name of a method

SOLVER_HEADS = {
    "psnr": "PSNR (dB)",
    "network_evaluations": "evaluations",
    "residual": "residual",
    "converged": "converged",
    "stalled": "stalled",
    "tightness": "bound / error",
    "unbounded": "q ≥ 1",
    "iterates": "iterates",
    "violations": "violations",
}
TRAINING_HEADS = {
    "step": "steps",
    "evaluations": "evaluations",
    "seconds": "s",
    "lost": "lost",
    "skipped": "skipped",
    "rollbacks": "rollbacks",
    "gained": "gain (dB)",
}
TRAINING_FORMATS = {
    **dict.fromkeys(("step", "evaluations", "seconds", "rollbacks"), "{:.0f}"),
    **dict.fromkeys(("lost", "skipped"), "{:.0%}"),
    "gained": "{:.2f}",
}
SOLVER_FORMATS = {
    "psnr": "{:.2f}",
    "network_evaluations": "{:.0f}",
    "residual": "{:.0e}",
    "converged": "{:.0%}",
    "stalled": "{:.0%}",
    "tightness": "{:.2f}",
    "unbounded": "{:.0f}",
    "iterates": "{:.0f}",
    "violations": "{:.0f}",
}
MEAN = {"mean": "mean"}
REGRET_ROWS = {
    "max": "max",
    "max_low": "max, 2.5 %",
    "max_high": "max, 97.5 %",
    "mean": "mean",
    "mean_low": "mean, 2.5 %",
    "mean_high": "mean, 97.5 %",
}
RANKED_ROWS = ("max", "mean")


def shown_methods(evidence: Evidence) -> list[str]:
    """The columns of the tables of quality: the initial image, the methods, the ground truth.

    A variant that was run on a part of the problems, to compare solvers, is left out: it is the
    same RG once more, and stands in the tables of regret and of solvers.
    """

    def compares(name: str) -> bool:
        partial = not all(evidence.ran(name, p) for p in evidence.problems)
        return partial and "variant" in evidence.entries.get(name, {})

    names = in_order(evidence.methods, [INITIAL, *evidence.entries])
    return [n for n in names if n != TRUTH and not compares(n)] + [TRUTH] * (TRUTH in names)


def quality(evidence: Evidence, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means of ``metric`` over seeds and images, problems x methods, and their `spread` over seeds.

    The last row is the mean over the problems, for methods that have all of them. The spread is nan
    where there is one seed. The log says which cells are empty though the method was run.
    """
    problems, columns, empty = evidence.problems, {}, {}
    for method in shown_methods(evidence):
        means, spreads = [], []
        for problem in problems:
            mean, by_seed = math.nan, [math.nan]
            if evidence.ran(method, problem):
                mean = evidence.mean(method, problem, metric)[0]
                by_seed = evidence.cells(method, problem, metric).mean(axis=1)
                if math.isnan(mean):
                    empty.setdefault(method, []).append(problem)
            means.append(mean)
            spreads.append(by_seed)
        seeds = min(len(by_seed) for by_seed in spreads)
        over = [np.mean([by_seed[i] for by_seed in spreads]) for i in range(seeds)]
        columns[method] = (
            [*means, np.mean(means)],
            [spread(by_seed) for by_seed in [*spreads, over]],
        )
    if len(empty) == len(columns) and all(len(e) == len(problems) for e in empty.values()):
        log.warning("%s is empty throughout", metric)
    else:
        for method, lacking in empty.items():
            log.warning(
                "%s of %s is empty on %s: an image or a seed has no value",
                metric, method, ", ".join(lacking),
            )  # fmt: skip
    index = pd.Index([*problems, *MEAN], name="problem")
    tables = zip(*columns.values(), strict=True)
    return tuple(pd.DataFrame(dict(zip(columns, t, strict=True)), index=index) for t in tables)


def regret(evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Regret in dB of every RG within its procedure, problems x RGs, and its `spread` over seeds.

    Below the problems the rows `max` and `mean` over the problems that all RGs of the procedure
    were run on, each with the ends `low` and `high` of its 95 % interval, cut at 0. A cell is empty
    where an RG of the procedure lacks a value, as the best of them is then unknown, and so are the
    maximum and the mean; with one image the ends are.
    """
    by_seed = evidence.by_seed().values()
    columns, spreads = {}, {}
    for rg in (rg for rgs in evidence.procedures.values() for rg in rgs):
        column = {p: evidence.regret(rg, p)[0] for p in evidence.compared(rg)}
        for name, samples in (
            ("max", evidence.worst_regret(rg)),
            ("mean", evidence.mean_regret(rg)),
        ):
            column[name] = samples[0]
            low, high = evidence.interval(samples)
            column[f"{name}_low"], column[f"{name}_high"] = max(low, 0.0), high
        columns[rg] = column
        spreads[rg] = {
            **{p: spread([e.regret(rg, p)[0] for e in by_seed]) for p in evidence.compared(rg)},
            "max": spread([e.worst_regret(rg)[0] for e in by_seed]),
            "mean": spread([e.mean_regret(rg)[0] for e in by_seed]),
        }
    index = pd.Index([*evidence.problems, *REGRET_ROWS], name="problem")
    return pd.DataFrame(columns, index=index), pd.DataFrame(spreads, index=index)


def solvers(evidence: Evidence) -> pd.DataFrame:
    """What every solver needed, a row per (problem, method) that reports its solver.

    `psnr` mean in dB; `network_evaluations` and `residual` medians; `converged` and `stalled`
    shares of the images and seeds; `tightness` median of bound / error where q < 1; `unbounded`
    images with q >= 1, which have no bound; `iterates` where the bound was checked and its
    `violations`. A row is empty where images or seeds are missing.
    """
    table = evidence.scores[~evidence.scores["method"].isin(CONTROLS)]
    table = table.assign(
        tightness=table["bound"] / table["error"],
        unbounded=(table["bound_q"] >= 1).astype("float64").where(table["bound_q"].notna()),
        stalled=(table["stopped"] == "stalled").astype("float64").where(table["stopped"].notna()),
        **{
            name: table[name].astype("float64")
            for name in ("network_evaluations", "converged", "bound_violations", "bound_iterates")
        },
    )

    def total(values: pd.Series) -> float:
        return values.sum(min_count=1)

    summary = table.groupby(["problem", "method"]).agg(
        psnr=("psnr", "size"),
        network_evaluations=("network_evaluations", "median"),
        residual=("residual", "median"),
        converged=("converged", "mean"),
        stalled=("stalled", "mean"),
        tightness=("tightness", "median"),
        unbounded=("unbounded", total),
        iterates=("bound_iterates", total),
        violations=("bound_violations", total),
    )
    summary = summary.dropna(how="all", subset=["network_evaluations", "residual", "tightness"])
    order = [(p, m) for p in evidence.problems for m in evidence.methods]
    summary = summary.reindex([key for key in order if key in summary.index]).astype("float64")
    summary["psnr"] = [evidence.mean(method, problem)[0] for problem, method in summary.index]
    lacking = [(method, problem) in evidence.missing for problem, method in summary.index]
    return summary.mask(np.array(lacking, dtype=bool)[:, None] & np.ones(summary.shape, bool))


def marks(
    table: pd.DataFrame,
    best: str,
    decimals: int,
    groups: Sequence[Sequence[str]],
    unranked: Collection[str] = (),
) -> pd.DataFrame:
    """Mark every cell "best", "second" or "" within its row and group of columns.

    Values that print alike share their place: the ranking is of the printed numbers. ``best`` is
    "max" or "min". Columns of no group and the rows ``unranked`` have no mark.
    """
    places = {1: "best", 2: "second"}
    marked = pd.DataFrame("", index=table.index, columns=table.columns)
    for group in groups:
        names = list(group)
        ranks = table[names].round(decimals).rank(axis=1, method="dense", ascending=best == "min")
        marked[names] = ranks.map(lambda place: places.get(place, ""))
    marked[table.index.isin(list(unranked))] = ""
    return marked


def write_table(
    table: pd.DataFrame,
    folder: Path,
    name: str,
    *,
    rows: Sequence[Mapping[str, str]],
    columns: Mapping[str, str],
    formats: str | Mapping[str, str],
    marked: pd.DataFrame | None = None,
    spreads: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write ``{name}.csv`` (names and plain numbers), ``.md``, ``.tex`` and ``.html`` (as printed).

    ``rows`` are the labels of each level of the index, ``columns`` those of the columns.
    ``formats`` is one format of a number for all columns, or one per column. The best of a row is
    bold, the second underlined, as ``marked`` says. ``spreads`` stand after ± where they are
    numbers, in the CSV as columns `<column>_sd`. The LaTeX needs booktabs; columns that do not fit
    a page of 345 pt go into a further `tabular`. The HTML is what Snakemake's report can show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = table
    if spreads is not None and spreads.notna().any(axis=None):
        plain = table.join(spreads.add_suffix("_sd"))
    text = plain.to_csv(float_format="%.7g", lineterminator="\n")
    _write(folder / f"{name}.csv", text)

    levels, values = table.index.names, table.to_numpy("float64")
    deviations = np.full_like(values, math.nan) if spreads is None else spreads.to_numpy("float64")
    places = np.full(values.shape, "") if marked is None else marked.to_numpy()
    for suffix, style in (("md", _MARKDOWN), ("tex", _LATEX), ("html", _HTML)):
        head = [style["head"](columns.get(column, column)) for column in [*levels, *table.columns]]
        body = []
        for i, key in enumerate(table.index):
            parts = key if isinstance(key, tuple) else (key,)
            row = [
                style["text"](names.get(part, part))
                for names, part in zip(rows, parts, strict=True)
            ]
            for j, column in enumerate(table.columns):
                form = formats if isinstance(formats, str) else formats[column]
                cell = _cell(values[i, j], form, places[i, j], style)
                if cell and math.isfinite(deviations[i, j]):
                    cell += style["text"](f" ± {form.format(deviations[i, j])}")
                row.append(cell)
            body.append(row)
        text = style["table"](head, body, len(levels), [style["text"](note) for note in notes])
        _write(folder / f"{name}.{suffix}", text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def _cell(value: float, form: str, mark: str, style: Mapping) -> str:
    if math.isnan(value):
        return ""
    text = style["infinity"] if math.isinf(value) else style["text"](form.format(value))
    return style.get(mark, "{}").replace("{}", text)


def _markdown(head: list[str], body: list[list[str]], levels: int, notes: list[str]) -> str:
    rule = ["---"] * levels + ["---:"] * (len(head) - levels)
    table = "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *body])
    return table + "".join(f"\n{note}\n" for note in notes)


# \footnotesize of an article in 10 pt, and its page.
PAGE_WIDTH, SIGN_WIDTH, COLUMN_GAP = 345, 4.6, 6  # pt
PAGE_ROWS = 50
_INVISIBLE = str.maketrans("", "", "{}$^\\_")


def _printed_width(cell: str) -> float:
    """About how wide a cell of LaTeX is printed, in pt, without what only commands need."""
    for command in ("shortstack[r]", "textbf", "underline"):
        cell = cell.replace(f"\\{command}", "")
    lines = cell.replace("\\pm", "+").replace("\\dagger", "+").split("\\\\")
    return SIGN_WIDTH * max(len(line.translate(_INVISIBLE)) for line in lines)


def _blocks(head: list[str], body: list[list[str]], levels: int) -> Iterator[list[int]]:
    """The columns of each tabular, the levels of the index in all of them."""
    widths = [
        COLUMN_GAP + max(map(_printed_width, column)) for column in zip(head, *body, strict=True)
    ]
    index = list(range(levels))
    block, left = [], PAGE_WIDTH - sum(widths[:levels])
    for column in range(levels, len(head)):
        if block and widths[column] > left:
            yield index + block
            block, left = [], PAGE_WIDTH - sum(widths[:levels])
        block.append(column)
        left -= widths[column]
    yield index + block


def _latex(head: list[str], body: list[list[str]], levels: int, notes: list[str]) -> str:
    parts = []
    for start in range(0, max(1, len(body)), PAGE_ROWS):
        for columns in _blocks(head, body, levels):
            chosen = [head, *body[start : start + PAGE_ROWS]]
            lines = [" & ".join(row[c] for c in columns) + r" \\" for row in chosen]
            alignment = "l" * levels + "r" * (len(columns) - levels)
            top = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", lines[0], r"\midrule"]
            parts.append("\n".join([*top, *lines[1:], r"\bottomrule", r"\end{tabular}"]))
    parts += [rf"\parbox{{\linewidth}}{{{note}}}" for note in notes]
    separator = "\n\\par\\smallskip\n"
    return f"{{\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}%\n{separator.join(parts)}\n}}\n"


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
{}"""


def html_table(
    head: list[str], body: list[list[str]], levels: int, notes: Sequence[str] = ()
) -> str:
    """A page with one table of HTML cells, of which the first ``levels`` of a row hold text."""

    def row(cells: list[str], tag: str) -> str:
        kinds = [""] * levels + [" class=n"] * (len(cells) - levels)
        parts = (f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(parts)}</tr>\n"

    rows = row(head, "th") + "".join(row(cells, "td") for cells in body)
    return _PAGE.format(rows, "".join(f"<p>{note}</p>\n" for note in notes))


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
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def _tex_head(label: str) -> str:
    """A head in two lines where it has a comma: a solver stands below its variant."""
    first, comma, second = label.partition(", ")
    return rf"\shortstack[r]{{{_tex(first)}\\{_tex(second)}}}" if comma else _tex(label)


def _markdown_text(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*")


_MARKDOWN = {
    "text": _markdown_text,
    "head": _markdown_text,
    "infinity": "∞",
    "best": "**{}**",
    "second": "<u>{}</u>",
    "table": _markdown,
}
_LATEX = {
    "text": _tex,
    "head": _tex_head,
    "infinity": r"$\infty$",
    "best": r"\textbf{{}}",
    "second": r"\underline{{}}",
    "table": _latex,
}
_HTML = {
    "text": html.escape,
    "head": html.escape,
    "infinity": "∞",
    "best": "<b>{}</b>",
    "second": "<u>{}</u>",
    "table": html_table,
}


def trainings(descriptions: Sequence[Mapping]) -> tuple[pd.DataFrame, list[str]]:
    """What every training did, a row per (variant, seed), and a note for each that is destroyed.

    descriptions: the JSON beside the weights. `lost`, `skipped`: shares of the images without a
    fixed point, and of the steps without a finite loss, in the last fifth; `rollbacks`: how often
    the training went back; `gained`: PSNR over the initial image on the validation images, the
    mean over the trained problems, in dB.
    """
    rows, notes = {}, []
    for about in descriptions:
        key = about["variant"], str(about["spec"]["seed"])
        rows[key] = {name: about.get(name) for name in TRAINING_HEADS}
        gained = list(about["gained"].values())
        rows[key]["gained"] = float(np.mean(gained)) if gained else math.nan
        if about["destroyed"]:
            notes.append(f"{variant_label(key[0])}, seed {key[1]}: {about['destroyed']}")
    index = pd.MultiIndex.from_tuples(list(rows), names=["variant", "seed"])
    return pd.DataFrame(list(rows.values()), index=index, dtype="float64"), notes


def write_tables(evidence: Evidence, folder: Path, problems: Mapping[str, Mapping]) -> None:
    """Write `psnr`, `ssim`, `lpips`, `regret` and `solvers` into a folder."""
    names, destroyed = short_names(problems), evidence.destroyed
    labels = labels_of(evidence.entries)
    labels |= {method: labels.get(method, method) + DESTROYED for method in destroyed}
    notes = {method: f"{labels[method]}: {reason}" for method, reason in destroyed.items()}
    incomplete = [problem for _, problem in evidence.missing]
    for metric, best in BEST.items():
        table, spreads = quality(evidence, metric)
        ranked = [m for m in table.columns if m not in CONTROLS and m not in destroyed]
        unranked = {*incomplete, *(MEAN if incomplete else ())}
        write_table(
            table,
            folder,
            metric,
            rows=[names | MEAN],
            columns=labels,
            formats=f"{{:.{DECIMALS[metric]}f}}",
            marked=marks(table, best, DECIMALS[metric], [ranked], unranked),
            spreads=spreads,
            notes=[note for method, note in notes.items() if method in table],
        )
    table, spreads = regret(evidence)
    groups = [[m for m in rgs if m not in destroyed] for rgs in evidence.procedures.values()]
    write_table(
        table,
        folder,
        "regret",
        rows=[names | REGRET_ROWS],
        columns=labels,
        formats="{:.2f}",
        marked=marks(table, "min", 2, groups, {*REGRET_ROWS} - {*RANKED_ROWS}),
        spreads=spreads,
        notes=[
            *(note for method, note in notes.items() if method in table),
            *_partial(evidence, names),
        ],
    )
    write_table(
        solvers(evidence),
        folder,
        "solvers",
        rows=[names, labels],
        columns=SOLVER_HEADS,
        formats=SOLVER_FORMATS,
        notes=list(notes.values()),
    )


def _partial(evidence: Evidence, names: Mapping[str, str]) -> Iterator[str]:
    """What the maximum and mean of a procedure are over, where that is not all problems."""
    for solver, rgs in evidence.procedures.items():
        compared = evidence.compared(rgs[0])
        if len(compared) < len(evidence.problems):
            shown = ", ".join(names.get(p, p) for p in compared) or "none"
            yield (
                f"{solver_label(solver)}: maximum and mean over {len(compared)} of"
                f" {len(evidence.problems)} problems ({shown})."
            )
