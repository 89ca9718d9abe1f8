"""Where a run comes from: config, commit, versions, machine, digests, wall times."""

import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

from rerg.datasets import read_digests
from rerg.specs import digest

PACKAGES = (
    "deepinv", "lpips", "numpy", "pandas", "scikit-image", "scipy", "snakemake", "torch",
    "torchvision",
)  # fmt: skip
CODE = Path(__file__).parents[1]


def commit(root: Path = CODE) -> str | None:
    """The commit of a checkout, with "+changes" where tracked files differ; None outside one.

    By twelve digits, as each row of scores has it. What lies in `results/` is no change: a run
    writes there, and the scores that ship are tracked. root: the checkout, by default this one.
    """
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        tracked = ("--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        changed = _git(root, "status", *tracked)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def _git(root: Path, *command: str) -> str:
    call = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True)
    return call.stdout.strip()


def machine() -> dict:
    """Processor, cores, memory and system of this machine."""
    cpu, memory = platform.processor(), None
    if (info := Path("/proc/cpuinfo")).exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    if (info := Path("/proc/meminfo")).exists():
        memory = round(int(info.read_text().split()[1]) / 2**20, 1)
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": cpu,
        "cores": os.cpu_count(),
        "memory_gib": memory,
    }


def wall_times(benchmarks: Path) -> dict[str, dict]:
    """Seconds and jobs per stage, of Snakemake's benchmark files `{stage}.{...}.tsv`."""
    stages: dict[str, dict] = {}
    for path in sorted(benchmarks.glob("*.tsv")):
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        stage = stages.setdefault(path.name.split(".")[0], {"jobs": 0, "seconds": 0.0})
        stage["jobs"] += 1
        stage["seconds"] = round(stage["seconds"] + sum(float(row["s"]) for row in rows), 2)
    return stages


def describe(config: dict, registries: dict, scores: Path) -> dict:
    """The provenance of a finished run, for `provenance.json`.

    registries: problems, methods, datasets and weights as read; their digest and the config's are
    kept.
    scores: the table, beside which the run's other folders lie.
    """
    results, content = scores.parent, scores.read_bytes()
    models = {
        f"{path.parent.name}/{path.stem}": {
            **{key: about[key] for key in ("sha256", "config", "evaluations", "seconds")},
            # a published denoiser has no spec: of its training nothing is known
            **({"precision": about["spec"]["precision"]} if "spec" in about else {}),
        }
        for path in sorted((results / "models").glob("*/*.json"))
        if (about := json.loads(path.read_text(encoding="utf-8")))
    }
    return {
        "run": config["run"],
        "config": config,
        "config_sha256": digest({"config": config, **registries}),
        "commit": commit(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": machine(),
        "seeds": config["seeds"],
        "data": {
            path.stem: read_digests(path) for path in sorted((results / "images").glob("*.lock"))
        },
        "models": models,
        "scores": {
            "rows": content.count(b"\n") - 1,
            "sha256": hashlib.sha256(content).hexdigest(),
        },
        "wall_time": wall_times(results / "benchmarks"),
    }
