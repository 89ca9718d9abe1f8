"""The study that ships: its scores are whole, and everything is drawn from them alone."""

import json
import shutil

import pytest
from conftest import ROOT
from test_workflow import copy_of_the_repository, snakemake

from rerg.scores import read_scores

STUDY = ROOT / "results" / "study"
STORED = ("scores.csv", "provenance.json")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A copy of the repository with the stored files, in which `figures` was made."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("study") / "rerg")
    (folder / "results/study").mkdir(parents=True)
    for name in STORED:
        shutil.copy(STUDY / name, folder / "results/study")
    done = snakemake(folder, "--cores", "1", "--", "figures", config="config/study.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results/study"


def test_the_stored_files_are_small_and_not_touched(drawn):
    for name in STORED:
        assert (STUDY / name).stat().st_size <= 5 * 10**6
        assert (drawn / name).read_bytes() == (STUDY / name).read_bytes()


def test_no_row_of_the_study_is_missing(drawn):
    """What a table of scores lacks of its config is a line of the logs."""
    logs = "".join(path.read_text(encoding="utf-8") for path in (drawn / "logs").rglob("*.log"))
    assert "WARNING" not in logs
    table = read_scores(drawn / "scores.csv")
    assert table["destroyed"].isna().all() or (table["destroyed"] == "").all()
    assert sorted(table["seed"].dropna().unique()) == [0, 1, 2, 3, 4]
    about = json.loads((drawn / "provenance.json").read_text(encoding="utf-8"))
    assert about["run"] == "study" and set(table["commit"]) == {about["commit"]}


def test_tables_figures_and_verdicts_are_drawn(drawn):
    for dataset in ("set5-64", "cbsd68-64", "all"):
        assert (drawn / f"tables/{dataset}/regret.md").stat().st_size > 0
    for figure in ("iterations", "regret", "bound", "evaluations"):
        assert (drawn / f"figures/set5-64/{figure}.png").stat().st_size > 0
    verdicts = json.loads((drawn / "claims.json").read_text(encoding="utf-8"))
    assert verdicts["seeds"] == [0, 1, 2, 3, 4]
    assert {claim["verdict"] for claim in verdicts["claims"]} >= {"reproduced", "undecided"}
