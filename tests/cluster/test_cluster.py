"""`snakemake --cores all --profile slurm` on a real Slurm, and what can go wrong there.

The tests follow one run in one clone: interrupted, broken, and brought to its end through a
restart of the controller, a time limit and the loss of a node. They build on each other.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

COMMAND = ["snakemake", "--cores", "all", "--profile", "slurm"]
RESULTS = Path("results/cluster")
SEED = 0
LONG = 600  # seconds, for what takes one minute on a machine that does nothing else


def environment(clone: Path) -> dict[str, str]:
    """That of the command, whose jobs import the clone's package, not an edited checkout's."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}


@contextmanager
def started(clone: Path, *more: str):
    """The command in the background, its output in a file; killed where a test fails."""
    output = clone / "snakemake.out"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*COMMAND, *more],
            cwd=clone,
            env=environment(clone),
            stdout=file,
            stderr=file,
            # a shell's background job hands an ignored Ctrl-C down
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        process.output = output
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def finish(process, seconds: float) -> str:
    """What the command has written, once it ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after {seconds} s:\n{process.output.read_text()[-3000:]}")
    return process.output.read_text()


def job(cluster, variant: str) -> str | None:
    """The id of the running job that trains a variant."""
    lines = cluster.output("squeue", "-h", "-t", "running", "-o", "%i %k").splitlines()
    ids = [
        line.split()[0] for line in lines if line.endswith(f"rule_train_wildcards_{SEED}_{variant}")
    ]
    return ids[0] if ids else None


def checkpoint(clone: Path, variant: str) -> Path:
    return clone / RESULTS / "checkpoints" / f"train.{variant}.{SEED}.ckpt"


def steps(clone: Path, variant: str) -> int:
    """Steps in the checkpoint of a variant; 0 where there is none."""
    try:
        return torch.load(checkpoint(clone, variant), weights_only=True)["step"]
    except FileNotFoundError:
        return 0


def in_training(cluster, clone: Path, variant: str, after: int = 0) -> str:
    """The id of the job that trains a variant, once it has saved a step after a given one."""

    def found() -> str | None:
        running = job(cluster, variant)
        return running if running and steps(clone, variant) > after else None

    return cluster.wait_for(found, f"training of {variant}", LONG)


def accounted(cluster, *fields: str) -> list[list[str]]:
    """A row for every job that Slurm has accounted for; a requeued job has more than one."""
    rows = cluster.output("sacct", "-XnPD", f"--format={','.join(fields)}")
    return [row.split("|") for row in rows.splitlines()]


def unbroken(clone: Path, folder: Path, spec: dict) -> dict[str, torch.Tensor]:
    """The weights of a training of this spec that nothing interrupts, by the clone's package."""
    start, path = spec["start"], folder / f"{spec['variant']}.ckpt"
    job = {
        "spec": spec,
        "code": "",
        "start": str(RESULTS / f"models/{SEED}/{start}.safetensors") if start else None,
        "images": [str(RESULTS / "images" / "embedded-train.h5")],
        "checkpoint": str(path),
        "kernels": {},
        "device": "cpu",
        "threads": 1,
        "launch": "plain",
        "log_every": 50,
        "checkpoint_every": 1e9,
        "log": "",
    }
    code = (
        "import json, sys; from pydantic import TypeAdapter\n"
        "from rerg.training import TrainingJob, train_job\n"
        "train_job(TypeAdapter(TrainingJob).validate_python(json.loads(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, json.dumps(job)]
    subprocess.run(command, cwd=clone, env=environment(clone), check=True)
    return torch.load(path, weights_only=True)["networks"]


def test_an_interrupt_cancels_what_was_submitted(cluster, clone):
    with started(clone) as process:
        in_training(cluster, clone, "red")
        process.send_signal(signal.SIGINT)
        finish(process, LONG)
        assert process.returncode != 0
    cluster.wait_for(lambda: not cluster.output("squeue", "-h"), "an empty queue")
    assert steps(clone, "red") > 0


def test_a_failing_job_names_its_log(cluster, clone):
    path = checkpoint(clone, "red")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with started(clone, "--retries", "0") as process:
        output = finish(process, LONG)
    path.write_bytes(whole)
    assert process.returncode != 0
    assert str(RESULTS / f"logs/train/red.{SEED}.log") in output.partition("Error in rule train")[2]
    assert f"{checkpoint(Path(), 'red')}: not a whole checkpoint" in output


def test_a_run_survives_its_cluster(cluster, clone, tmp_path):
    with started(clone) as process:
        in_training(cluster, clone, "red", after=steps(clone, "red"))
        assert "resumed from" in (clone / RESULTS / f"logs/train/red.{SEED}.log").read_text()
        cluster.stop_controller()
        cluster.start_controller()

        limited = in_training(cluster, clone, "rg1")
        with cluster.paused(limited, "train.py"):  # as Slurm looks at limits every 30 s
            end = cluster.output("date", "-d", "2 seconds", "+%FT%T")
            cluster.works("scontrol", "update", f"JobId={limited}", f"EndTime={end}")
            cluster.wait_for(lambda: job(cluster, "rg1") != limited, "the time limit")

        lost = in_training(cluster, clone, "rg1", after=steps(clone, "rg1"))
        cluster.kill_node("g1")
        cluster.wait_for(lambda: not job(cluster, "rg1"), "the loss of the node")
        cluster.start_node("g1")
        assert in_training(cluster, clone, "rg1", after=steps(clone, "rg1")) == lost

        spec = torch.load(checkpoint(clone, "rg1"), weights_only=True)["inputs"]["spec"]
        about = json.loads((clone / RESULTS / f"models/{SEED}/red.json").read_text())
        expected = [unbroken(clone, tmp_path, s) for s in (about["spec"], spec)]
        output = finish(process, LONG)
    assert process.returncode == 0, output[-3000:]
    assert "stopped by SIGTERM at step" in output
    states = {state for _, state in accounted(cluster, "JobID", "State")}
    assert {"TIMEOUT", "NODE_FAIL", "COMPLETED"} <= states
    for variant, weights in zip(("red", "rg1"), expected, strict=True):
        stored = load_file(clone / RESULTS / f"models/{SEED}/{variant}.safetensors")
        torch.testing.assert_close(stored, dict(weights), rtol=0, atol=0)


def test_trainings_get_gpus_and_local_rules_no_job(cluster, clone):
    rows = accounted(cluster, "Comment", "Partition", "NodeList", "AllocTRES", "State")
    seen = set()
    for comment, partition, node, allocated, state in rows:
        seen.add(comment.split("_wildcards")[0])
        if comment.startswith("rule_train"):
            assert (partition, node) == ("gpu", "g1") and "gres/gpu=1" in allocated
        else:
            assert (partition, node) == ("cpu", "c1") and "gres/gpu" not in allocated, state
    rules = ("prepare", "splits", "observe", "train", "restore", "score")
    assert seen == {f"rule_{rule}" for rule in rules}
    assert (clone / RESULTS / "claims.md").exists()  # by a local rule, as are its inputs' locks


def test_two_nodes_train_what_one_process_trains(cluster, clone, tmp_path):
    """A node's process has half of every batch; the weights are one process's within rounding."""
    over = {"training": {"nodes": 2}, "variants": {"red": {"evaluations": 100}}}
    (clone / "nodes.yaml").write_text(yaml.safe_dump(over))
    files = ["--configfile", "config/paper.yaml", "nodes.yaml"]
    resources = ["--set-resources", "train:gpu=2", "train:slurm_partition=both"]
    target = RESULTS / f"models/{SEED}/red.safetensors"
    with started(clone, *files, *resources, "--", str(target)) as process:
        output = finish(process, LONG)
    assert process.returncode == 0, output[-3000:]

    rows = accounted(cluster, "JobID", "Comment", "NodeList", "AllocTRES")
    (row,) = [row for row in rows if "gres/gpu=2" in row[3]]
    job_id, comment, nodes, _ = row
    assert (comment, nodes) == (f"rule_train_wildcards_{SEED}_red", "c1,g1")
    steps = cluster.output("sacct", "-nPj", job_id, "--format=JobID,NTasks,NNodes")
    assert f"{job_id}.0|2|2" in steps.splitlines()

    about = json.loads((clone / target.with_suffix(".json")).read_text())
    assert about["spec"]["evaluations"] == 100
    expected, trained = unbroken(clone, tmp_path, about["spec"]), load_file(clone / target)
    for key, value in expected.items():
        torch.testing.assert_close(trained[key], value, rtol=0, atol=1e-5)
