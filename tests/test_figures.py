"""Figures: every method drawn, in the same colour, at a readable size, with the same bytes."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from synthetic import synthetic_scores

from rerg import figures, tables

METHODS = {
    name: {"label": name.upper(), "variant": name, "solver": "fast"} for name in figures.COLORS
} | {
    "tv": {"label": "TV", "baseline": "tv"},
    "rg-gd": {"label": "RG, GD", "variant": "rg", "solver": "gd"},
    "rerg-gd": {"label": "RERG, GD", "variant": "rerg", "solver": "gd"},
}
PROBLEMS = {
    "den15": {"label": "Denoising", "short": "den", "trained": True},
    "com90": {"label": "Completion", "short": "com", "trained": False},
}


@pytest.fixture(scope="module")
def scores():
    table = synthetic_scores(METHODS, PROBLEMS)
    return table[~(table["method"].str.endswith("-gd") & (table["problem"] != "com90"))]


@pytest.fixture(scope="module")
def drawn(scores):
    return draw(scores)


def draw(scores):
    truth = np.random.default_rng(0).uniform(0, 1, (3, 40, 48))
    images = {"initial": truth + 0.3, "rerg": truth + 0.01, "tv": truth - 0.1, "truth": truth}
    curves = {
        "rg": pd.DataFrame({"evaluations": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}),
        "deqgd": pd.DataFrame(
            {"evaluations": [1, 2, 3], "loss": [3.0, 2.0, np.nan], "lost": [0.0, 0.5, 1.0]}
        ),
    }
    return {
        "examples": figures.examples({"den15": images}, METHODS, PROBLEMS),
        "iterations": figures.iterations(scores, "com90", METHODS, PROBLEMS),
        "regret": figures.regret(tables.regret(scores, PROBLEMS, 0), METHODS, PROBLEMS),
        "bound": figures.bound(scores, METHODS),
        "training": figures.training(curves, METHODS),
        "evaluations": figures.evaluations(scores, METHODS, PROBLEMS),
    }


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def line_colors(axes):
    return {to_hex(line.get_color()).upper() for line in axes.lines}


def test_colors_are_distinct_also_for_the_colour_blind():
    rgb = np.array([matplotlib.colors.to_rgb(c) for c in figures.COLORS.values()])
    # Viénot et al. 1999: what is left of linear RGB to a protanope and to a deuteranope.
    linear = rgb**2.2
    for kept in (
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    ):
        seen = (linear @ np.array(kept).T).clip(0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[~np.eye(len(seen), dtype=bool)].min() > 0.1


def test_a_method_has_the_colour_of_its_variant_everywhere(drawn):
    assert figures.color_of("rerg-gd", METHODS) == figures.color_of("rerg", METHODS)
    assert figures.color_of("tv", METHODS) == figures.OTHER
    rgs = {figures.COLORS[name] for name in tables.RGS}
    assert {figures.COLORS["rg"], figures.COLORS["rerg"]} < line_colors(drawn["iterations"].axes[0])
    assert line_colors(drawn["regret"].axes[1]) == rgs
    points = {to_hex(ax.collections[0].get_facecolor()[0]) for ax in drawn["bound"].axes}
    assert {p.upper() for p in points} == set(figures.COLORS.values())
    assert line_colors(drawn["evaluations"].axes[0]) == set(figures.COLORS.values())
    assert line_colors(drawn["training"].axes[1]) == {figures.COLORS["deqgd"]}


def test_every_method_is_named(drawn):
    labels = {name: METHODS[name]["label"] for name in figures.COLORS}
    assert set(labels.values()) <= set(texts(drawn["bound"]))
    assert set(labels.values()) | {"fast", "GD"} <= set(texts(drawn["evaluations"]))
    assert {labels[name] for name in tables.RGS} <= set(texts(drawn["regret"]))
    assert {"RG, GD", "RERG, GD", "initial image"} <= set(texts(drawn["iterations"]))
    label = drawn["iterations"].axes[0].get_xlabel()
    assert label == "network evaluations (dashed: plain GD)"
    assert {"RG, loss", "DEQGD, loss"} <= set(texts(drawn["training"]))
    assert {"initial\nimage\n10.46 dB", "RERG\n40.00 dB", "TV\n20.00 dB"} <= set(
        texts(drawn["examples"])
    )
    assert "com *" in texts(drawn["regret"])  # held out


@pytest.mark.parametrize("problem", ["com90"])
def test_the_averaged_trace_holds_after_convergence(problem):
    trace = figures.mean_trace(["[[1,10.0],[3,20.0]]", "[[1,20.0],[5,40.0]]"])
    np.testing.assert_allclose(trace, [[1, 15], [3, 25], [5, 30]])


def test_the_bound_counts_what_has_none(scores, drawn):
    for ax in drawn["bound"].axes:
        rows = scores[scores["method"] == ax.get_title().lower()]
        none = int((rows["bound_q"] >= 1).sum())
        assert f"{len(rows) - none} points\nq ≥ 1, no bound: {none}" in [
            t.get_text() for t in ax.texts
        ]
        assert ax.get_xscale() == ax.get_yscale() == "log"
        assert ax.get_xlim() == ax.get_ylim()


def test_the_share_of_fixed_points_is_what_is_not_lost(drawn):
    share = drawn["training"].axes[2]
    np.testing.assert_allclose(share.lines[0].get_ydata(), [100, 50, 0])


def test_the_zoom_is_the_window_of_the_largest_variance():
    image = np.zeros((3, 30, 50))
    image[:, 5:13, 20:28] = np.random.default_rng(0).uniform(-1, 1, (8, 8))
    assert figures.most_detailed(image, 8) == (5, 20)


@pytest.mark.parametrize("size", [7, 8])
def test_the_zoom_lies_inside(size):
    for corner in (np.s_[:, :2, :2], np.s_[:, -2:, -2:]):
        image = np.zeros((3, 30, 50))
        image[corner] = 1
        top, left = figures.most_detailed(image, size)
        assert 0 <= top <= 30 - size
        assert 0 <= left <= 50 - size
        window = image[:, top : top + size, left : left + size]
        assert window.sum() == 12


def test_files_are_readable_and_the_same_again(scores, tmp_path):
    again = draw(scores)
    for name, figure in draw(scores).items():
        assert figure.get_figwidth() in (figures.COLUMN, figures.WIDTH)
        assert min(t.get_fontsize() for t in figure.findobj(Text) if t.get_text()) >= 7
        for folder, copy in (("one", figure), ("two", again[name])):
            (tmp_path / folder).mkdir(exist_ok=True)
            pdf, png = (tmp_path / folder / f"{name}.{kind}" for kind in ("pdf", "png"))
            figures.save_figure(copy, pdf, png)
        for kind in ("pdf", "png"):
            content = (tmp_path / "one" / f"{name}.{kind}").read_bytes()
            assert len(content) > 5000
            assert content == (tmp_path / "two" / f"{name}.{kind}").read_bytes()
        image = matplotlib.image.imread(tmp_path / "one" / f"{name}.png")
        assert image[..., :3].std() > 0.02


def test_a_figure_without_its_data_says_why(scores):
    controls = scores[scores["method"].isin(["initial", "truth"])]
    for figure, reason in (
        (figures.iterations(scores, "den15", METHODS, PROBLEMS), "by GD on den15"),
        (figures.bound(controls, METHODS), "no restoration comes with a bound"),
        (figures.evaluations(controls, METHODS, PROBLEMS), "no restoration comes with a trace"),
        (figures.regret(tables.regret(controls, PROBLEMS, 0), METHODS, PROBLEMS), "no RG"),
    ):
        assert reason in " ".join(texts(figure))
