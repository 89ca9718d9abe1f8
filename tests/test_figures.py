"""Figures: every method drawn, in the same colour, at a readable size, with the same bytes."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from synthetic import synthetic_scores

from rerg import figures, labels
from rerg.config import InputError
from rerg.registry import variants
from rerg.statistics import Evidence
from rerg.trials import read_trials

COLORS = {name: variant.color for name, variant in variants().items()}
RGS = [name for name, variant in variants().items() if variant.regularizing_gradient]
METHODS = {
    name: {"label": variant.label, "variant": name, "solver": "fast"}
    for name, variant in variants().items()
} | {
    "tv": {"label": "TV"},
    "rg-gd": {"label": "RG, GD", "variant": "rg", "solver": "gd"},
    "rerg-gd": {"label": "RERG, GD", "variant": "rerg", "solver": "gd"},
}
PROBLEMS = {
    "den15": {"label": "Denoising", "short": "den", "trained": True},
    "com90": {"label": "Completion", "short": "com", "trained": False},
}


def evidence_of(scores):
    return Evidence(scores, METHODS, list(PROBLEMS))


@pytest.fixture(scope="module")
def scores():
    table = synthetic_scores(METHODS, PROBLEMS, seeds=(0, 1, 2))
    return table[~(table["method"].str.endswith("-gd") & (table["problem"] != "com90"))]


@pytest.fixture(scope="module")
def drawn(scores):
    return draw(scores)


def trials(problem, parameter, values, psnr):
    return pd.DataFrame(
        {"problem": problem, "parameters": [{parameter: v} for v in values], "psnr": psnr}
    )


def draw(scores):
    truth = np.random.default_rng(0).uniform(0, 1, (3, 40, 48))
    images = {"initial": truth + 0.3, "rerg": truth + 0.01, "tv": truth - 0.1, "truth": truth}
    learned = pd.DataFrame(
        {"evaluations": [1, 2, 3], "loss": [3.0, 2.0, np.nan], "lost": [0.0, 0.5, 1.0]}
    )
    curves = {
        ("rg", 0): pd.DataFrame({"evaluations": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}),
        ("deqgd", 0): learned,
        ("deqgd", 1): learned,
    }
    tuned = {
        "rg": trials("den15", "sigma_factor", [0.5, 1, 2], [30, 31, 30.5]),
        "rg-adam": trials("den15", "step_factor", [0.5, 1, 2], [30, 31, 30.5]),
        "tv": trials("den15", "weight", [0.05, 0.1], [28, 29]),
    }
    adam = {"label": "RG, Adam-GD", "variant": "rg", "solver": "adam"}
    tuners = METHODS | {"rg-adam": adam}
    evidence = evidence_of(scores)
    return {
        "examples": figures.examples({"den15": images}, METHODS, PROBLEMS),
        "iterations": figures.iterations(evidence, "com90", PROBLEMS),
        "regret": figures.regret(evidence, PROBLEMS),
        "bound": figures.bound(evidence),
        "training": figures.training(curves, METHODS),
        "evaluations": figures.evaluations(evidence, PROBLEMS),
        "tuning": figures.tuning(tuned, tuners, {"tv": {"weight": 0.1}}, PROBLEMS),
    }


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def line_colors(axes):
    return {to_hex(line.get_color()).upper() for line in axes.lines}


def test_colors_are_distinct_also_for_the_colour_blind():
    rgb = np.array([matplotlib.colors.to_rgb(c) for c in COLORS.values()])
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
    assert labels.color_of("rerg-gd", METHODS) == labels.color_of("rerg", METHODS)
    assert labels.color_of("tv", METHODS) == labels.OTHER
    assert {COLORS["rg"], COLORS["rerg"]} < line_colors(drawn["iterations"].axes[0])
    assert line_colors(drawn["regret"].axes[1]) == {COLORS[name] for name in RGS}
    points = {to_hex(ax.collections[0].get_facecolor()[0]) for ax in drawn["bound"].axes}
    assert {p.upper() for p in points} == set(COLORS.values())
    assert line_colors(drawn["evaluations"].axes[0]) == set(COLORS.values())
    assert line_colors(drawn["training"].axes[0]) == {COLORS["deqgd"]}  # the order of the methods
    assert line_colors(drawn["training"].axes[1]) == {COLORS["rg"]}
    assert line_colors(drawn["tuning"].axes[0]) == {COLORS["rg"], labels.OTHER}
    styles = [line.get_linestyle() for line in drawn["tuning"].axes[0].lines]
    assert [style for style in styles if style != "None"] == ["-", ":", "--"]


def test_every_method_is_named(drawn):
    names = {variant.label for variant in variants().values()}
    assert names <= set(texts(drawn["bound"]))
    assert {"RG", "step of Adam-GD", "baselines"} <= set(texts(drawn["tuning"]))
    assert names | {"fast", "GD"} <= set(texts(drawn["evaluations"]))
    assert {METHODS[name]["label"] for name in RGS} <= set(texts(drawn["regret"]))
    assert {"RG", "RERG", "initial image"} <= set(texts(drawn["iterations"]))
    assert drawn["iterations"].axes[0].get_xlabel() == "network evaluations (GD)"
    assert {"RG, loss", "DEQGD, loss"} <= set(texts(drawn["training"]))
    assert {"initial\nimage\n10.46 dB", "RERG\n40.00 dB", "TV\n20.00 dB"} <= set(
        texts(drawn["examples"])
    )
    assert "com *" in texts(drawn["regret"])  # held out


def test_the_worst_case_shows_the_mean_its_interval_and_every_seed(scores, drawn):
    evidence = evidence_of(scores)
    rgs = [rg for group in evidence.procedures.values() for rg in group]
    right = drawn["regret"].axes[1]
    assert len(right.lines) == 5 * len(rgs)
    for i, rg in enumerate(rgs):
        ends, mean, *seeds = (line.get_xdata() for line in right.lines[5 * i : 5 * i + 5])
        assert tuple(ends) == evidence.interval(evidence.worst_regret(rg))
        assert mean[0] == evidence.worst_regret(rg)[0]
        for of_seed, (x,) in zip((0, 1, 2), seeds, strict=True):
            alone = scores[scores["seed"].isna() | (scores["seed"] == of_seed)]
            assert x == pytest.approx(evidence_of(alone).worst_regret(rg)[0])


def test_the_regrets_of_two_solvers_stand_apart():
    methods = METHODS | {
        f"{v}-adam": {"label": f"{v}, Adam-GD", "variant": v, "solver": "adam"} for v in RGS
    }
    table = synthetic_scores(methods, PROBLEMS, images=3)
    table.loc[table["method"] == "rg", "destroyed"] = "lost"
    figure = figures.regret(Evidence(table, methods, list(PROBLEMS)), PROBLEMS)
    heights = {line.get_ydata()[0] for line in figure.axes[0].lines}
    assert heights == {len(RGS), len(RGS) + 2}  # by the fast solver, by GD, by Adam-GD
    assert {"rerg, Adam-GD", "RG †"} <= set(texts(figure))


def test_descents_by_two_solvers_are_told_apart():
    methods = METHODS | {"rg-adam": {"label": "RG, Adam-GD", "variant": "rg", "solver": "adam"}}
    table = synthetic_scores(methods, PROBLEMS, images=3)
    figure = figures.iterations(Evidence(table, methods, list(PROBLEMS)), "com90", PROBLEMS)
    styles = {line.get_label(): line.get_linestyle() for line in figure.axes[0].lines}
    assert styles["RG, GD"] == styles["RERG, GD"] != styles["RG, Adam-GD"]


def test_a_method_that_lacks_a_trace_is_not_drawn(scores, caplog):
    here = (scores["method"] == "rg-gd") & (scores["image"] == "image1")
    broken = scores.assign(trace=scores["trace"].mask(here & (scores["seed"] == 2)))
    figure = figures.iterations(evidence_of(broken), "com90", PROBLEMS)
    assert line_colors(figure.axes[0]) == {COLORS["rerg"], labels.OTHER}
    assert "rg-gd on com90 is not drawn: an image has no trace" in caplog.text
    caplog.clear()
    figures.iterations(evidence_of(scores[~here]), "com90", PROBLEMS)
    assert "rg-gd on com90 is not drawn" in caplog.text


@pytest.mark.parametrize("problems", [1, 3, 5])
def test_no_label_of_a_tuning_is_cut(problems):
    names = {f"p{i}": PROBLEMS["den15"] for i in range(problems)}
    table = pd.concat(trials(p, "sigma_factor", [0.5, 1, 2], [30, 31, 30]) for p in names)
    figure = figures.tuning({"rg": table}, METHODS, {}, names)
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * figure.dpi
    titles = [ax.title for ax in figure.axes]
    shown = [*figure.texts, *figure.legends[0].get_texts(), *titles]
    assert len(shown) == 2 + 3 + problems  # the labels of the axes, RG and two kinds of best
    for text in shown:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width, text.get_text()
        assert box.y0 >= 0 and box.y1 <= height, text.get_text()


def test_tables_of_trials_and_curves_are_read_as_text(tmp_path):
    path = tmp_path / "rg.csv"
    rows = [(name, json.dumps({"sigma_factor": 1}), "30.5") for name in ("50", "1e3", "NA")]
    table = pd.DataFrame(rows, columns=["problem", "parameters", "psnr"])
    table.loc[2, "psnr"] = ""
    table.to_csv(path, index=False)
    read = read_trials(path)
    assert read["problem"].tolist() == ["50", "1e3", "NA"]
    assert read["parameters"].tolist() == [{"sigma_factor": 1}] * 3
    assert read["psnr"].tolist()[:2] == [30.5, 30.5] and np.isnan(read["psnr"][2])
    curve = tmp_path / "rg.training.csv"
    curve.write_text("step,evaluations,loss,note\n1,2,0.5,back\n2,4,,\n")
    read = figures.read_curve(curve)
    assert read["evaluations"].tolist() == [2, 4] and np.isnan(read["loss"][1])
    for content, message in (
        ("", "not a CSV table"),
        ("problem,parameters\nden15,{}\n", "column 'psnr' is missing"),
        ("problem,parameters,psnr\n", "the table has no rows"),
        ("problem,parameters,psnr\nden15,[1],30\n", "expected JSON mappings"),
        ('problem,parameters,psnr\nden15,"{},30\n', "not a CSV table"),
    ):
        path.write_text(content)
        with pytest.raises(InputError) as error:
            read_trials(path)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="column 'loss' is missing"):
        curve.write_text("evaluations\n1\n")
        figures.read_curve(curve)


@pytest.mark.parametrize("problem", ["com90"])
def test_the_averaged_trace_holds_after_convergence(problem):
    trace = figures.mean_trace(["[[1,10.0],[3,20.0]]", "[[1,20.0],[5,40.0]]"])
    np.testing.assert_allclose(trace, [[1, 15], [3, 25], [5, 30]])


def test_the_bound_counts_what_has_none(scores, drawn):
    for ax in drawn["bound"].axes:
        (name,) = (n for n, v in variants().items() if v.label == ax.get_title())
        rows = scores[scores["method"] == name]
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
    nothing = evidence_of(controls)
    for figure, reason in (
        (figures.iterations(evidence_of(scores), "den15", PROBLEMS), "by GD on den15"),
        (figures.bound(nothing), "no restoration comes with a bound"),
        (figures.evaluations(nothing, PROBLEMS), "no restoration comes with a trace"),
        (figures.regret(nothing, PROBLEMS), "no two RGs were scored with one solver"),
        (figures.training({}, METHODS), "no variant was trained"),
        (figures.tuning({}, METHODS, {}, PROBLEMS), "nothing was tuned"),
    ):
        assert reason in " ".join(texts(figure))
