"""Tables, against numbers worked out by hand."""

import re

import numpy as np
import pandas as pd
import pytest
from synthetic import synthetic_scores

from rerg.scores import COLUMNS
from rerg.statistics import Evidence, stretch
from rerg.tables import (
    PAGE_WIDTH,
    marks,
    quality,
    regret,
    shown_methods,
    solvers,
    write_table,
    write_tables,
)

METHODS = {
    "rg": {"label": "RG", "variant": "rg", "solver": "fast"},
    "deqgd": {"label": "DEQGD", "variant": "deqgd", "solver": "fast"},
    "rerg": {"label": "RERG", "variant": "rerg", "solver": "fast"},
    "rerg-gd": {"label": "RERG, GD", "variant": "rerg", "solver": "gd"},
    "tv": {"label": "TV & more"},
}
PROBLEMS = {
    "den15": {"label": "Denoising, σ = 15", "short": "σ = 15 %", "trained": True},
    "sr2": {"label": "Super-resolution ×2", "short": "SR ×2", "trained": False},
}
PSNR = {  # two images each
    ("den15", "initial"): [20, 22],
    ("den15", "rg"): [30, 31],
    ("den15", "deqgd"): [29, 31],
    ("den15", "rerg"): [30.001, 31.001],
    ("den15", "tv"): [33, 34],
    ("den15", "truth"): [np.inf, np.inf],
    ("sr2", "initial"): [24, 25],
    ("sr2", "rg"): [26, 27],
    ("sr2", "deqgd"): [28, 29],
    ("sr2", "rerg"): [29, 27],
    ("sr2", "rerg-gd"): [29, 27],
    ("sr2", "tv"): [np.nan, 27],
    ("sr2", "truth"): [np.inf, np.inf],
}


def table_of(psnr, **columns):
    rows = [
        {
            "run": "r",
            "dataset": "d",
            "problem": problem,
            "method": method,
            "seed": 0 if "variant" in METHODS.get(method, {}) else None,
            "image": f"i{number}",
            "psnr": value,
            "ssim": value / 100,
            "lpips": -value,
        }
        for (problem, method), values in psnr.items()
        for number, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**columns).reindex(columns=list(COLUMNS)).astype(COLUMNS)


def evidence_of(scores):
    return Evidence(scores, METHODS, list(PROBLEMS))


@pytest.fixture
def evidence():
    return evidence_of(table_of(PSNR))


def ranked(table):
    return [[m for m in table.columns if m not in ("initial", "truth")]]


def test_quality_is_the_mean_and_only_whole_methods_have_one(evidence, caplog):
    table, spreads = quality(evidence, "psnr")
    assert list(table.columns) == ["initial", "rg", "deqgd", "rerg", "tv", "truth"]
    assert list(table.index) == ["den15", "sr2", "mean"]
    assert table["rg"].tolist() == [30.5, 26.5, 28.5]
    assert table.loc[["sr2", "mean"], "tv"].isna().all()
    assert table.loc["den15", "tv"] == 33.5
    assert table["truth"].tolist() == [np.inf] * 3
    assert spreads.isna().all(axis=None)  # one seed
    assert "psnr of tv is empty on sr2: an image or a seed has no value" in caplog.text


def test_the_spread_is_over_the_means_of_seeds():
    scores = pd.concat(
        [table_of(PSNR), table_of({k: np.add(v, 2) for k, v in PSNR.items()}).assign(seed=1)]
    )
    scores = scores[scores["method"].isin(["rg", "rerg", "deqgd"])]
    late = scores["problem"].eq("sr2") & scores["seed"].eq(1)
    table, spreads = quality(evidence_of(scores.assign(psnr=scores["psnr"] - 2 * late)), "psnr")
    assert table["rg"].tolist() == [31.5, 26.5, 29]
    # Of two values the standard deviation is their distance over √2.
    np.testing.assert_allclose(spreads["rg"], [np.sqrt(2), 0, np.sqrt(0.5)])


def test_a_variant_on_a_part_of_the_problems_stands_in_other_tables(evidence):
    assert "rerg-gd" not in shown_methods(evidence)
    assert ("sr2", "rerg-gd") not in solvers(evidence).index  # as it reports no solver


def test_a_metric_that_no_row_has_is_one_line(caplog):
    table, _ = quality(evidence_of(table_of(PSNR).assign(lpips=np.nan)), "lpips")
    assert table.isna().all(axis=None)
    assert caplog.messages == ["lpips is empty throughout"]


def test_marks_share_ties_and_know_groups_and_rows(evidence):
    table, _ = quality(evidence, "psnr")
    marked = marks(table, "max", 2, ranked(table))
    # 30.501 prints as 30.50: RERG shares the second place with RG; TV is best.
    assert marked.loc["den15"].to_dict() == {
        "initial": "",
        "rg": "second",
        "deqgd": "",
        "rerg": "second",
        "tv": "best",
        "truth": "",
    }
    assert marked.loc["sr2", "deqgd"] == "best"
    assert marked.loc["sr2", "rerg"] == "second"
    assert marked["truth"].tolist() == ["", "", ""]
    pairs = marks(table, "max", 2, [["rg", "deqgd"], ["rerg", "tv"]], ["sr2"])
    assert pairs.loc["den15", ["rg", "deqgd"]].tolist() == ["best", "second"]
    assert pairs.loc["den15", ["rerg", "tv"]].tolist() == ["second", "best"]
    assert set(pairs.loc["sr2"]) == {""}
    table, _ = quality(evidence, "lpips")
    lower = marks(table, "min", 4, ranked(table))
    assert lower.loc["den15", ["tv", "rerg", "rg"]].tolist() == ["best", "second", ""]


def test_regret_is_the_best_rg_minus_this_one(evidence):
    table, _ = regret(evidence)
    assert list(table.columns) == ["rg", "deqgd", "rerg"]  # neither TV, which is better, nor GD
    np.testing.assert_allclose(table.loc[["den15", "sr2"], "rg"], [0.001, 2.0])
    np.testing.assert_allclose(table.loc[["den15", "sr2"], "rerg"], [0, 0.5], atol=1e-12)
    np.testing.assert_allclose(table.loc[["max", "mean"], "deqgd"], [0.501, 0.2505])
    # Two images: a resample holds the first twice, the second twice, or both, which is stretched
    # from equal weights. On sr2 RERG is then ahead of DEQGD, or behind it by more than 2 dB.
    weights = 0.5 + stretch(2) * np.array([[0.5, -0.5], [-0.5, 0.5]])
    behind = weights @ np.subtract(PSNR["sr2", "deqgd"], PSNR["sr2", "rerg"])
    assert table.loc["max_high", "rerg"] == pytest.approx(behind.max())
    assert table.loc["max_low", "rerg"] == 0  # of an interval that is symmetric about 0.5


def test_regrets_where_an_rg_lacks_a_problem():
    # It was not run: the others are compared with it on what all have.
    table, _ = regret(evidence_of(table_of({k: v for k, v in PSNR.items() if k != ("sr2", "rg")})))
    assert table.loc["sr2"].isna().all()
    assert table.loc[["den15", "max", "mean"], "rg"].tolist() == pytest.approx([0.001] * 3)
    # It has no value for an image: the best RG is not known, nor any regret.
    scores = table_of(PSNR | {("sr2", "rg"): [26, np.nan]})
    table, _ = regret(evidence_of(scores))
    assert table.loc[["sr2", "max", "max_low", "mean"]].isna().all(axis=None)
    assert table.loc["den15", "rg"] == pytest.approx(0.001)


def test_one_image_has_no_interval():
    table, _ = regret(evidence_of(table_of({k: v[:1] for k, v in PSNR.items()})))
    assert table.loc["max"].notna().all()
    assert table.loc[["max_low", "max_high", "mean_low", "mean_high"]].isna().all(axis=None)


def test_solvers_count_bounds_violations_and_stalls():
    scores = table_of(
        {("den15", "rerg"): [30, 20], ("den15", "tv"): [29, 29]},
        network_evaluations=[10, 30, None, None],
        converged=[True, False, None, None],
        stopped=["converged", "stalled", None, None],
        residual=[1e-4, 3e-4, None, None],
        error=[0.1, 0.2, 0.1, 0.1],
        bound=[0.3, None, None, None],
        bound_q=[0.5, 1.2, None, None],
        bound_violations=[0, 2, None, None],
        bound_iterates=[5, 3, None, None],
    )
    table = solvers(evidence_of(scores))
    assert table.index.tolist() == [("den15", "rerg")]  # TV reports no solver
    expected = [25, 20, 2e-4, 0.5, 0.5, 3, 1, 8, 2]
    np.testing.assert_allclose(table.loc[("den15", "rerg")].astype(float), expected)
    broken = evidence_of(scores.drop(index=1))  # the image's row is missing
    assert solvers(broken).loc[("den15", "rerg")].isna().all()


def test_the_formats_say_the_same(evidence, tmp_path):
    table, _ = quality(evidence, "psnr")
    write_table(
        table,
        tmp_path,
        "psnr",
        rows=[{"den15": "σ = 15 %"}],
        columns={"tv": "TV & more_50%", "rg": "RG, GD"},
        formats="{:.2f}",
        marked=marks(table, "max", 2, ranked(table)),
        notes=["a note & more"],
    )
    plain = pd.read_csv(tmp_path / "psnr.csv", index_col="problem")
    np.testing.assert_allclose(plain, table)
    markdown = (tmp_path / "psnr.md").read_text().splitlines()
    assert markdown[0] == "| problem | initial | RG, GD | deqgd | rerg | TV & more_50% | truth |"
    assert markdown[2] == (
        "| σ = 15 % | 21.00 | <u>30.50</u> | 30.00 | <u>30.50</u> | **33.50** | ∞ |"
    )
    assert markdown[3] == "| sr2 | 24.50 | 26.50 | **28.50** | <u>28.00</u> |  | ∞ |"
    assert markdown[-1] == "a note & more"
    latex = (tmp_path / "psnr.tex").read_text()
    assert r"problem & initial & \shortstack[r]{RG\\GD} & deqgd" in latex
    assert r"$\sigma$ = 15 \% & 21.00 & \underline{30.50} & 30.00" in latex
    assert r"\textbf{33.50} & $\infty$ \\" in latex
    assert r"TV \& more\_50\%" in latex and r"a note \& more" in latex
    page = (tmp_path / "psnr.html").read_text()
    assert "<td class=n><b>33.50</b></td>" in page and "<p>a note &amp; more</p>" in page


def test_several_seeds_stand_as_deviations(tmp_path):
    evidence = evidence_of(synthetic_scores(METHODS, PROBLEMS, seeds=(0, 1, 2)))
    write_tables(evidence, tmp_path, PROBLEMS)
    table, spreads = quality(evidence, "psnr")
    plain = pd.read_csv(tmp_path / "psnr.csv", index_col="problem")
    np.testing.assert_allclose(plain["rerg_sd"], spreads["rerg"], rtol=1e-6)
    assert plain["tv_sd"].isna().all()
    cell = f"{table.loc['den15', 'rg']:.2f} ± {spreads.loc['den15', 'rg']:.2f}"
    assert cell in (tmp_path / "psnr.md").read_text()
    assert cell.replace("±", r"$\pm$") in (tmp_path / "psnr.tex").read_text()


def test_a_destroyed_training_is_marked_and_not_ranked(tmp_path):
    scores = table_of(PSNR | {("den15", "rg"): [40, 41]})
    scores.loc[scores["method"] == "rg", "destroyed"] = "more than half of its images lost"
    write_tables(evidence_of(scores), tmp_path, PROBLEMS)
    for name in ("psnr", "regret"):
        text = (tmp_path / f"{name}.md").read_text()
        assert "| RG † |" in text
        assert "RG †: seed 0: more than half of its images lost" in text
        assert "dagger" in (tmp_path / f"{name}.tex").read_text()
    row = (tmp_path / "psnr.md").read_text().splitlines()[2]
    assert row == "| σ = 15 % | 21.00 | 40.50 | 30.00 | <u>30.50</u> | **33.50** | ∞ |"
    row = (tmp_path / "regret.md").read_text().splitlines()[2]
    assert row == "| σ = 15 % | -10.00 | <u>0.50</u> | **0.00** |"


def test_nothing_is_ranked_among_survivors(tmp_path):
    scores = table_of(PSNR | {("sr2", "tv"): [26, 27]})
    write_tables(evidence_of(scores), tmp_path / "whole", PROBLEMS)
    gone = (scores["method"] == "deqgd") & (scores["problem"] == "sr2") & (scores["image"] == "i1")
    write_tables(evidence_of(scores[~gone]), tmp_path / "broken", PROBLEMS)
    whole, broken = (
        (tmp_path / folder / "psnr.md").read_text().splitlines() for folder in ("whole", "broken")
    )
    assert whole[2] == broken[2]  # den15, which has all rows
    assert whole[3] == r"| SR ×2 \* | 24.50 | 26.50 | **28.50** | <u>28.00</u> | 26.50 | ∞ |"
    assert broken[3] == r"| SR ×2 \* | 24.50 | 26.50 |  | 28.00 | 26.50 | ∞ |"
    assert "**" in whole[4] and "**" not in broken[4]  # the mean over the problems


def test_a_procedure_on_some_problems_says_so(tmp_path):
    methods = METHODS | {
        f"{v}-adam": {"label": f"{v}, Adam-GD", "variant": v, "solver": "adam"}
        for v in ("rg", "rerg")
    }
    scores = synthetic_scores(methods, PROBLEMS)
    some = scores[~(scores["method"].str.endswith("-adam") & (scores["problem"] == "sr2"))]
    write_tables(Evidence(some, methods, list(PROBLEMS)), tmp_path, PROBLEMS)
    text = (tmp_path / "regret.md").read_text()
    assert "Adam-GD: maximum and mean over 1 of 2 problems (σ = 15 %)." in text
    plain = pd.read_csv(tmp_path / "regret.csv", index_col="problem")
    assert plain.loc["max", "rg-adam"] == plain.loc["den15", "rg-adam"]
    write_tables(Evidence(scores, methods, list(PROBLEMS)), tmp_path, PROBLEMS)
    assert "maximum and mean over" not in (tmp_path / "regret.md").read_text()


def printed(line):
    """A line of a LaTeX table as printed, about."""
    line = re.sub(r"\\(textbf|underline|shortstack\[r\])|[{}$^]|\\\\$", "", line)
    return re.sub(r"\\(pm|dagger|infty|times|sigma|geq)", "+", line)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_latex_tables_are_well_formed_and_fit_a_page(tmp_path, seeds):
    variants = ("red", "rg", "rg1", "deqgd", "rerg", "mtdeq")
    methods = {v: {"label": v.upper(), "variant": v, "solver": "fast"} for v in variants}
    methods |= {
        f"{v}-adam": {"label": f"{v.upper()}, Adam-GD", "variant": v, "solver": "adam"}
        for v in variants[1:-1]
    }
    methods |= {b: {"label": b} for b in ("TV & more", "Wiener", "BM3D", "DPIR with DRUNet")}
    problems = {f"p{i}": PROBLEMS["den15"] | {"short": f"Gaussian {i}"} for i in range(20)}
    scores = synthetic_scores(methods, problems, images=2, seeds=seeds)
    scores.loc[scores["method"] == "rg", "destroyed"] = "lost"
    write_tables(Evidence(scores, methods, list(problems)), tmp_path, problems)
    names = {path.stem for path in tmp_path.glob("*.tex")}
    assert names == {"psnr", "ssim", "lpips", "regret", "solvers"}
    for name in names:
        assert {p.suffix for p in tmp_path.glob(f"{name}.*")} == {".csv", ".md", ".tex", ".html"}
        latex = (tmp_path / f"{name}.tex").read_text()
        assert latex.isascii()
        assert latex.count("{") == latex.count("}")
        assert latex.count("$") % 2 == 0
        assert not re.search(r"(?<!\\)#", latex)
        blocks = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", latex, re.S)
        for alignment, block in blocks:
            body = [line for line in block.splitlines() if line.endswith(r"\\")]
            assert 1 < len(body) <= 51
            cells = [re.split(r"(?<!\\)&", line) for line in body]
            assert {len(line) for line in cells} == {len(alignment)}
            widths = [
                max(len(printed(c).strip()) for c in column)
                for column in zip(*cells[1:], strict=True)
            ]
            assert sum(4.25 * width + 6 for width in widths) < PAGE_WIDTH
        heads = "".join(block for _, block in blocks)
        for method in methods.values():
            if name == "psnr":
                label = method["label"].split(", ")[0].replace("&", r"\&")
                assert label in heads


def test_tables_are_the_same_bytes_again(tmp_path):
    scores = synthetic_scores(METHODS, PROBLEMS, seeds=(0, 1))
    for folder in ("one", "two"):
        write_tables(Evidence(scores, METHODS, list(PROBLEMS)), tmp_path / folder, PROBLEMS)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
