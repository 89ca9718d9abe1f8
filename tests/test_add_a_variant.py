"""docs/add-a-variant.md: its file is a variant, and its commands put it into the tables."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_workflow import copy_of_the_repository

PAGE = (ROOT / "docs" / "add-a-variant.md").read_text(encoding="utf-8")
SMALL = {  # over the page's config, to take seconds
    "problems": ["den25"],
    "examples": ["den25"],
    "network": {"channels": [4, 4, 4, 4], "blocks": 1},
    "training": {"crop": 32, "batch": 2},
    "variants": {name: {"evaluations": 40} for name in ("red", "rerg", "mine")},
    "solvers": {"fast": {"iterations": 5}},
    "tuning": {"rounds": 0, "images": 1, "iterations": 5},
    "restoration": {"bound_iterates": 1},
}


def block(language: str) -> str:
    """The page's only block of a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the repository with the page's file and config."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("variant") / "rerg")
    (folder / "rerg/variants/mine.py").write_text(block("python"), encoding="utf-8")
    (folder / "mine.yaml").write_text(block("yaml"), encoding="utf-8")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    return folder


def in_clone(clone: Path, *command: str) -> str:
    """The output of a command that must end well."""
    environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_file_alone_is_a_variant(clone):
    code = "from rerg.run import trained_methods; print(sorted(trained_methods()))"
    known = in_clone(clone, sys.executable, "-c", code)
    assert all(f"'{name}'" in known for name in ("mine", "mine-gd", "mine-adam"))


def test_its_commands_put_it_into_every_table(clone):
    run, show = block("sh").splitlines()
    program, *options = run.split()
    assert program == ".venv/bin/snakemake" and options[-2:] == ["--configfile", "mine.yaml"]
    in_clone(clone, sys.executable, "-m", "snakemake", *options, "small.yaml", "--cores", "2")
    table = (clone / show.removeprefix("cat ")).read_text(encoding="utf-8")
    assert re.search(r"\| Mine( †)? \|", table)
    results = clone / "results/mine"
    for name in ("tables/embedded-test/regret.md", "tables/trainings.md"):
        assert "Mine" in (results / name).read_text(encoding="utf-8")
    assert "weight: 2.0" in block("yaml")
    assert '"weight": 2.0' in (results / "models/0/mine.json").read_text(encoding="utf-8")
    shutil.rmtree(results)
