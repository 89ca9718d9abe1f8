"""Tables, against numbers worked out by hand."""

import re

import numpy as np
import pandas as pd
import pytest
from synthetic import synthetic_scores

from rerg.scores import COLUMNS
from rerg.tables import marks, quality, regret, solvers, write_table, write_tables

METHODS = {
    "rg": {"label": "RG", "variant": "rg", "solver": "fast"},
    "deqgd": {"label": "DEQGD", "variant": "deqgd", "solver": "fast"},
    "rerg": {"label": "RERG", "variant": "rerg", "solver": "fast"},
    "rerg-gd": {"label": "RERG, GD", "variant": "rerg", "solver": "gd"},
    "tv": {"label": "TV & more", "baseline": "tv"},
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
            "image": f"i{number}",
            "psnr": value,
            "ssim": value / 100,
            "lpips": -value,
        }
        for (problem, method), values in psnr.items()
        for number, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**columns).reindex(columns=list(COLUMNS)).astype(COLUMNS)


@pytest.fixture
def scores():
    return table_of(PSNR)


def test_quality_is_the_mean_and_only_whole_methods_have_one(scores, caplog):
    table = quality(scores, "psnr", METHODS, PROBLEMS)
    assert list(table.index) == ["initial", "rg", "deqgd", "rerg", "tv", "truth"]
    assert list(table.columns) == ["den15", "sr2", "mean"]
    assert table.loc["rg"].tolist() == [30.5, 26.5, 28.5]
    assert np.isnan(table.loc["tv", ["sr2", "mean"]].astype(float)).all()
    assert table.loc["tv", "den15"] == 33.5
    assert table.loc["truth"].tolist() == [np.inf] * 3
    assert "psnr of tv on sr2 is empty" in caplog.text


def test_marks_leave_out_the_controls_and_share_ties(scores):
    table = quality(scores, "psnr", METHODS, PROBLEMS)
    marked = marks(table, "max", 2)
    # 30.501 prints as 30.50: RERG shares the second place with RG; TV is best.
    assert marked["den15"].to_dict() == {
        "initial": "",
        "rg": "second",
        "deqgd": "",
        "rerg": "second",
        "tv": "best",
        "truth": "",
    }
    assert marked.loc["deqgd", "sr2"] == "best"
    assert marked.loc["rerg", "sr2"] == "second"
    assert marked.loc["truth"].tolist() == ["", "", ""]
    lower = marks(quality(scores, "lpips", METHODS, PROBLEMS), "min", 4)
    assert lower.loc["tv", "den15"] == "best"
    assert lower.loc["rerg", "den15"] == "second"
    assert lower.loc["rg", "den15"] == ""


def test_regret_is_the_best_rg_minus_this_one(scores):
    table = regret(scores, PROBLEMS, seed=0)
    assert list(table.index) == ["rg", "deqgd", "rerg"]  # neither TV, which is better, nor GD
    np.testing.assert_allclose(table.loc["rg", ["den15", "sr2"]].astype(float), [0.001, 2.0])
    np.testing.assert_allclose(table.loc["rerg", ["den15", "sr2"]].astype(float), [0, 0.5])
    np.testing.assert_allclose(table.loc["deqgd", ["max", "mean"]].astype(float), [0.501, 0.2505])
    # Two images: a resample holds the first twice, the second twice, or both. With i0 twice RERG
    # is 1 dB better than DEQGD on sr2, with i1 twice 2 dB worse.
    assert table.loc["rerg", "max_low"] == pytest.approx(0)
    assert table.loc["rerg", "max_high"] == pytest.approx(2)


def test_regret_of_an_rg_without_a_problem_is_empty():
    scores = table_of({k: v for k, v in PSNR.items() if k != ("sr2", "rg")})
    table = regret(scores, PROBLEMS, seed=0)
    assert np.isnan(table.loc["rg", ["sr2", "max", "mean", "max_low"]].astype(float)).all()
    assert table.loc["rg", "den15"] == pytest.approx(0.001)


def test_one_image_has_no_interval():
    table = regret(table_of({k: v[:1] for k, v in PSNR.items()}), PROBLEMS, seed=0)
    assert table["max"].notna().all()
    assert table[["max_low", "max_high", "mean_low", "mean_high"]].isna().all(axis=None)


def test_solvers_count_bounds_and_violations():
    scores = table_of(
        {("den15", "rerg"): [30, 20], ("den15", "tv"): [29, 29]},
        network_evaluations=[10, 30, None, None],
        converged=[True, False, None, None],
        residual=[1e-4, 3e-4, None, None],
        error=[0.1, 0.2, 0.1, 0.1],
        bound=[0.3, None, None, None],
        bound_q=[0.5, 1.2, None, None],
        bound_violations=[0, 2, None, None],
        bound_iterates=[5, 3, None, None],
    )
    table = solvers(scores, METHODS, PROBLEMS)
    assert table.index.tolist() == [("den15", "rerg")]  # TV reports no solver
    expected = [25, 20, 2e-4, 0.5, 3, 1, 8, 2]
    np.testing.assert_allclose(table.loc[("den15", "rerg")].astype(float), expected)


def test_the_three_formats_say_the_same(scores, tmp_path):
    table = quality(scores, "psnr", METHODS, PROBLEMS)
    write_table(
        table,
        tmp_path,
        "psnr",
        rows=[{"tv": "TV & more_50%"}],
        columns={"den15": "σ = 15 %"},
        formats="{:.2f}",
        marked=marks(table, "max", 2),
    )
    plain = pd.read_csv(tmp_path / "psnr.csv", index_col="method")
    np.testing.assert_allclose(plain, table)
    markdown = (tmp_path / "psnr.md").read_text().splitlines()
    assert markdown[0] == "| method | σ = 15 % | sr2 | mean |"
    assert "| TV & more_50% | **33.50** |  |  |" in markdown
    assert "| deqgd | 30.00 | **28.50** | **29.25** |" in markdown
    assert "| rg | <u>30.50</u> | 26.50 | <u>28.50</u> |" in markdown
    assert "| truth | ∞ | ∞ | ∞ |" in markdown
    latex = (tmp_path / "psnr.tex").read_text()
    assert r"TV \& more\_50\% & \textbf{33.50} &  &  \\" in latex
    assert r"method & $\sigma$ = 15 \% & sr2 & mean \\" in latex
    assert r"rg & \underline{30.50} & 26.50 & \underline{28.50} \\" in latex
    assert (
        "<td>TV &amp; more_50%</td><td class=n><b>33.50</b></td>"
        in (tmp_path / "psnr.html").read_text()
    )


def test_every_latex_table_is_well_formed_for_pdflatex(tmp_path):
    methods = {m: METHODS[m] for m in ("rg", "deqgd", "rerg", "tv")}
    write_tables(synthetic_scores(methods, PROBLEMS), tmp_path, methods, PROBLEMS, seed=0)
    names = {path.stem for path in tmp_path.glob("*.tex")}
    assert names == {"psnr", "ssim", "lpips", "regret", "solvers"}
    for name in names:
        assert {p.suffix for p in tmp_path.glob(f"{name}.*")} == {".csv", ".md", ".tex", ".html"}
        latex = (tmp_path / f"{name}.tex").read_text()
        assert latex.isascii()
        assert latex.count("{") == latex.count("}")
        assert latex.count("$") % 2 == 0
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", latex)[1])
        body = [line for line in latex.splitlines() if line.endswith(r"\\")]
        assert len(body) > 1
        for line in body:
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
        assert not re.search(r"(?<!\\)[%#_]", latex)


def test_tables_are_the_same_bytes_again(tmp_path):
    scores = synthetic_scores(METHODS, PROBLEMS)
    for folder in ("one", "two"):
        write_tables(scores, tmp_path / folder, METHODS, PROBLEMS, seed=0)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
