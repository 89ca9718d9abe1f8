"""What jobs compute on. `nvidia-smi` is faked; locks, processes, memory and Snakemake are real."""

import platform
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from rerg.config import InputError
from rerg.devices import claim, visible

CLAIM = "import os; from rerg.devices import claim; claim('cuda', {})"
TELL = "; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
SNAKEFILE = """
rule all:
    input: expand("{i}.txt", i=range(6))
rule job:
    output: "{i}.txt"
    resources: gpu=1
    shell:
        "PYTHON -c \\"import os, time; from rerg.devices import claim; claim('cuda');"
        " began = time.time(); time.sleep(0.5);"
        " print(os.environ['CUDA_VISIBLE_DEVICES'], began, time.time())\\" > {output}"
"""


@pytest.fixture(autouse=True)
def two_gpus(tmp_path, monkeypatch):
    """A machine with two GPUs, as `nvidia-smi` would list them, and locks of its own."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho GPU-a\necho GPU-b\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def holder(count: int = 1) -> tuple[subprocess.Popen, list[str]]:
    """A process that holds GPUs until it is killed, and those GPUs."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM.format(count) + TELL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip().split(",")


def test_jobs_hold_different_gpus_until_they_are_killed():
    first, one = holder()
    second, other = holder()
    assert sorted(one + other) == ["0", "1"]
    waiting = subprocess.Popen(
        [sys.executable, "-c", CLAIM.format(1) + TELL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "waiting for 1 of 2 GPUs" in waiting.stderr.readline()
    first.kill()
    assert waiting.stdout.readline().strip().split(",") == one
    for process in (second, waiting):
        process.kill()
    for process in (first, second, waiting):
        process.communicate()


def test_one_job_can_hold_all():
    process, gpus = holder(2)
    assert gpus == ["0", "1"]
    process.communicate("\n")


def test_no_two_jobs_of_snakemake_share_a_gpu(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("PYTHON", sys.executable))
    command = [sys.executable, "-m", "snakemake", "--cores", "6", "--resources", "gpu=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    jobs = [path.read_text().split() for path in tmp_path.glob("*.txt")]
    for gpu in ("0", "1"):
        times = sorted((float(start), float(end)) for used, start, end in jobs if used == gpu)
        assert times  # both are used
        for (_, end), (start, _) in pairwise(times):
            assert start >= end


def test_a_scheduler_decides_what_is_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible() == {"1": "GPU-b"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,MIG-7")
    assert visible() == {"GPU-a": "GPU-a", "MIG-7": "MIG-7"}


def test_too_few_gpus_is_one_line(monkeypatch, two_gpus):
    with pytest.raises(InputError, match=r"training\.processes is 3, but the job sees 2 GPUs"):
        claim("cuda", 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="names no GPU"):
        claim("cuda")
    two_gpus.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(InputError, match="no GPU is found"):
        claim("cuda")


def test_the_cpu_needs_no_claim(two_gpus):
    two_gpus.unlink()
    claim("cpu", 4)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is glibc's")
def test_freed_memory_stays_with_the_process():
    program = """
import resource, torch
from rerg.devices import set_up_cpu
SETUP
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12 * 2**20)  # 12288 pages, above what malloc may keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(torch.get_num_threads(), faults())
"""
    counts = {}
    for setup in ("torch.set_num_threads(2)", "set_up_cpu(2)"):
        command = [sys.executable, "-c", program.replace("SETUP", setup)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        threads, counts[setup] = map(int, out.split())
        assert threads == 2
    given_back, kept = counts.values()
    assert given_back > 100
    assert kept < given_back / 10
