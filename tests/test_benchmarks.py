"""The benchmarks run, at toy sizes, and count and divide what they say. Nothing here is timed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, clean_images, spec_of
from PIL import Image

from rerg.dihedral import dihedral, dihedral_inverse
from rerg.models import build, save


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A finished run as far as benchmarks read it: 100 s, of which 60 trained and 20 restored."""
    folder = tmp_path_factory.mktemp("results") / "run"
    models = folder / "models" / "0"
    models.mkdir(parents=True)
    save(models / "rg1.safetensors", trained, spec_of("rg1", 1000), {})
    pd.DataFrame({"seconds": [30.0, 60.0]}).to_csv(models / "rg1.training.csv")
    pd.DataFrame({"seconds": [15.0, 5.0, None]}).to_csv(folder / "scores.csv")
    files = [path for path in folder.rglob("*") if path.is_file()]
    for age, path in enumerate(files):
        os.utime(path, (1000 + 100 * age / (len(files) - 1),) * 2)
    return folder


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of the benchmarks, which are no part of the package."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.mark.filterwarnings("ignore")  # of the libraries that are compared
@pytest.mark.parametrize("name", ["solvers", "pnp_reg", "deq", "network", "growth", "overhead"])
def test_every_benchmark_measures(name, bench, run, tmp_path, monkeypatch):
    (tmp_path / "tune.py").write_text("import json\nraise SystemExit\n")  # in place of torch
    monkeypatch.setattr(bench("overhead"), "SCRIPTS", tmp_path)
    work = bench("measure").Workload(run, variant="rg1", quick=True)
    threads = torch.get_num_threads()
    rows = list(bench(name).rows(work))
    assert torch.get_num_threads() == threads
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        # imports have no other side, and of twenty steps a toy problem needs no hundred
        without = row.name.startswith("imports of a job") or "where" in row.name
        assert without if row.ratio is None else 0 < abs(row.ratio) < 1e6, row.name
        sides = [row.ours, row.theirs]
        assert sides == [None, None] or all(abs(side) < 1e6 for side in sides), row.name


def test_the_command_prints_its_rows_and_writes_them(run, tmp_path):
    """Each benchmark in a process of its own, with the options of the command."""
    table = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", run, "pnp_reg", "--variant", "rg1", "--quick"]
    done = subprocess.run(
        [*command, "--json", table], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(table.read_text())
    assert content["spec"]["variant"] == "rg1" and [*content["seconds"]] == ["pnp_reg"]
    assert content["rows"] and all(f"| {row['name']} |" in done.stdout for row in content["rows"])


@pytest.fixture
def validate(run, bench, tmp_path, monkeypatch, capsys):
    """Cells of the table by (row, model), of `rg1` and of a copy of it without its training."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i, image in enumerate(clean_images(3, 40, 40)):
        pixels = (255 * image).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    rg1 = run / "models/0/rg1.safetensors"
    raw = tmp_path / "raw/models/0/rg1.safetensors"
    raw.parent.mkdir(parents=True)
    spec = spec_of("rg1", 1000)
    save(raw, build(spec), spec, {})

    def call(*options: str) -> dict[tuple[str, str], str]:
        command = ["validation", str(rg1), str(raw), "--images", str(folder), "--crop", "32"]
        monkeypatch.setattr("sys.argv", [*command, *options])
        validation = bench("validation")
        monkeypatch.setattr(validation, "set_up_cpu", lambda _: None)  # for the tests that follow
        validation.main()
        lines = [line.split(" | ") for line in capsys.readouterr().out.strip("\n").splitlines()]
        assert [line.strip("| ") for line in lines[0]][1:] == [
            str(p.with_suffix("")) for p in (rg1, raw)
        ]
        return {
            (line[0].strip("| "), model): cell.strip("| ")
            for line in lines[2:]
            for model, cell in zip(("trained", "raw"), line[1:], strict=True)
        }

    return call


def test_validation_tells_a_trained_model_from_one_that_is_not(validate):
    cells = validate("--last", "2", "--problems", "den50", "com95")
    assert {name for name, _ in cells} >= {"den50", "com95", "mean PSNR, dB", "converged"}
    mean = {model: float(cells["mean PSNR, dB", model]) for model in ("trained", "raw")}
    of = {
        model: [float(cells[p, model].split(";")[0]) for p in ("den50", "com95")] for model in mean
    }
    assert mean["trained"] > mean["raw"] + 1
    assert mean == pytest.approx({model: sum(of[model]) / 2 for model in mean}, abs=0.01)
    lost = [a - b for a, b in zip(of["trained"], of["raw"], strict=True)]
    regret = {m: float(cells["worst-case regret among these, dB", m]) for m in mean}
    assert regret == pytest.approx({"trained": max(0, -min(lost)), "raw": max(0, *lost)}, abs=0.02)


def test_every_option_of_validation_counts(validate):
    """The images that come last, their size, the limits of the solver and the problems."""
    given = ("--problems", "den50")
    plain = validate(*given)["den50", "trained"]
    assert plain == validate(*given)["den50", "trained"]
    for option in (
        ("--last", "1"),
        ("--crop", "24"),
        ("--tolerance", "0.1"),
        ("--iterations", "2"),
    ):
        assert validate(*given, *option)["den50", "trained"] != plain, option
    assert validate(*given, "--iterations", "2")["den50", "trained"].endswith("; 2.0 (0)")
    assert ("com90", "trained") in validate()


def test_validation_names_an_unknown_problem(validate):
    with pytest.raises(SystemExit, match="den51: no problem of"):
        validate("--problems", "den51")


def test_the_gpu_benchmark_measures_on_a_cpu(bench, tmp_path):
    """All parts but those that only a GPU has, and the file has the rows as they came."""
    gpu = bench("gpu")
    rows = gpu.measure(gpu.Bench("cpu", True, None), tmp_path / "gpu.json")
    whole = json.loads((tmp_path / "gpu.json").read_text())
    assert whole["rows"] == rows and not [row for row in rows if "failed" in row]
    kinds = {"pass", "step", "restoration", "solve", "drawing", "training of red"}
    assert {row["what"] for row in rows} == kinds | {"jobs side by side"}
    for row in rows:
        assert row.get("ratio", 1.0) > 0
    assert len(gpu.table(rows).splitlines()) == 2 + len(rows)


WITHOUT_OTHERS = """
import importlib.metadata, sys
from importlib.machinery import PathFinder
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

lines = Path("benchmarks/gpu.txt").read_text().splitlines()[1:]
there = {"rerg", *(Requirement(line.partition("#")[0]).name for line in lines)}
todo = ["torch", "numpy"]
while todo:
    if (name := canonicalize_name(todo.pop())) not in there:
        there.add(name)
        needs = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
found = importlib.metadata.packages_distributions().items()
others = {name for name, owners in found if there.isdisjoint(map(canonicalize_name, owners))}


class Carried(PathFinder):
    @classmethod
    def find_spec(cls, name, *where):
        return None if name.partition(".")[0] in others else super().find_spec(name, *where)


sys.meta_path = [Carried if finder is PathFinder else finder for finder in sys.meta_path]
from benchmarks import gpu

list(gpu.passes(gpu.Bench("cpu", True, None)))
next(gpu.floors(gpu.Bench("cpu", True, Path("rerg", "weights", "rerg.safetensors"))))
assert "snakemake" in others and "snakemake" not in sys.modules
"""


def test_the_gpu_benchmark_imports_only_the_wheels_that_are_carried_along():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_part_that_fails_is_a_row(bench, tmp_path, monkeypatch):
    def broken(_):
        yield {"what": "one", "ms": 1.0}
        raise RuntimeError("out of memory\nat length")

    gpu = bench("gpu")
    monkeypatch.setattr(gpu, "PARTS", (broken, lambda _: iter([])))
    gpu.PARTS[1].__doc__, gpu.PARTS[1].__name__, broken.__doc__ = "Nothing.", "nothing", "Breaks."
    rows = gpu.measure(gpu.Bench("cpu", True, None), tmp_path / "gpu.json")
    assert rows == [
        {"what": "one", "ms": 1.0},
        {"what": "broken", "failed": "RuntimeError: out of memory"},
    ]


def test_overhead_is_what_is_left_of_the_slots(bench, run, monkeypatch):
    """Of 100 s on two cores 60 were trained and 20 restored, so 120 of 200 are left."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    row = bench("overhead").of_the_dag(
        bench("measure").Workload(run, variant="rg1"), {"tune.py": 3.0}
    )
    assert (row.ours, row.theirs, row.ratio, row.met) == pytest.approx((120, 200, 0.6, False))


@pytest.mark.parametrize(
    ("course", "index"), [([1, 2, 2.96, 3], 2), ([2.98, 2.0, 3], 2), ([3, 3], 0), ([1], 0)]
)
def test_a_solver_is_there_once_it_stays(bench, course, index):
    found = bench("solvers").Course.__new__(bench("solvers").Course)
    found.psnr = course
    assert found.there() == index
    assert found.there(end=10.0) is None


def test_the_plain_loop_turns_as_ours(bench):
    """A network that is not equivariant tells a wrong turn."""
    x, weight = clean_images(2, 24, 24), torch.arange(24.0)
    for k in range(8):
        z = bench("pnp_reg").turned(lambda u: weight * u, x, k)
        torch.testing.assert_close(z, dihedral_inverse(weight * dihedral(x, k), k))


def test_no_run_is_said_in_a_line(bench, tmp_path):
    with pytest.raises(ValueError, match=r"rg1\.json: no such file, needed to load rg1"):
        bench("measure").Workload(tmp_path, variant="rg1").spec  # noqa: B018


def test_the_cost_of_a_run_is_the_sum_of_its_stages(bench, monkeypatch, capsys):
    cost = bench("cost")
    monkeypatch.setattr(cost, "jobs_of", lambda _: {"train": 6, "restore": 30})
    monkeypatch.setattr("sys.argv", ["cost"])
    cost.main()
    table, last = capsys.readouterr().out.split("\n\n")[1:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    hours = {(stage, what): [float(h) for h in cell.split(" - ")] for stage, what, _, cell in rows}
    assert hours["training", "rerg"] == hours["training", "red"]  # one budget for all
    assert len(hours["restoration", "fast: 119 methods x problems"]) == 2  # it climbs
    assert len(hours["tuning", "step of Adam-GD, 13 trials per problem and seed"]) == 1
    for end in (0, -1):
        total = hours.pop(("all", "")) if end else hours["all", ""]
        parts = sum(cell[end] for (stage, _), cell in hours.items() if stage != "all")
        assert total[end] == pytest.approx(parts, abs=0.1 * len(rows))
    assert last.startswith("36 jobs, 0.2 h")


def test_the_cost_of_images_of_unknown_size_is_refused(bench, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cost", str(ROOT / "config" / "study.yaml")])
    with pytest.raises(SystemExit):
        bench("cost").main()
    assert "set5-64: its size is not known here" in capsys.readouterr().err
