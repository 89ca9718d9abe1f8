"""Training in several processes: each takes its part of every batch, and gradients are averaged.

Lightning Fabric starts the processes and connects them (NCCL between GPUs, gloo between CPUs).
Its wrapper for modules is not used: the solves inside a loss call a network many times, inside
and outside of the backward pass, so gradients are averaged once, after it.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from pydantic import TypeAdapter

from rerg.config import InputError
from rerg.group import Group
from rerg.script import in_a_line, log_to
from rerg.training import TrainingJob, train_job


def spread(job: TrainingJob, processes: int, nodes: int = 1) -> None:
    """Run `rerg.training.train_job` in several processes; its checkpoint keeps the last step.

    nodes: of the Slurm job that this process is in, with so many processes each. SIGTERM is passed
    on, and ends this process with status 143 once the checkpoint is written.
    Raises InputError where lightning-fabric is not installed, and several nodes are not Slurm's.
    """
    if find_spec("lightning_fabric") is None:
        raise InputError(
            f"training.processes is {processes} and training.nodes {nodes}: "
            "that needs lightning-fabric: pip install '.[distributed]'"
        )
    if nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        raise InputError(
            f"training.nodes is {nodes}: expected a Slurm job, whose nodes share the training"
        )
    path = Path(job.checkpoint).with_suffix(".job.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"job": asdict(job), "processes": processes, "nodes": nodes}
    path.write_text(json.dumps(content), encoding="utf-8")
    command, environment = [sys.executable, "-m", "rerg.parallel", str(path)], dict(os.environ)
    if nodes > 1:
        command = [*_srun(processes, nodes, job.threads), *command]
        # Names of Slurm's nodes need not be names of hosts; this is the first node's process.
        environment |= {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(_free_port())}
    child = subprocess.Popen(command, env=environment)
    # srun answers SIGTERM by SIGKILL; Slurm gives its processes a SIGTERM of their own.
    previous = signal.signal(signal.SIGTERM, lambda *_: nodes > 1 or child.terminate())
    try:
        status = child.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
    path.unlink()
    if status:
        raise SystemExit(status)


def _srun(processes: int, nodes: int, threads: int) -> list[str]:
    """The command that starts a process per task on the nodes of this Slurm job."""
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes * processes}",
        f"--ntasks-per-node={processes}",
        f"--cpus-per-task={max(threads // processes, 1)}",
        "--mpi=none",
        "--kill-on-bad-exit=1",
    ]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return listening.getsockname()[1]


def join(device: str, processes: int, nodes: int = 1) -> Group:
    """Connect to the other processes; the first of a single node starts them before."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

    fabric = Fabric(
        accelerator=device,
        devices=processes,
        num_nodes=nodes,
        strategy="ddp",
        # Else Fabric takes the one task of a Slurm job for one of the training's processes.
        plugins=[SLURMEnvironment() if nodes > 1 else LightningEnvironment()],
    )
    fabric.launch()
    return Group(fabric.global_rank, fabric.world_size, str(fabric.device))


def main() -> None:
    path = Path(sys.argv[1])
    content = json.loads(path.read_text(encoding="utf-8"))
    job, processes = TypeAdapter(TrainingJob).validate_python(content["job"]), content["processes"]
    with in_a_line(job.log):
        group = join(job.device, processes, content["nodes"])
        log_to(job.log, logging.WARNING if group.rank else logging.INFO)
        threads = max(job.threads // processes, 1)
        train_job(replace(job, device=group.device, threads=threads), group)


if __name__ == "__main__":
    main()
