"""Claims: the language, the quantities by hand, all three verdicts, every bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_scores

from rerg.claims import FAILED, REPRODUCED, UNDECIDED, Evidence, decide, judge, page, scorecard
from rerg.config import InputError, read_yaml
from rerg.expressions import parse, read_claims

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow/schemas/claims.schema.yaml"
METHODS = {
    "rg": {"label": "RG", "variant": "rg", "solver": "fast"},
    "rg1": {"label": "RG1", "variant": "rg1", "solver": "fast"},
    "deqgd": {"label": "DEQGD", "variant": "deqgd", "solver": "fast"},
    "rerg": {"label": "RERG", "variant": "rerg", "solver": "fast"},
    "rerg-gd": {"label": "RERG, GD", "variant": "rerg", "solver": "gd"},
    "mtdeq": {"label": "MTDEQ", "variant": "mtdeq", "solver": "fast"},
}
PROBLEMS = ["den15", "com90"]


@pytest.fixture
def scores():
    return synthetic_scores(METHODS, PROBLEMS, images=8)


def verdict_of(expression, scores, seed=0):
    claim = {"id": "x", "text": "", "source": "ours", "reading": "", "expression": expression}
    comparison = parse(expression, METHODS, PROBLEMS)
    return decide(claim | {"comparison": comparison}, scores, seed)


def with_psnr(scores, method, values, problem="den15"):
    """Scores where a method's PSNR is RERG's plus the values, on one problem."""
    scores = scores.copy()
    here = (scores["method"] == method) & (scores["problem"] == problem)
    other = scores[(scores["method"] == "rerg") & (scores["problem"] == problem)]
    scores.loc[here, "psnr"] = other["psnr"].to_numpy() + values
    return scores


@pytest.mark.parametrize(
    ("offsets", "verdict"),
    [
        ([-0.5, -0.4, -0.6, -0.5, -0.3, -0.5, -0.4, -0.5], REPRODUCED),
        ([0.5, 0.4, 0.6, 0.5, 0.3, 0.5, 0.4, 0.5], FAILED),
        ([0.5, -0.5, 0.6, -0.4, 0.1, -0.1, 0.3, -0.3], UNDECIDED),
    ],
)
def test_the_paired_interval_decides(scores, offsets, verdict):
    scores = with_psnr(scores, "rg", offsets)
    result = verdict_of("psnr(rerg, den15) > psnr(rg, den15)", scores)
    assert result["verdict"] == verdict
    assert result["difference"] == pytest.approx(-np.mean(offsets), abs=1e-5)
    low, high = result["interval"]
    assert low <= result["difference"] <= high
    assert high - low < 1  # PSNR varies by 2 dB over the images; only pairing is this sharp
    assert result["images"] == 8
    mirrored = verdict_of("psnr(rg, den15) < psnr(rerg, den15)", scores)
    assert mirrored["verdict"] == verdict


def test_a_tie_is_not_a_victory(scores):
    scores = with_psnr(scores, "rg", 0.0)
    assert verdict_of("psnr(rerg, den15) > psnr(rg, den15)", scores)["verdict"] == FAILED
    assert verdict_of("psnr(rerg, den15) >= psnr(rg, den15)", scores)["verdict"] == REPRODUCED


def test_quantities_equal_their_definitions(scores):
    cells = scores.groupby(["method", "problem"])["psnr"].mean()
    rgs = ["rg", "rg1", "deqgd", "rerg"]
    regrets = {
        m: [max(cells[r, p] for r in rgs) - cells[m, p] for p in PROBLEMS] for m in (*rgs, "mtdeq")
    }
    both = scores.pivot(index=["problem", "image"], columns="method", values="converged")
    quality = scores.pivot(index=["problem", "image"], columns="method", values="psnr")
    both = (both["rerg"] & both["rerg-gd"]).astype(bool)
    assert 0 < both.sum() < len(both)
    evaluations = scores[scores["method"] == "mtdeq"]["network_evaluations"]
    expected = {
        "psnr(rg, com90)": cells["rg", "com90"],
        "mean_psnr(rg)": cells["rg"].mean(),
        "regret(rg1, com90)": regrets["rg1"][1],
        "worst_regret(rg1)": max(regrets["rg1"]),
        "mean_regret(deqgd)": np.mean(regrets["deqgd"]),
        "worst_regret(mtdeq)": max(regrets["mtdeq"]),
        "evaluations(mtdeq)": evaluations.mean(),
        "gap(rerg-gd, rerg)": (quality["rerg-gd"] - quality["rerg"]).abs()[both].mean(),
        "violations(rg)": 0,
        "min(1, mean_psnr(rg), 2) - -3 * 4 / 2": 7,
        "max(psnr(rg, den15), psnr(rg, com90))": max(cells["rg"]),
    }
    for expression, value in expected.items():
        result = verdict_of(f"{expression} < 1000", scores)
        assert result["left"] == pytest.approx(value, rel=1e-6, abs=1e-6), expression
        assert result["verdict"] == REPRODUCED


def test_the_bootstrap_of_a_regret_takes_the_best_anew(scores):
    comparison = parse("worst_regret(rerg) <= 0", METHODS, PROBLEMS)
    evidence = Evidence(scores, comparison, seed=0)
    best = np.max([evidence.psnr(rg, "den15") for rg in evidence.rgs], axis=0)
    np.testing.assert_allclose(evidence.regret("rg", "den15"), best - evidence.psnr("rg", "den15"))
    assert (evidence.worst_regret("rerg") >= 0).all()


def test_one_violation_refutes(scores):
    assert verdict_of("violations(rg) <= 0", scores)["verdict"] == REPRODUCED
    row = scores.index[(scores["method"] == "rg")][3]
    scores.loc[row, "bound_violations"] = 1
    result = verdict_of("violations(rg) + violations(rerg) <= 0", scores)
    assert result["verdict"] == FAILED
    assert result["interval"] == [1, 1]


def empty_cell(scores):
    scores.loc[scores.index[scores["method"] == "rg"][0], "psnr"] = np.nan
    return scores


def only_denoising(scores):
    return scores[~((scores["method"] == "rerg-gd") & (scores["problem"] == "com90"))]


def nothing_converged(scores):
    return scores.assign(converged=False).astype({"converged": "boolean"})


@pytest.mark.parametrize(
    ("expression", "change", "reason"),
    [
        (
            "psnr(rg, den15) > 0",
            lambda s: s[s["method"] != "rg"],
            "needs method rg, not in this run",
        ),
        ("psnr(rerg-gd, com90) > 0", only_denoising, "needs problem com90 by all its methods"),
        ("mean_psnr(rg) > 0", empty_cell, "psnr of rg on den15 is empty for an image"),
        ("gap(rerg-gd, rerg) < 1", nothing_converged, "rerg-gd and rerg have no image where both"),
        ("psnr(rg, den15) > 0", lambda s: s[s["image"] == "image0"], "one image has no interval"),
        (
            "violations(rg) <= 0",
            lambda s: s.assign(bound_iterates=0).astype({"bound_iterates": "Int64"}),
            "rg has no iterate with q < 1",
        ),
        ("psnr(rg, den15) / violations(rg) > 0", lambda s: s, "the numbers are not finite"),
    ],
)
def test_what_the_scores_lack_leaves_a_claim_undecided(scores, expression, change, reason):
    result = verdict_of(expression, change(scores))
    assert result["verdict"] == UNDECIDED
    assert reason in result["reason"]


def test_methods_are_compared_on_the_problems_that_all_have(scores):
    scores = only_denoising(scores)
    result = verdict_of("mean_psnr(rerg) > mean_psnr(rerg-gd)", scores)
    assert result["problems"] == ["den15"]
    means = scores[scores["problem"] == "den15"].groupby("method")["psnr"].mean()
    assert result["left"] == pytest.approx(means["rerg"], rel=1e-6)


def test_the_shipped_claims_are_judged_and_written(scores):
    methods = [*read_yaml(ROOT / "config/methods.yaml"), "tv"]
    problems = list(read_yaml(ROOT / "config/problems.yaml"))
    claims = read_claims(ROOT / "config/claims.yaml", SCHEMA, methods, problems)
    assert {claim["source"] for claim in claims} == {"paper", "ours"}
    result = judge(claims, scores, seed=0)
    by_name = {claim["id"]: claim for claim in result["claims"]}
    assert by_name["rerg-consistent"]["verdict"] == REPRODUCED  # so the scores were made
    assert by_name["mtdeq-fewer-evaluations"]["verdict"] == REPRODUCED
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == judge(claims, scores, seed=0)
    text = scorecard(result)
    verdicts = [claim["verdict"] for claim in result["claims"]]
    assert f"{verdicts.count(REPRODUCED)} reproduced, " in text
    for claim in result["claims"]:
        assert f"| **{claim['verdict']}** | {claim['text']}" in text
        assert f"<td>{claim['verdict']}</td>" in page(result)


GOOD = {"id": "a-claim", "text": "t", "source": "ours", "reading": "r", "expression": "1 < 2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expression": "psnr(rergg, den15) > 0"}, "expression: unknown method rergg; known: rg, "),
        (
            {"expression": "psnr(rerg, den51) > 0"},
            "expression: unknown problem den51; known: den15",
        ),
        ({"expression": "pnsr(rerg) > 0"}, "expression: unknown quantity pnsr; known: psnr, "),
        ({"expression": "psnr(rerg) > 0"}, "expression: psnr takes method, problem; got 1"),
        ({"expression": "mean_psnr(rerg >"}, "expression: not an expression: "),
        ({"expression": "mean_psnr(rerg)"}, "expression: expected one comparison by <, <=, >, >="),
        ({"expression": "1 < 2 < 3"}, "expression: expected one comparison"),
        ({"expression": "1 == 1"}, "expression: expected one comparison"),
        ({"expression": "__import__('os').system('x') > 0"}, "expression: not allowed: __import__"),
        ({"expression": "rerg.__class__ > 0"}, "expression: not allowed: rerg.__class__"),
        ({"expression": "2 ** 9 > 0"}, "expression: not allowed: 2 ** 9"),
        ({"expression": "'a' > 0"}, "expression: not allowed: 'a'"),
        ({"expresion": "1 < 2"}, "expresion: unknown key"),
        ({"source": "hearsay"}, "source: expected one of paper, ours"),
    ],
)
def test_a_bad_claim_is_one_line_that_names_it(tmp_path, change, message):
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps([GOOD | change]))  # JSON is YAML
    with pytest.raises(InputError) as error:
        read_claims(path, SCHEMA, list(METHODS), PROBLEMS)
    assert str(error.value).startswith(f"{path}: claim a-claim: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([GOOD, GOOD], "claim a-claim: the id is used twice"),
        ({"claims": []}, "expected a list of claims"),
        ([{k: v for k, v in GOOD.items() if k != "reading"}], "claim a-claim: reading: missing"),
        (["a claim"], "claim 1: "),
    ],
)
def test_a_bad_list_of_claims_is_one_line(tmp_path, content, message):
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_claims(path, SCHEMA, list(METHODS), PROBLEMS)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)
