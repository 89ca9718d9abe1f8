"""The whole DAG on a tiny config: artefacts, determinism, reruns, stored scores, other places."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from rerg.images import read_digests

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


def snakemake(
    folder: Path, *arguments: str, config: str = "tests/tiny.yaml"
) -> subprocess.CompletedProcess:
    """Run snakemake in a copy, on the tiny config or another."""
    command = [sys.executable, "-m", "snakemake", "--configfile", config, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def jobs(done: subprocess.CompletedProcess) -> Counter:
    """How many jobs of each rule a dry run lists."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    if not any(line.startswith("job ") for line in lines):
        assert "Nothing to be done" in done.stdout
        return Counter()
    start = next(i for i, line in enumerate(lines) if line.startswith("job ")) + 2
    rows = [line.split() for line in lines[start:] if line.strip()]
    counts = {row[0]: int(row[1]) for row in rows[: [row[0] for row in rows].index("total")]}
    counts.pop("all", None)
    return Counter(counts)


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
    methods = {"rerg", "initial", "truth"}
    for problem in ("den25", "sr2", "com80"):
        rows = scores[scores.problem == problem]
        extra = {"den25": {"wiener"}, "com80": {"rerg-adam"}}.get(problem, set())
        assert set(rows.method) == methods | extra
        assert (rows.groupby("method").size() == 8).all()
    fast = scores[scores.method == "rerg"]
    assert (fast.bound_violations == 0).all()
    sure = fast[fast.bound_q < 1]
    assert len(sure) > 0 and (sure.error <= sure.bound * (1 + 1e-5)).all()
    assert fast[fast.bound_q >= 1].bound.isna().all()
    truth = scores[scores.method == "truth"]
    assert (truth.psnr == float("inf")).all() and (truth.ssim == 1).all()


def test_every_variant_had_its_budget(finished):
    for variant in ("red", "rerg"):
        about = json.loads((finished / RUN / "models" / "0" / f"{variant}.json").read_text())
        assert about["spec"]["seed"] == 0
        # the last step may exceed it by one solve: forward, tracked, backward, and the bound's
        assert 200 <= about["evaluations"] <= 200 + 40 + 2 + 15 + 6


def test_provenance_names_what_the_run_comes_from(finished):
    about = json.loads((finished / RUN / "provenance.json").read_text())
    assert about["seeds"] == [0] and about["run"] == "tiny"
    assert about["packages"]["torch"] and about["machine"]["processor"]
    assert set(about["models"]) == {"0/red", "0/rerg"}
    assert set(about["data"]) == {"embedded-train", "embedded-validation", "embedded-test"}
    assert about["wall_time"]["train"]["jobs"] == 2


def test_nothing_is_left_to_do(finished):
    assert not jobs(snakemake(finished, "-n"))


@contextmanager
def edited(path: Path, more: str) -> Iterator[None]:
    """A file with more text at its end, and as it was afterwards."""
    content, before = path.read_bytes(), path.stat()
    path.write_bytes(content + more.encode())
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_comment_reruns_nothing(finished):
    comment = "\n# What a comment says means nothing.\n"
    with (
        edited(finished / "rerg/problems.py", comment),
        edited(finished / "rerg/files.py", comment),
    ):
        assert not jobs(snakemake(finished, "-n"))


@pytest.mark.parametrize(
    ("module", "rerun", "kept"),
    [
        ("rerg/figures.py", {"draw_scores"}, {"train", "tune", "restore", "score"}),
        ("rerg/scores.py", {"score", "collect_scores", "tables", "claims"}, {"train", "restore"}),
        ("rerg/solvers/adam.py", {"tune", "restore", "score"}, {"train", "restore_by_baseline"}),
        ("rerg/variants/rerg.py", {"train", "tune", "restore"}, {"observe", "prepare"}),
        ("workflow/scripts/train.py", {"train", "tune", "restore"}, {"observe", "prepare"}),
        ("rerg/problems.py", {"observe", "train", "restore", "score"}, {"fetch", "prepare"}),
    ],
)
def test_edited_code_reruns_what_uses_it(finished, module, rerun, kept):
    with edited(finished / module, "\nEDITED = 1\n"):
        listed = jobs(snakemake(finished, "-n"))
    assert rerun <= set(listed) and not kept & set(listed)
    if "variants" in module:  # the others are not trained; its σ is tuned anew, and Adam's step
        assert listed["train"] == 1 and listed["tune"] == 2
    if "adam" in module:
        assert listed["tune"] == listed["restore"] == 1


@pytest.mark.parametrize(
    ("setting", "rerun", "kept"),
    [
        ("training={log_every: 3, checkpoint_every: 9}", set(), {"train", "tune", "restore"}),
        ("training={batch: 3}", {"train", "tune", "restore"}, {"prepare", "observe"}),
        ("variants={rerg: {beta: 0.1}}", {"train", "tune", "restore"}, {"prepare", "observe"}),
        ("tuning={tolerance: 0.01}", {"tune", "restore"}, {"train"}),
        ("solvers={fast: {iterations: 21}}", {"restore"}, {"train", "tune"}),
    ],
)
def test_a_changed_setting_reruns_what_depends_on_it(finished, setting, rerun, kept):
    listed = jobs(snakemake(finished, "-n", "--config", setting))
    assert rerun <= set(listed) and not kept & set(listed)
    if "beta" in setting:
        assert listed["train"] == 1


def test_a_training_takes_its_settings_from_the_command(finished):
    settings = ("run=other", "training={log_every: 7}")
    curve = Path("results/other/models/0/red.training.csv")
    done = snakemake(finished, "--cores", "1", str(curve), "--config", *settings)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(finished / curve)["step"][:2].tolist() == [7, 14]


def test_trials_of_other_code_are_made_anew(finished, tmp_path):
    folder, table = tmp_path / "edited", RUN / "tuning/all/wiener.csv"
    shutil.copytree(finished, folder)
    before = pd.read_csv(folder / table)
    with (folder / "rerg/metrics.py").open("a") as file:
        file.write("\nEDITED = 1\n")
    done = snakemake(folder, "--cores", "1", "--", str(table))
    assert done.returncode == 0, done.stderr
    after = pd.read_csv(folder / table)
    assert not set(before["key"]) & set(after["key"]) and len(after) == len(before)


def test_a_run_that_is_taken_to_another_place_is_finished_there(finished, tmp_path):
    folder = tmp_path / "another" / "place"
    shutil.copytree(finished, folder)
    assert not jobs(snakemake(folder, "-n"))


def test_two_runs_give_the_same_scores(finished, tmp_path):
    """From the same images, with fewer methods, as they do not know of each other."""
    folder = copy_of_the_repository(tmp_path / "again")
    shutil.copytree(finished / RUN / "images", folder / RUN / "images")
    target = str(RUN / "scores.csv")
    methods = ["--config", "methods=[rerg]", "comparisons=[]"]
    done = snakemake(folder, "--cores", "2", *methods, "--", target)
    assert done.returncode == 0, done.stdout + done.stderr

    def stable(path: Path) -> pd.DataFrame:
        table = pd.read_csv(path / target, dtype=str).drop(columns=VARYING)
        return table[table["method"].isin(["rerg", "initial", "truth"])]

    assert stable(folder).to_csv(index=False) == stable(finished).to_csv(index=False)
    assert len(stable(folder)) == 8 * 3 * 3


MODULE = """
configfile: "{root}/config/config.yaml"

module rerg:
    snakefile: "{root}/Snakefile"
    config: config

use rule * from rerg

rule mine:
    default_target: True
    input: "results/demo/claims.md"
    output: "mine.txt"
    shell: "cp {{input}} {{output}}"
"""


def plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A dry run of this repository's workflow, from a folder elsewhere."""
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "1", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_another_workflow_uses_it_as_a_module(tmp_path):
    (tmp_path / "Snakefile").write_text(MODULE.format(root=ROOT))
    listed = jobs(plan(tmp_path))
    assert listed["mine"] == listed["claims"] == listed["collect_scores"] == 1
    assert listed["train"] == 6


@pytest.mark.parametrize(("examples", "drawn"), [("[sr2]", 1), ("[]", 0)])
def test_a_run_without_examples_is_one_figure_less(examples, drawn, tmp_path):
    snakefile = ["--snakefile", str(ROOT / "Snakefile")]
    listed = jobs(plan(tmp_path, *snakefile, "--config", f"examples={examples}"))
    assert listed["draw_examples"] == drawn and listed["draw_scores"] == 1


def test_stored_scores_that_are_not_there_are_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("run: mine\nstored: true\n")
    done = plan(tmp_path, "--snakefile", str(ROOT / "Snakefile"), "--configfile", "mine.yaml")
    assert done.returncode == 1
    *notes, line = done.stderr.strip().splitlines()
    assert line.endswith(
        "mine.yaml: stored: results/mine/scores.csv: no such file; expected the stored scores"
    )
    assert all(note.startswith("Config file ") for note in notes)  # Snakemake's own


@pytest.mark.parametrize("where", ["--directory", "the working directory"])
def test_it_runs_in_a_folder_elsewhere(where, tmp_path):
    snakefile = ["--snakefile", str(ROOT / "Snakefile")]
    if where == "--directory":
        done = plan(ROOT, *snakefile, "--directory", str(tmp_path))
    else:
        done = plan(tmp_path, *snakefile)
    assert jobs(done)["train"] == 6
    assert "results/demo/models/0/rerg.safetensors" in done.stdout


def test_a_manifest_is_found_from_a_folder_elsewhere(tmp_path):
    """It is what the files are held against: of other bytes is this one."""
    (tmp_path / "data/set5").mkdir(parents=True)
    for name in read_digests(ROOT / "config/manifests/set5.sha256"):
        (tmp_path / "data/set5" / name).write_bytes(b"another picture")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RERG_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1"]
    config = ["--config", "run=mine", "datasets={test: [set5]}", "--"]
    target = "results/mine/images/set5.lock"
    done = subprocess.run(
        [*command, *config, target], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "config/manifests/set5.sha256 expects sha256" in done.stderr


def test_figures_from_stored_scores_alone(finished, tmp_path):
    folder = copy_of_the_repository(tmp_path / "stored")
    (folder / RUN).mkdir(parents=True)
    shutil.copy(finished / RUN / "scores.csv", folder / RUN)
    stored = (folder / RUN / "scores.csv").read_bytes()
    done = snakemake(folder, "--cores", "2", "--config", "stored=true", "--", "figures")
    assert done.returncode == 0, done.stdout + done.stderr
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
    weights, about = (folder / RUN / f"models/0/rerg.{s}" for s in ("safetensors", "json"))
    if fault == "weights":
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    else:
        about.write_text(about.read_text().replace('"config": "', '"config": "0'))
    scores = (folder / RUN / "scores.csv").read_bytes()
    target = str(RUN / "restorations/embedded-test/rerg/0/den25-com80")
    done = snakemake(folder, "--cores", "1", "--force", target)
    assert done.returncode != 0
    assert line in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
    assert (folder / RUN / "scores.csv").read_bytes() == scores
