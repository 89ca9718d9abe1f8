"""docs/add-a-baseline.md: all its commands run, in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from rerg.run import Run

PAGE = (ROOT / "docs" / "add-a-baseline.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of the page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_command_of_the_page_runs(tmp_path):
    copy = tmp_path / "rerg"
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(".git", ".venv", ".snakemake", "results", "__pycache__"),
    )
    # This environment stands for the one that make would build.
    (copy / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != "installed":
            (copy / ".venv" / part.name).symlink_to(part)
    (copy / ".venv" / "installed").touch()
    commands = "".join(blocks("sh"))
    assert "make baseline" in commands and "make check-baseline" in commands
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-e"],
        input=commands,
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = (copy / "results" / "mine" / "tables" / "embedded-test" / "psnr.md").read_text()
    head, _, *rows = [line.strip("| ").split("|") for line in table.splitlines() if "|" in line]
    column = [cell.strip() for cell in head].index("mine")
    assert len(rows) == 3  # den25, blur16 and their mean
    assert all(re.search(r"\d\d\.\d\d", row[column]) for row in rows)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("", "NAME: expected a letter, then letters, digits, - and _"),
        ("9", "NAME: expected a letter"),
        ("1e3", "NAME: expected a letter"),
        ("a b", "NAME: expected a letter"),
        ("../up", "NAME: expected a letter"),
        ("truth", "truth: a row of every table, or no text in YAML"),
        ("Null", "Null: a row of every table, or no text in YAML"),
        ("on", "on: a row of every table, or no text in YAML"),
        ("rerg", "rerg is the name of a variant"),
        ("tv", "workflow/baselines/tv is there already"),
    ],
)
def test_a_name_that_no_run_would_take_writes_nothing(name, line):
    before = sorted((ROOT / "workflow/baselines").iterdir())
    command = ["make", "--no-print-directory", "baseline", f"NAME={name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout.startswith(line) and done.stdout.count("\n") == 1
    assert sorted((ROOT / "workflow/baselines").iterdir()) == before


def test_the_reconstructor_of_the_page_is_a_method():
    (block,) = blocks("yaml")
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    run = Run({**config, **yaml.safe_load(block), "comparisons": []}, ROOT, "page")
    assert run.methods["pnp-pgd"]["label"] == "PnP-PGD"
    assert run.variants() == ["red", "rg"]  # rg, whose denoiser it uses, and its start


def test_the_rule_of_the_page_is_the_one_that_is_shipped():
    rule = (ROOT / "workflow" / "baselines" / "lee" / "lee.smk").read_text()
    assert rule in blocks("python")
