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

from rerg.dihedral import dihedral, dihedral_inverse
from rerg.models import save


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
