"""What the DAG adds to a finished run, and what its scripts take to import.

A run has slots: its seconds of wall-clock times the jobs at a time, one per core. They go into
trainings (`seconds` of the training logs), solvers (`seconds` of the scores), tuning (its jobs,
which do nothing but solve, less the imports of their script), or overhead: all else, from imports
over traces, scores and figures to a core that waits for the last training. The wall-clock is from
the first file of the run to the last, so it holds only for a run that was made in one go, and has
not the seconds in which Snakemake reads the workflow (dag.py). Jobs side by side slow one another
down; that is in the trainings and solvers, not in the overhead.
"""

import ast
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.measure import ROOT, Row, Workload, seconds_of

SCRIPTS = ROOT / "workflow" / "scripts"


def imports_of(script: str) -> str:
    """The imports of a script, as a program of their own."""
    tree = ast.parse((SCRIPTS / script).read_text())
    kept = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, kept)) + "\n"


def run_python(program: str, *options: str) -> subprocess.CompletedProcess:
    """Run a program in a fresh interpreter, from the root of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *options, "-c", program]
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )


def import_seconds(scripts: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of an interpreter that imports what a script imports; "" imports nothing."""
    programs = {"": "", **{script: imports_of(script) for script in scripts}}
    if rounds > 1:
        run_python("".join(programs.values()))  # reads the files from the disk
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in tqdm(range(rounds), "overhead: imports", disable=None):
        for name, program in programs.items():
            taken[name].append(seconds_of(lambda program=program: run_python(program)))
    return taken


def slowest_packages(script: str, count: int = 6) -> str:
    """The packages that a script's imports spend most seconds in, each without those it imports."""
    log = run_python(imports_of(script), "-X", "importtime").stderr
    seconds: dict[str, float] = {}
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", log):
        package = name.split(".")[0]
        seconds[package] = seconds.get(package, 0) + int(own) / 1e6
    top = sorted(seconds, key=seconds.get, reverse=True)[:count]
    return ", ".join(f"{name} {seconds[name]:.2f} s" for name in top)


def imports(work: Workload) -> tuple[list[Row], dict[str, float]]:
    """A row for the slowest script and for the median one; seconds by script."""
    scripts = ["tune.py"] if work.quick else sorted(path.name for path in SCRIPTS.glob("*.py"))
    taken = import_seconds(scripts, 1 if work.quick else 2)
    bare = float(np.median(taken.pop("")))
    seconds = {script: float(np.median(values)) for script, values in taken.items()}
    worst = max(seconds, key=seconds.get)
    details = [{"script": script, "seconds": value} for script, value in seconds.items()]
    note = "theirs: an interpreter that imports nothing"
    typical = float(np.median(list(seconds.values())))
    return [
        Row(
            f"imports of a job, {worst}",
            seconds[worst],
            bare,
            "s",
            None,
            note=f"{note}; by package {slowest_packages(worst)}",
            details=details,
        ),
        Row("imports of a job, median script", typical, bare, "s", None, note=note),
    ], seconds


def job_seconds(work: Workload, prefix: str) -> list[float]:
    """Wall-clock seconds of the run's jobs of a rule, from Snakemake's benchmark files."""
    paths = (work.run / "benchmarks").glob(f"{prefix}.*.tsv")
    return [float(pd.read_csv(path, sep="\t")["s"].iloc[0]) for path in paths]


def of_the_dag(work: Workload, importing: dict[str, float]) -> Row:
    """The share of the run's slots that is overhead."""
    name = "share of a run outside trainings and solvers"
    curves = list((work.run / "models").glob("*/*.training.csv"))
    scores = work.run / "scores.csv"
    if not curves or not scores.exists():
        return Row(name, None, None, "s", None, "<= 0.15", note=f"{work.run}: no finished run")
    slots = os.cpu_count() or 1
    times = [path.stat().st_mtime for path in work.run.rglob("*") if path.is_file()]
    wall = max(times) - min(times)
    tuning = job_seconds(work, "tune")
    inside = {
        "trainings": sum(float(pd.read_csv(path)["seconds"].iloc[-1]) for path in curves),
        "solvers": float(pd.read_csv(scores)["seconds"].sum()),
        "tuning": sum(max(seconds - importing["tune.py"], 0) for seconds in tuning),
    }
    left = wall * slots - sum(inside.values())
    note = (
        f"{wall:.0f} s of wall-clock, {slots} jobs at a time; of {wall * slots:.0f} s of slots "
        + ", ".join(f"{key} {value:.0f}" for key, value in inside.items())
    )
    share = left / (wall * slots)
    if not 0 <= share < 1:
        return Row(name, None, None, "s", None, "<= 0.15", note=f"not made in one go: {note}")
    return Row(name, left, wall * slots, "s", share, "<= 0.15", note=f"ours / theirs; {note}")


def rows(work: Workload) -> list[Row]:
    """The DAG, then the imports."""
    found, importing = imports(work)
    return [of_the_dag(work, importing), *found]
