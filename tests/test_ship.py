"""The weights that ship: of a finished run, with licences and a card; and the wheel of them."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from test_reconstructor import SPEC

import rerg
from rerg.config import InputError
from rerg.models import build, save
from rerg.scores import COLUMNS, write_scores
from rerg.ship import ship

ROOT = Path(__file__).parents[1]


@pytest.fixture
def finished(tmp_path) -> Path:
    """A run with weights of a test, and scores that are known."""
    results = tmp_path / "results"
    (results / "models" / "3").mkdir(parents=True)
    about = {"evaluations": 200, "destroyed": ""}
    save(results / "models" / "3" / "rerg.safetensors", build(SPEC), SPEC, about)
    config = {
        "run": "shipped",
        "seeds": [3, 4],
        "datasets": {"train": ["bsds500-train-test"]},
        "tuning": {"rounds": 1},
    }
    (results / "provenance.json").write_text(json.dumps({"config": config}))
    rows = [
        {
            "dataset": d,
            "problem": "den25",
            "method": m,
            "seed": s,
            "image": str(i),
            "psnr": psnr + i,
        }
        for d in ("set5", "cbsd68")
        for m, s, psnr in (
            ("initial", None, 20.0),
            ("rerg", 3, 29.0),
            ("rerg", 4, 10.0),  # of a seed that does not ship
            ("truth", None, float("inf")),
        )
        for i in range(2)
    ]
    write_scores(
        pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype(COLUMNS), results / "scores.csv"
    )
    return results


def test_a_finished_run_ships(finished, tmp_path, monkeypatch):
    ship(finished, tmp_path / "weights")
    monkeypatch.setattr("rerg.reconstructor.SHIPPED", tmp_path / "weights")
    rg = rerg.load("rerg")
    assert "non-commercial" in rg.about["images"]["bsds500-train-test"]["licence"]
    text = (tmp_path / "weights" / "rerg.md").read_text()
    assert rg.about["sha256"] in text and "non-commercial" in text
    header, _, row = [line for line in text.splitlines() if line.startswith("|")]
    values = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert "set5, restored" in header and "truth" not in header
    assert [v.strip("| ") for v in values.values()].count("29.50") == 2


def test_what_must_not_ship_is_refused(finished, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"expected a finished run, found no provenance.json"):
        ship(tmp_path)
    monkeypatch.setattr("rerg.ship.LARGEST", 1000)
    with pytest.raises(InputError, match="expected at most 1000 bytes, to ship"):
        ship(finished, tmp_path / "weights")
    path = finished / "models" / "3" / "rerg.json"
    path.write_text(path.read_text().replace('"destroyed": ""', '"destroyed": "lost"'))
    with pytest.raises(InputError, match="its training is destroyed: lost"):
        ship(finished, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_the_wheel_works_without_the_clone(tmp_path):
    """Built and unpacked, it has its data, and knows the problems by name."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "rerg", "config"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "-w", tmp_path, source], check=True, capture_output=True)
    [wheel] = tmp_path.glob("rerg-*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "site")
    present = {p.relative_to(ROOT).as_posix() for p in (ROOT / "rerg").rglob("*.py")}
    assert present <= names and {"rerg/py.typed", "rerg/__init__.pyi"} <= names
    code = (
        "import rerg.cli as c; print(c.__file__); "
        "given = c.parser().parse_args(['restore', 'a', '-o', 'b', '--problem', 'blur16']); "
        "print(c.problem_of(given).operator)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
    )
    where, operator = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path) and operator == "blur"
