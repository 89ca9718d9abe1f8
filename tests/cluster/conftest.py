"""The cluster of the tests, and a fresh clone to run in; skipped where no Slurm can be had."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import slurm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster():
    """A started Slurm, stopped in the end."""
    try:
        slurm.start()
    except slurm.Unavailable as reason:
        pytest.skip(str(reason))
    yield slurm
    slurm.stop()


@pytest.fixture(scope="session")
def clone(cluster, tmp_path_factory) -> Path:
    """A fresh clone whose paper.yaml is the tiny config.

    A pretend GPU computes nothing, so the device stays the CPU; the profile asks for the GPU that
    the rules ask for where the device is cuda.
    """
    del cluster
    folder = tmp_path_factory.mktemp("cluster") / "rerg"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    shutil.copy(Path(__file__).parent / "config.yaml", folder / "config" / "paper.yaml")
    profile = folder / "slurm" / "profile.yaml"
    settings = yaml.safe_load(profile.read_text())
    settings |= {"set-resources": {"train": {"gpu": 1}}, "latency-wait": 5}
    settings["slurm-init-seconds-before-status-checks"] = 2
    profile.write_text(yaml.safe_dump(settings))
    return folder
