"""Figures of the benchmark. Every function takes evidence, tables or arrays and returns a Figure.

A method has one colour, that of its variant, and a solver one line and marker (`rerg.labels`).
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from scipy.ndimage import uniform_filter

from rerg.labels import (
    INITIAL,
    OTHER,
    TRUTH,
    color_of,
    color_of_variant,
    descends,
    in_order,
    labels_of,
    line_of_solver,
    short_names,
    solver_label,
    variant_label,
)
from rerg.metrics import psnr
from rerg.scores import read_trace
from rerg.statistics import Evidence
from rerg.tables import DESTROYED, shown_methods
from rerg.trials import read_table

log = logging.getLogger(__name__)

# The subsetter of the PDF's fonts tells of every glyph.
logging.getLogger("fontTools").setLevel(logging.WARNING)

WIDTH, COLUMN = 7.0, 3.4  # inches: the page and one of its two columns
FAST = "fast"  # σ is tuned with this solver, whose curves need no name

STYLE = {
    **sns.axes_style("ticks"),
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "black",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,
    "savefig.dpi": 250,
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(draw)
    def styled(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def save_figure(figure: Figure, pdf: Path, png: Path) -> None:
    """Write a figure as PDF and PNG; the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, metadata={"Software": None})
        figure.set_layout_engine("none")  # stays as it is: laying out takes as long as drawing
        figure.savefig(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})


def absent(reason: str) -> Figure:
    """In place of a figure whose data the run lacks: the reason."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 1.0))
        figure.text(0.5, 0.5, f"not drawn: {reason}", ha="center", va="center", wrap=True)
        return figure


def most_detailed(image: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left of the ``size`` x ``size`` window of (3, H, W) with the largest variance."""
    grey = image.mean(axis=0)
    variance = uniform_filter(grey**2, size) - uniform_filter(grey, size) ** 2
    half = size // 2
    inside = variance[
        half : grey.shape[0] - size + half + 1, half : grey.shape[1] - size + half + 1
    ]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(top), int(left)


@_styled
def examples(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    methods: Mapping[str, Mapping],
    problems: Mapping[str, Mapping],
) -> Figure:
    """Restorations side by side, problems x methods, with a zoom into the most detailed window.

    ``rows`` maps the problem to {method: image (3, H, W) in [0, 1] scale}, of one image each and
    with the ground truth (`rerg.scores.images_of`). The PSNR is that of the table of scores.
    """
    present = [method for row in rows.values() for method in row]
    columns = in_order(present, list(labels_of(methods)))
    labels, names = labels_of(methods), short_names(problems)
    side = (WIDTH - 0.2) / len(columns)
    heights = [max(x.shape[1] / x.shape[2] for x in row.values()) for row in rows.values()]
    figure = Figure(figsize=(WIDTH, sum(side * h + 0.17 for h in heights) + 0.15))
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for line, (problem, row) in zip(axes, rows.items(), strict=True):
        truth = row[TRUTH]
        size = min(truth.shape[1:]) // 4
        top, left = most_detailed(truth, size)
        for ax, method in zip(line, columns, strict=True):
            ax.set(xticks=[], yticks=[])
            sns.despine(ax=ax, left=True, bottom=True)
            if method not in row:
                continue
            shown = row[method].clip(0, 1).transpose(1, 2, 0)  # a screen cannot show more
            height, width = shown.shape[:2]
            ax.imshow(shown, interpolation="nearest")
            ax.add_patch(Rectangle((left - 0.5, top - 0.5), size, size, fill=False, ec="w", lw=0.6))
            # The corner that does not hide the window which it enlarges.
            corner = 0.0 if left + size / 2 > width / 2 else 0.58
            below = top + size / 2 < height / 2
            inset = ax.inset_axes((corner, 0.0 if below else 0.58, 0.42, 0.42))
            inset.imshow(shown[top : top + size, left : left + size], interpolation="nearest")
            inset.set(xticks=[], yticks=[], anchor="SW" if corner == 0 else "SE")
            for spine in inset.spines.values():
                spine.set(visible=True, color="w", linewidth=0.8)
            title = "" if method == TRUTH else f"{psnr(row[method], truth):.2f} dB"
            ax.set_title(title, fontsize=7, pad=2)
        line[0].set_ylabel(names.get(problem, problem), labelpad=2)
    for ax, method in zip(axes[0], columns, strict=True):
        label = labels.get(method, method)
        label = label.replace(" ", "\n", 1) if len(label) > 9 else label
        ax.set_title(f"{label}\n{ax.get_title()}", fontsize=7, pad=2)
    return figure


def mean_trace(cells: Sequence[str]) -> np.ndarray:
    """The average (n, 2) of traces of PSNR in dB over network evaluations.

    Traces end where their image has converged; from there on its PSNR stays.
    """
    traces = [read_trace(cell) for cell in cells]
    grid = np.unique(np.concatenate([trace[:, 0] for trace in traces]))
    curves = [np.interp(grid, trace[:, 0], trace[:, 1]) for trace in traces]
    return np.column_stack([grid, np.mean(curves, axis=0)])


def _panels(
    count: int, columns: int, height: float, rest: float, **shared: bool
) -> tuple[Figure, list[Axes]]:
    """A page-wide figure of so many panels, in rows of at most `columns`.

    height: inches of a row; rest: of what stands beside them; shared: `sharex`, `sharey`.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows + rest), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).flat
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count])


def _traces(evidence: Evidence, problem: str) -> dict[str, list[str]]:
    """Method to the traces of all its images and seeds on a problem, where none is missing."""
    traces = {}
    for method in evidence.methods:
        if evidence.ran(method, problem):
            cells = evidence.rows(method, problem)["trace"]
            if cells.notna().all() and (method, problem) not in evidence.missing:
                traces[method] = list(cells)
            elif cells.notna().any():
                log.warning("%s on %s is not drawn: an image has no trace", method, problem)
    return traces


@_styled
def iterations(evidence: Evidence, problem: str, problems: Mapping[str, Mapping]) -> Figure:
    """Average PSNR over the iterations of descent for one problem, every RG that was run so.

    The average is over images and seeds. The lines are those of the solvers where several descend.
    """
    entries = evidence.entries
    traces = {
        name: cells
        for name, cells in _traces(evidence, problem).items()
        if descends(entries.get(name, {}).get("solver", ""))
    }
    if not traces:
        return absent(f"no method was run by GD on {problem} with a trace")
    used = list(dict.fromkeys(entries[name]["solver"] for name in traces))
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    ax = figure.subplots()
    last = 0.0
    for name, cells in traces.items():
        trace = mean_trace(cells)
        solver = entries[name]["solver"]
        line, _ = line_of_solver(solver) if len(used) > 1 else ("-", "")
        label = entries[name]["label"] if len(used) > 1 else variant_label(entries[name]["variant"])
        ax.plot(*trace.T, line, color=color_of(name, entries), label=label)
        last = max(last, trace[-1, 0])
    if evidence.ran(INITIAL, problem):
        start = evidence.mean(INITIAL, problem)[0]
        ax.axhline(start, color=OTHER, linestyle=(0, (1, 3)), linewidth=1, label="initial image")
    ax.set(
        xlabel=f"network evaluations ({', '.join(map(solver_label, used))})",
        ylabel="average PSNR (dB)",
        title=problems[problem]["label"] if problem in problems else problem,
        xlim=(0, last),
    )
    figure.legend(loc="outside lower center", ncols=3, handlelength=2.0, columnspacing=1.0)
    return figure


@_styled
def regret(evidence: Evidence, problems: Mapping[str, Mapping]) -> Figure:
    """Regret per problem and, beside it, each RG's worst case: mean, 95 % interval and seeds.

    The RGs of a solver stand together, as the regret is among them. A point is one seed's worst
    case, the large one that of the mean over the seeds.
    """
    rgs = [rg for group in evidence.procedures.values() for rg in group]
    if not rgs:
        return absent("no two RGs were scored with one solver")
    cells = np.array(
        [
            [
                evidence.regret(rg, p)[0] if p in evidence.compared(rg) else math.nan
                for p in evidence.problems
            ]
            for rg in rgs
        ]
    )
    shown = labels_of(evidence.entries)
    labels = [shown[rg] + (DESTROYED if rg in evidence.destroyed else "") for rg in rgs]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(rgs)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    finite = cells[np.isfinite(cells)]
    sns.heatmap(
        cells,
        ax=left,
        cmap=sns.light_palette("#888888", as_cmap=True),  # black digits stay readable
        vmin=0,
        # One diverging RG would otherwise leave all other cells white.
        vmax=max(0.5, float(np.quantile(finite, 0.9))) if finite.size else 1,
        annot=True,
        fmt=".2f" if len(evidence.problems) < 16 else ".1f",
        annot_kws={"size": 7, "color": "black"},
        linewidths=0.5,
        cbar=False,
        xticklabels=[short_names(problems).get(name, name) for name in evidence.problems],
        yticklabels=labels,
    )
    left.tick_params(length=0)
    left.set_xticklabels(left.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    left.set_yticklabels(left.get_yticklabels(), rotation=0)
    left.set(xlabel="", ylabel="", title="regret (dB): best RG of the problem minus this RG")
    for group in np.cumsum([len(group) for group in evidence.procedures.values()])[:-1]:
        left.axhline(group, color="black", linewidth=0.8)

    by_seed = evidence.by_seed() if len(evidence.seeds) > 1 else {}
    for position, rg in enumerate(rgs):
        worst, color = evidence.worst_regret(rg), color_of(rg, evidence.entries)
        height = position + 0.5
        right.plot(evidence.interval(worst), [height] * 2, color=color, solid_capstyle="round")
        right.plot(worst[0], height, "o", color=color, markersize=5, clip_on=False)
        for e in by_seed.values():
            right.plot(
                e.worst_regret(rg)[0],
                height + 0.25,
                "o",
                color=color,
                markersize=3,
                markerfacecolor="white",
                markeredgewidth=0.8,
                clip_on=False,
            )
    right.set(
        ylim=left.get_ylim(),
        yticks=left.get_yticks(),
        yticklabels=[],
        title="worst case (dB)" + (", ○ seeds" if by_seed else ""),
    )
    right.tick_params(axis="y", length=0)
    right.set_xlim(left=0)
    right.grid(axis="x", linewidth=0.4)
    return figure


@_styled
def bound(evidence: Evidence) -> Figure:
    """Bound against true error, a point per image, problem and seed, a panel per method."""
    main = evidence.scores[evidence.scores["method"].isin(shown_methods(evidence))]
    measured = main[main["bound_q"].notna()]
    names = in_order(measured["method"], evidence.methods)
    if not names:
        return absent("no restoration comes with a bound")
    shown = measured[["error", "bound"]].astype("float64")
    limits = [0.7 * shown.min().min(), 1.4 * shown.max().max()]
    figure, axes = _panels(len(names), 3, 2.2, 0.2, sharex=True, sharey=True)
    labels = labels_of(evidence.entries)
    for ax, name in zip(axes, names, strict=True):
        points = measured[measured["method"] == name]
        ax.scatter(
            points["error"],
            points["bound"],
            s=9,
            alpha=0.6,
            linewidths=0,
            color=color_of(name, evidence.entries),
        )
        ax.plot(limits, limits, color="black", linewidth=0.7)
        unbounded = int((points["bound_q"] >= 1).sum())
        ax.text(
            0.97,
            0.04,
            f"{len(points) - unbounded} points\nq ≥ 1, no bound: {unbounded}",
            transform=ax.transAxes,
            ha="right",
            va="bottom",
            fontsize=7,
        )
        title = labels.get(name, name) + (DESTROYED if name in evidence.destroyed else "")
        ax.set(xscale="log", yscale="log", title=title)
        if np.isfinite(limits).all():
            ax.set(xlim=limits, ylim=limits)
    figure.supxlabel("true error, RMS (intensity in [0, 1])", fontsize=8)
    figure.supylabel("bound on the error, RMS", fontsize=8)
    return figure


def read_curve(path: Path) -> pd.DataFrame:
    """A training's table: `evaluations`, `loss` and, where the variant has it, `lost`, as numbers.

    Raises InputError, one line, where it is no CSV table, has no row or lacks a column.
    """
    table = read_table(path, ("evaluations", "loss"))
    numbers = [name for name in ("evaluations", "loss", "lost") if name in table]
    return table[numbers].apply(pd.to_numeric, errors="coerce")


@_styled
def training(
    curves: Mapping[tuple[str, int], pd.DataFrame], methods: Mapping[str, Mapping]
) -> Figure:
    """Training loss over network evaluations, a panel per variant, and the share of fixed points.

    ``curves`` maps the variant and the seed to its training table (`read_curve`), `lost` the share
    of the images without a fixed point, for those that learn at the equilibrium. Each variant has
    its own loss, so the panels share no axis of values. A line is a seed.
    """
    if not curves:
        return absent("no variant was trained")
    order = [entry["variant"] for entry in methods.values() if "variant" in entry]
    names = in_order({variant for variant, _ in curves}, list(dict.fromkeys(order)))
    figure, (*axes, share) = _panels(len(names) + 1, 4, 1.6, 0.3)
    for ax, name in zip(axes, names, strict=True):
        color, ends = color_of_variant(name), []
        of_seeds = [curve for (variant, _), curve in curves.items() if variant == name]
        for curve in of_seeds:
            thousands = curve["evaluations"] / 1000
            if len(of_seeds) == 1:
                ax.plot(thousands, curve["loss"], color=color, alpha=0.25, linewidth=0.6)
            smooth = curve["loss"].rolling(max(1, len(curve) // 15), min_periods=1, center=True)
            ax.plot(thousands, smooth.median(), color=color, linewidth=1.2 / len(of_seeds) ** 0.3)
            if "lost" in curve:
                share.plot(thousands, 100 * (1 - curve["lost"]), color=color, linewidth=1)
            finite = curve["loss"][np.isfinite(curve["loss"])]
            if len(finite):
                ends.append(np.quantile(finite, [0.0, 0.98]))
        low, high = np.transpose(ends) if ends else ([0], [0])
        low, high = min(low), max(high)
        if high > low:  # a first step far off would flatten the rest
            ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
        ax.set_title(f"{variant_label(name)}, loss")
    share.set(ylim=(-3, 103), title="fixed points found (%)")
    figure.supxlabel("network evaluations (thousands)", fontsize=8)
    return figure


@_styled
def evaluations(evidence: Evidence, problems: Mapping[str, Mapping]) -> Figure:
    """Average PSNR against network evaluations, a panel per problem that compares solvers.

    The colour is the variant, the line and the marker at its end the solver; the average is over
    images and seeds. Where the run compares no solvers every problem has a panel.
    """
    entries = evidence.entries
    traces = {p: t for p in evidence.problems if (t := _traces(evidence, p))}
    if not traces:
        return absent("no restoration comes with a trace of its network evaluations")

    def variant_of(method: str) -> str:
        return entries.get(method, {}).get("variant", method)

    def solver_of(method: str) -> str:
        return entries.get(method, {}).get("solver", "own")

    compared = [p for p, t in traces.items() if len(set(map(variant_of, t))) < len(t)]
    names = compared or list(traces)
    figure, axes = _panels(len(names), 4, 1.9, 0.5, sharex=True)
    for ax, problem in zip(axes, names, strict=True):
        for method, cells in traces[problem].items():
            trace = mean_trace(cells)
            trace = trace[trace[:, 0] > 0]
            line, marker = line_of_solver(solver_of(method))
            ax.plot(
                *trace.T,
                line,
                color=color_of(method, entries),
                linewidth=1,
                marker=marker,
                markevery=[-1],
                markersize=4.5,
            )
        ax.set(xscale="log", title=short_names(problems).get(problem, problem))
        ax.xaxis.set_minor_formatter(NullFormatter())

    drawn = [method for problem in names for method in traces[problem]]
    handles = [
        Line2D([], [], color=color_of_variant(name), label=variant_label(name))
        for name in dict.fromkeys(map(variant_of, drawn))
    ]
    for name in dict.fromkeys(map(solver_of, drawn)):
        line, marker = line_of_solver(name)
        handles.append(
            Line2D([], [], color=OTHER, linestyle=line, marker=marker, label=solver_label(name))
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1)
    figure.supxlabel("network evaluations", fontsize=8)
    figure.supylabel("average PSNR (dB)", fontsize=8)
    return figure


@_styled
def tuning(
    tables: Mapping[str, pd.DataFrame],
    methods: Mapping[str, Mapping],
    declared: Mapping[str, Mapping[str, float]],
    problems: Mapping[str, Mapping],
) -> Figure:
    """PSNR on the validation images over a tuned parameter, a panel per problem.

    ``tables`` maps what was tuned, a variant (its σ), a method (the step of its solver) or a
    baseline, to its trials (`rerg.trials`); one that tunes several parameters is left to its table.
    The values are relative to the ``declared`` ones, 1 where there is none, so that all share an
    axis.
    """
    curves = {}
    for name, table in tables.items():
        keys = list(dict.fromkeys(key for cell in table["parameters"] for key in cell))
        if len(keys) == 1:
            (key,) = keys
            one = declared.get(name, {}).get(key, 1)
            values = [cell.get(key, math.nan) / one for cell in table["parameters"]]
            curves[name] = table.assign(value=values)
    if not curves:
        return absent("nothing was tuned by one parameter")
    names = in_order(pd.concat(curves.values())["problem"], list(problems))
    figure, axes = _panels(len(names), 4, 1.6, 0.8, sharex=True)
    variant = {name: methods.get(name, {}).get("variant", name) for name in curves}
    solver = {name: methods.get(name, {}).get("solver", FAST) for name in curves}
    colors = {name: color_of_variant(variant[name]) for name in curves}
    for ax, problem in zip(axes, names, strict=True):
        bests = []
        for name, table in curves.items():
            line = table[(table["problem"] == problem) & table["psnr"].notna()]
            line = line.sort_values("value")
            if line.empty:
                continue
            color = colors[name]
            style = "--" if color == OTHER else line_of_solver(solver[name])[0]
            ax.plot(line["value"], line["psnr"], style, color=color, linewidth=1)
            chosen = line.loc[line["psnr"].idxmax()]
            bests.append(chosen["psnr"])
            edge = chosen["value"] in (line["value"].min(), line["value"].max())
            ax.plot(
                chosen["value"],
                chosen["psnr"],
                "o",
                color=color,
                markerfacecolor="white" if edge else color,
                markersize=4.5,
            )
        if bests:  # far from their best, curves leave the panel
            ax.set_ylim(bottom=max(min(bests) - 1, ax.get_ylim()[0]))
        ax.set_xscale("log")
        ax.set_title(short_names(problems).get(problem, problem))
        low, high = ax.get_xlim()
        subs = (1, 2, 5) if high < 20 * low else (1,)  # more would overlap
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(labelbottom=True)
    order = list(dict.fromkeys(entry.get("variant", name) for name, entry in methods.items()))
    handles = [
        Line2D([], [], color=color_of_variant(name), label=variant_label(name))
        for name in in_order(variant.values(), order)
        if color_of_variant(name) != OTHER
    ]
    for name in sorted({solver[name] for name in curves} - {FAST}):
        line, label = line_of_solver(name)[0], f"step of {solver_label(name)}"
        handles.append(Line2D([], [], color=OTHER, linestyle=line, label=label))
    if OTHER in colors.values():
        handles.append(Line2D([], [], color=OTHER, linestyle="--", label="baselines"))
    for face, label in ((OTHER, "best"), ("white", "best, on the edge")):
        handles.append(Line2D([], [], color=OTHER, marker="o", linestyle="", mfc=face, label=label))
    figure.legend(handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / 2))
    figure.supxlabel(
        "σ, a step or a baseline's parameter, relative to its declared value", fontsize=8
    )
    figure.supylabel("validation PSNR (dB)", fontsize=8)
    return figure
