"""The whole DAG on a tiny config: artefacts, determinism, reruns, stored scores, faults."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

RUN = Path("results/tiny")
VARYING = ["seconds", "peak_memory_mb"]


def copy_of_the_repository(folder: Path) -> Path:
    """The working tree without what a run makes."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".snakemake", "__pycache__", "[a-z]*.egg-info"
    )
    shutil.copytree(ROOT, folder, ignore=ignored)
    for run in (folder / "results").glob("*/"):
        shutil.rmtree(run)
    return folder


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run snakemake in a copy, on the tiny config."""
    command = [sys.executable, "-m", "snakemake", "--configfile", "tests/tiny.yaml", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def jobs(done: subprocess.CompletedProcess) -> set[str]:
    """The rules that a dry run lists."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if not any(line.startswith("job ") for line in lines):
        return set()
    start = next(i for i, line in enumerate(lines) if line.startswith("job ")) + 2
    names = [line.split()[0] for line in lines[start:] if line.strip()]
    return set(names[: names.index("total")])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A copy in which the tiny run is finished."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("finished") / "rerg")
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_artefact_is_there(finished):
    results = finished / RUN
    for name in ("scores.csv", "claims.md", "claims.json", "provenance.json"):
        assert (results / name).stat().st_size > 0
    tables = {path.name for path in (results / "tables/embedded-test").iterdir()}
    assert {f"{t}.{s}" for t in ("psnr", "ssim", "lpips") for s in ("csv", "md", "tex")} <= tables
    figures = {path.name for path in (results / "figures").rglob("*.p*")}
    names = ("examples", "iterations", "regret", "bound", "evaluations", "training")
    assert {f"{f}.{s}" for f in names for s in ("pdf", "png")} <= figures
    assert not any((results / "checkpoints").rglob("*.*"))


def test_scores_have_a_row_per_image_and_the_bound_holds(finished):
    scores = pd.read_csv(finished / RUN / "scores.csv")
    methods = {"red", "rerg", "mtdeq", "initial", "truth"}
    for problem in ("den25", "sr2", "com80"):
        rows = scores[scores.problem == problem]
        extra = {"den25": {"wiener"}, "com80": {"rerg-gd", "rerg-adam"}}.get(problem, set())
        assert set(rows.method) == methods | extra
        assert (rows.groupby("method").size() == 8).all()
    fast = scores[scores.method.isin(["red", "rerg"])]
    assert (fast.bound_violations == 0).all()
    sure = fast[fast.bound_q < 1]
    assert len(sure) > 0 and (sure.error <= sure.bound * (1 + 1e-5)).all()
    assert fast[fast.bound_q >= 1].bound.isna().all()
    truth = scores[scores.method == "truth"]
    assert (truth.psnr == float("inf")).all() and (truth.ssim == 1).all()


def test_every_variant_had_its_budget(finished):
    for variant in ("red", "rerg", "mtdeq"):
        about = json.loads((finished / RUN / "models" / f"{variant}.json").read_text())
        # the last step may exceed it by one solve: forward, tracked, backward, and the bound's
        assert 200 <= about["evaluations"] <= 200 + 40 + 2 + 15 + 6


def test_provenance_names_what_the_run_comes_from(finished):
    about = json.loads((finished / RUN / "provenance.json").read_text())
    assert about["seed"] == 0 and about["run"] == "tiny"
    assert about["packages"]["torch"] and about["machine"]["processor"]
    assert set(about["models"]) == {"red", "rerg", "mtdeq"}
    assert set(about["data"]) == {"embedded-train", "embedded-validation", "embedded-test"}
    assert about["wall_time"]["train"]["jobs"] == 3


def test_nothing_is_left_to_do(finished):
    assert "Nothing to be done" in snakemake(finished, "-n").stdout


@pytest.mark.parametrize(
    ("module", "rerun", "kept"),
    [
        ("rerg/figures.py", {"draw_scores", "draw_examples"}, {"score_den25", "train", "tables"}),
        ("rerg/scores.py", {"score_den25", "collect_scores", "tables", "claims"}, {"train"}),
        ("rerg/variants/rerg.py", {"train", "restore_rerg_den25"}, {"observe_den25", "prepare"}),
    ],
)
def test_an_edited_module_reruns_the_stages_that_use_it(finished, module, rerun, kept):
    path = finished / module
    content, before = path.read_bytes(), path.stat()
    path.write_bytes(content + b"\n# edited\n")
    try:
        listed = jobs(snakemake(finished, "-n"))
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rerun <= listed and not kept & listed
    assert "Nothing to be done" in snakemake(finished, "-n").stdout


def test_two_runs_give_the_same_scores(finished, tmp_path):
    folder = copy_of_the_repository(tmp_path / "again")
    target = str(RUN / "scores.csv")
    done = snakemake(folder, "--cores", "2", target)
    assert done.returncode == 0, done.stdout + done.stderr

    def stable(path: Path) -> str:
        return pd.read_csv(path / target, dtype=str).drop(columns=VARYING).to_csv()

    assert stable(folder) == stable(finished)


def test_figures_from_stored_scores_alone(finished, tmp_path):
    folder = copy_of_the_repository(tmp_path / "stored")
    (folder / RUN).mkdir(parents=True)
    shutil.copy(finished / RUN / "scores.csv", folder / RUN)
    stored = (folder / RUN / "scores.csv").read_bytes()
    done = snakemake(folder, "--cores", "2", "figures")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" in done.stderr
    assert not (folder / RUN / "models").exists()
    assert (folder / RUN / "scores.csv").read_bytes() == stored
    for name in ("claims.md", "tables/embedded-test/psnr.csv"):
        assert (folder / RUN / name).read_bytes() == (finished / RUN / name).read_bytes()
    assert (folder / RUN / "figures/embedded-test/iterations.pdf").exists()


def test_the_report_is_one_page(finished):
    done = snakemake(finished, "--report", "report.html")
    assert done.returncode == 0, done.stderr
    page = (finished / "report.html").read_text()
    assert "regret" in page and "RERG" in page


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("weights", "the weights are not those that rerg.json describes"),
        ("config", "config is"),
    ],
)
def test_strange_weights_are_refused_and_nothing_is_lost(finished, tmp_path, fault, line):
    folder = tmp_path / "strange"
    shutil.copytree(finished, folder)
    weights, about = (folder / RUN / f"models/rerg.{s}" for s in ("safetensors", "json"))
    if fault == "weights":
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    else:
        about.write_text(about.read_text().replace('"config": "', '"config": "0'))
    scores = (folder / RUN / "scores.csv").read_bytes()
    target = str(RUN / "restorations/embedded-test/den25/rerg.npz")
    done = snakemake(folder, "--cores", "1", "--force", target)
    assert done.returncode != 0
    assert line in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
    assert (folder / RUN / "scores.csv").read_bytes() == scores
