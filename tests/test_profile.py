"""The literal command of the cluster, as a dry run: what it would submit, and with which GPUs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = ["snakemake", "-n", "--nolock", "--cores", "all", "--profile", "slurm"]
ON_GPU = {"train", "tune", "restore", "restore_by_baseline"}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The output of the dry run, in a folder without results."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "config", "rerg", "slurm", "workflow"):
        (folder / name).symlink_to(ROOT / name)
    command = [str(Path(sys.executable).parent / COMMAND[0]), *COMMAND[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_lists_the_jobs_of_the_paper(dry_run):
    total = int(re.search(r"^total +(\d+)$", dry_run, re.M)[1])
    assert total > 100
    assert "results/paper/claims.md" in dry_run


def test_what_computes_on_a_gpu_asks_for_one(dry_run):
    jobs = re.findall(r"^(localrule|rule) ([\w-]+):\n((?: .*\n)+)", dry_run, re.M)
    assert ON_GPU | {"observe", "score"} <= {name for _, name, _ in jobs}
    for kind, name, about in jobs:
        gpus = re.search(r"\bgpu=(\d+)", about)
        wanted = int(name in ON_GPU)
        assert (int(gpus[1]) if gpus else 0) == wanted, name
        assert kind == "rule" or not wanted
