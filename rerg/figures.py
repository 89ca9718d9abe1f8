"""Figures of the benchmark. Every function takes tables or arrays and returns a Figure."""

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from scipy.ndimage import uniform_filter

from rerg.scores import INITIAL, TRUTH, psnr, read_trace
from rerg.tables import (
    REGRET_HEADS,
    in_order,
    labels_of,
    order_of_methods,
    short_names,
    without_comparisons,
)

# The subsetter of the PDF's fonts tells of every glyph.
logging.getLogger("fontTools").setLevel(logging.WARNING)

WIDTH, COLUMN = 7.0, 3.4  # inches: the page and one of its two columns

# Okabe and Ito's palette, which colour-blind readers tell apart.
COLORS = {
    "red": "#E69F00",
    "rg": "#56B4E9",
    "rg1": "#009E73",
    "deqgd": "#CC79A7",
    "rerg": "#D55E00",
    "mtdeq": "#0072B2",
}
OTHER = "#555555"  # baselines and controls
SOLVER_STYLES = {"fast": ("-", "o"), "gd": ("--", "s"), "adam": (":", "^")}
SOLVER_LABELS = {"fast": "fast", "gd": "GD", "adam": "Adam-GD"}
OTHER_STYLE = ("-.", "D")
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


def color_of(method: str, methods: Mapping[str, Mapping]) -> str:
    """A method has its variant's colour, whatever the solver."""
    return COLORS.get(methods.get(method, {}).get("variant", ""), OTHER)


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(draw)
    def styled(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def save_figure(figure: Figure, pdf: Path, png: Path) -> None:
    """Write a figure as PDF and PNG; the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
        figure.savefig(png, metadata={"Software": None})


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
    present = pd.Series([method for row in rows.values() for method in row])
    columns = in_order(present, order_of_methods(methods))
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


GD_LINES = {"adam": ("-", "solid: GD by Adam"), "gd": ("--", "dashed: plain GD")}


@_styled
def iterations(
    scores: pd.DataFrame,
    problem: str,
    methods: Mapping[str, Mapping],
    problems: Mapping[str, Mapping],
) -> Figure:
    """Average PSNR over the iterations of GD for one problem, every RG that was run so.

    Solid: GD by Adam on the image, as PnP-ReG runs it; dashed: plain GD.
    """
    solved = scores[(scores["problem"] == problem) & scores["trace"].notna()]
    by_gd = [
        name
        for name in in_order(solved["method"], list(methods))
        if methods.get(name, {}).get("solver") in GD_LINES
    ]
    if not by_gd:
        return absent(f"no method was run by GD on {problem} with a trace")
    used = {methods[name]["solver"] for name in by_gd}
    names = [name for solver, (_, name) in GD_LINES.items() if solver in used]
    figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    ax = figure.subplots()
    ends = {}
    for name in by_gd:
        trace = mean_trace(solved.loc[solved["method"] == name, "trace"])
        label = methods[name]["label"].removesuffix(", Adam-GD")
        style, _ = GD_LINES[methods[name]["solver"]]
        ax.plot(*trace.T, style, color=color_of(name, methods), label=label)
        ends[name] = trace[-1]
    initial = scores.loc[
        (scores["problem"] == problem) & (scores["method"] == INITIAL), "psnr"
    ].mean()
    ax.axhline(initial, color=OTHER, linestyle=":", linewidth=1, label="initial image")
    ax.set(
        xlabel=f"network evaluations ({', '.join(names)})",
        ylabel="average PSNR (dB)",
        title=problems[problem]["label"] if problem in problems else problem,
        xlim=(0, max(end[0] for end in ends.values())),
    )
    figure.legend(loc="outside lower center", ncols=5, handlelength=1.2, columnspacing=1.0)
    return figure


@_styled
def regret(
    table: pd.DataFrame, methods: Mapping[str, Mapping], problems: Mapping[str, Mapping]
) -> Figure:
    """Regret per problem and, beside it, each RG's worst case with its 95 % interval.

    ``table`` is that of `rerg.tables.regret`.
    """
    if table.empty:
        return absent("no RG was scored")
    columns = [name for name in table.columns if name not in REGRET_HEADS]
    labels = [labels_of(methods).get(name, name) for name in table.index]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.3 * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    sns.heatmap(
        table[columns],
        ax=left,
        cmap=sns.light_palette("#888888", as_cmap=True),  # black digits stay readable
        vmin=0,
        # One diverging RG would otherwise leave all other cells white.
        vmax=max(0.5, float(np.nanquantile(table[columns], 0.9))),
        annot=True,
        fmt=".2f",
        annot_kws={"size": 7, "color": "black"},
        linewidths=0.5,
        cbar=False,
        xticklabels=[short_names(problems).get(name, name) for name in columns],
        yticklabels=labels,
    )
    left.tick_params(length=0)
    left.set_xticklabels(left.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    left.set_yticklabels(left.get_yticklabels(), rotation=0)
    left.set(xlabel="", ylabel="", title="regret (dB): best RG of the problem minus this RG")

    for position, name in enumerate(table.index):
        worst, low, high = table.loc[name, ["max", "max_low", "max_high"]]
        color = color_of(name, methods)
        right.plot([low, high], [position + 0.5] * 2, color=color, solid_capstyle="round")
        right.plot(worst, position + 0.5, "o", color=color, markersize=5, clip_on=False)
    right.set(
        ylim=left.get_ylim(),
        yticks=left.get_yticks(),
        yticklabels=[],
        title="worst case (dB)",
    )
    right.tick_params(axis="y", length=0)
    right.set_xlim(left=0)
    right.grid(axis="x", linewidth=0.4)
    return figure


@_styled
def bound(scores: pd.DataFrame, methods: Mapping[str, Mapping]) -> Figure:
    """Bound against true error, a point per image and problem, a panel per method."""
    main = without_comparisons(scores, methods)
    measured = main[main["bound_q"].notna()]
    names = in_order(measured["method"], list(methods))
    if not names:
        return absent("no restoration comes with a bound")
    shown = measured[["error", "bound"]].astype("float64")
    limits = [0.7 * shown.min().min(), 1.4 * shown.max().max()]
    count = min(3, len(names))
    figure = Figure(figsize=(WIDTH, 2.2 * math.ceil(len(names) / count)), layout="constrained")
    axes = figure.subplots(
        math.ceil(len(names) / count), count, sharex=True, sharey=True, squeeze=False
    )
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax, name in zip(axes.flat, names, strict=False):
        points = measured[measured["method"] == name]
        ax.scatter(
            points["error"],
            points["bound"],
            s=9,
            alpha=0.6,
            linewidths=0,
            color=color_of(name, methods),
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
        ax.set(xscale="log", yscale="log", title=labels_of(methods).get(name, name))
        if np.isfinite(limits).all():
            ax.set(xlim=limits, ylim=limits)
    figure.supxlabel("true error, RMS (intensity in [0, 1])", fontsize=8)
    figure.supylabel("bound on the error, RMS", fontsize=8)
    return figure


@_styled
def training(curves: Mapping[str, pd.DataFrame], methods: Mapping[str, Mapping]) -> Figure:
    """Training loss over network evaluations, a panel per variant, and the share of fixed points.

    ``curves`` maps the variant to its training table with the columns `evaluations`, `loss` and,
    for those that learn at the equilibrium, `lost` (share of the images without a fixed point).
    Each variant has its own loss, so the panels share no axis of values.
    """
    labels = {entry["variant"]: entry["label"] for entry in methods.values() if "variant" in entry}
    labels |= {name: methods[name]["label"] for name in curves if name in methods}
    names = in_order(pd.Series(list(curves)), list(COLORS))
    columns = 4
    rows = math.ceil((len(names) + 1) / columns)
    figure = Figure(figsize=(WIDTH, 1.6 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax, name in zip(axes, names, strict=False):
        curve = curves[name]
        color = COLORS.get(name, OTHER)
        thousands = curve["evaluations"] / 1000
        ax.plot(thousands, curve["loss"], color=color, alpha=0.25, linewidth=0.6)
        smooth = curve["loss"].rolling(max(1, len(curve) // 15), min_periods=1, center=True)
        ax.plot(thousands, smooth.median(), color=color)
        low, high = np.nanquantile(curve["loss"], [0.0, 0.98])
        if high > low:  # a first step far off would flatten the rest
            ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
        ax.set_title(f"{labels.get(name, name)}, loss")
    share = axes[len(names)]
    for name in names:
        curve = curves[name]
        if "lost" in curve:
            found = 100 * (1 - curve["lost"])
            share.plot(curve["evaluations"] / 1000, found, color=COLORS.get(name, OTHER))
    share.set(ylim=(-3, 103), title="fixed points found (%)")
    for ax in axes[len(names) + 1 :]:
        ax.remove()
    figure.supxlabel("network evaluations (thousands)", fontsize=8)
    return figure


@_styled
def evaluations(
    scores: pd.DataFrame, methods: Mapping[str, Mapping], problems: Mapping[str, Mapping]
) -> Figure:
    """Average PSNR against network evaluations, a panel per problem that compares solvers.

    The colour is the variant, the line and the marker at its end the solver. Where the run compares
    no solvers every problem has a panel.
    """
    traced = scores[scores["trace"].notna()]
    if traced.empty:
        return absent("no restoration comes with a trace of its network evaluations")
    variant = traced["method"].map(lambda name: methods.get(name, {}).get("variant", name))
    solver = traced["method"].map(lambda name: methods.get(name, {}).get("solver", "own"))
    traced = traced.assign(variant=variant, solver=solver)
    solvers = traced.groupby(["problem", "variant"])["solver"].nunique().groupby("problem").max()
    compared = solvers.index[solvers > 1] if (solvers > 1).any() else solvers.index

    names = in_order(pd.Series(compared), list(problems))
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH, 1.9 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for ax, problem in zip(axes, names, strict=False):
        here = traced[traced["problem"] == problem]
        for method in in_order(here["method"], list(methods)):
            lines = here[here["method"] == method]
            trace = mean_trace(lines["trace"])
            trace = trace[trace[:, 0] > 0]
            line, marker = SOLVER_STYLES.get(lines["solver"].iloc[0], OTHER_STYLE)
            ax.plot(
                *trace.T,
                line,
                color=color_of(method, methods),
                linewidth=1,
                marker=marker,
                markevery=[-1],
                markersize=4.5,
            )
        ax.set(xscale="log", title=short_names(problems).get(problem, problem))
        ax.xaxis.set_minor_formatter(NullFormatter())
    for ax in axes[len(names) :]:
        ax.remove()

    labels = labels_of(methods)
    handles = [
        Line2D([], [], color=COLORS.get(name, OTHER), label=labels.get(name, name))
        for name in in_order(traced["variant"], list(COLORS))
    ]
    for name in in_order(traced["solver"], list(SOLVER_STYLES)):
        line, marker = SOLVER_STYLES.get(name, OTHER_STYLE)
        label = SOLVER_LABELS.get(name, name)
        handles.append(Line2D([], [], color=OTHER, linestyle=line, marker=marker, label=label))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    figure.supxlabel("network evaluations", fontsize=8)
    figure.supylabel("average PSNR (dB)", fontsize=8)
    return figure


@_styled
def tuning(
    tables: Mapping[str, pd.DataFrame],
    methods: Mapping[str, Mapping],
    problems: Mapping[str, Mapping],
) -> Figure:
    """PSNR on the validation images over a tuned parameter, a panel per problem.

    ``tables`` maps the method to its trials (`rerg.tuning`); a method that tunes several parameters
    is left to its table. The values are relative to the declared one, so that all share an axis.
    """
    curves = {}
    for name, table in tables.items():
        parameters = table["parameters"].map(json.loads)
        if len(parameters[0]) == 1:
            (key,) = parameters[0]
            declared = methods.get(name, {}).get("parameters", {}).get(key, 1)
            curves[name] = table.assign(value=[p[key] / declared for p in parameters])
    names = in_order(pd.concat(tables)["problem"], list(problems))
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH, 1.6 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for ax, problem in zip(axes, names, strict=False):
        bests = []
        for name, table in curves.items():
            line = table[(table["problem"] == problem) & table["psnr"].notna()]
            line = line.sort_values("value")
            if line.empty:
                continue
            color = color_of(name, methods)
            style = "-" if color != OTHER else "--"
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
        ax.xaxis.set_major_locator(LogLocator(numticks=9))
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(labelbottom=True)
    for ax in axes[len(names) :]:
        ax.remove()
    labels = labels_of(methods)
    handles = [
        Line2D([], [], color=COLORS[name], label=labels.get(name, name))
        for name in in_order(pd.Series(list(curves)), list(COLORS))
        if name in COLORS
    ]
    if len(handles) < len(curves):
        handles.append(Line2D([], [], color=OTHER, linestyle="--", label="baselines"))
    for face, label in ((OTHER, "best"), ("white", "best, on the edge")):
        handles.append(Line2D([], [], color=OTHER, marker="o", linestyle="", mfc=face, label=label))
    figure.legend(handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / 2))
    figure.supxlabel("σ, or a baseline's parameter, relative to its declared value", fontsize=8)
    figure.supylabel("average PSNR on the validation images (dB)", fontsize=8)
    return figure
