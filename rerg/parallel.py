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
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from rerg.config import InputError


@dataclass(frozen=True)
class Group:
    """The processes of one training; this is number `rank` of `size`, on a device of its own."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the processes."""
        return self._reduced(x, torch.distributed.ReduceOp.SUM) / self.size

    def max(self, x: Tensor) -> Tensor:
        """The largest over the processes."""
        return self._reduced(x, torch.distributed.ReduceOp.MAX)

    def _reduced(self, x: Tensor, op) -> Tensor:
        if self.size == 1:
            return x
        x = x.to(self.device, copy=True)  # NCCL takes tensors of its GPU only
        torch.distributed.all_reduce(x, op)
        return x

    def average_gradients(self, networks: nn.Module) -> None:
        """Give every process the mean of all gradients."""
        if self.size == 1:
            return
        grads = [p.grad for p in networks.parameters() if p.grad is not None]
        flat = self.mean(torch.cat([g.flatten() for g in grads]))
        for g, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(mean.view_as(g))

    def part(self, images: int) -> Tensor:
        """Indices of this process's images of a batch; the parts are equal."""
        return torch.arange(images).chunk(self.size)[self.rank]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()


class Part:
    """A generator that draws for the whole batch and hands out the part of one process.

    So the batch of a step is the same however many processes share it.
    """

    def __init__(self, rng: np.random.Generator, group: Group):
        self.rng, self.group = rng, group

    def _mine(self, draw, shape) -> np.ndarray:
        whole = draw((shape[0] * self.group.size, *shape[1:]))
        return whole[self.group.part(len(whole)).numpy()]

    def standard_normal(self, shape, dtype="float64") -> np.ndarray:
        """Standard normal numbers, (B, ...)."""
        return self._mine(lambda whole: self.rng.standard_normal(whole, dtype), shape)

    def uniform(self, low: float, high: float, shape) -> np.ndarray:
        """Uniform numbers, (B, ...)."""
        return self._mine(lambda whole: self.rng.uniform(low, high, whole), shape)

    def integers(self, high: int) -> int:
        """An integer below `high`, the same for every process."""
        return int(self.rng.integers(high))


def spread(job: dict, processes: int, nodes: int = 1) -> None:
    """Run `rerg.training.train_job` in several processes; its checkpoint keeps the last step.

    nodes: of the Slurm job that this process is in, with so many processes each. SIGTERM is passed
    on, and ends this process with status 143 once the checkpoint is written.
    Raises InputError where lightning-fabric is not installed, and several nodes are not Slurm's.
    """
    if find_spec("lightning_fabric") is None:
        raise InputError(
            f"training.processes is {processes} and training.nodes {nodes}: "
            "that needs pip install 'rerg[distributed]'"
        )
    if nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        raise InputError(
            f"training.nodes is {nodes}: expected a Slurm job, whose nodes share the training"
        )
    path = Path(job["checkpoint"]).with_suffix(".job.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"job": job, "processes": processes, "nodes": nodes}))
    command, environment = [sys.executable, "-m", "rerg.parallel", str(path)], dict(os.environ)
    if nodes > 1:
        command = [*_srun(processes, nodes, job["threads"]), *command]
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
    # Not at the top: training imports this module.
    from rerg.training import train_job

    content = json.loads(Path(sys.argv[1]).read_text())
    job, processes = content["job"], content["processes"]
    group = join(job["device"], processes, content["nodes"])
    if group.rank == 0:
        logging.basicConfig(
            format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, filename=job["log"]
        )
    threads = max(job["threads"] // processes, 1)
    train_job({**job, "device": group.device, "threads": threads}, group)


if __name__ == "__main__":
    main()
