"""The one training loop of all variants: Adam on a budget of network evaluations."""

import logging
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rerg.batch import Batch
from rerg.checkpoints import load_checkpoint, save_checkpoint
from rerg.config import InputError
from rerg.devices import peak_memory_mb, set_up_cpu
from rerg.group import Group
from rerg.images import Crops, prefetch
from rerg.iteration import read
from rerg.models import build, load_model, start_from
from rerg.networks import launch
from rerg.problems import Problem
from rerg.registry import load
from rerg.rollback import WINDOW, Rollback
from rerg.specs import ModelSpec

log = logging.getLogger(__name__)

WIDTH = 16  # channels of the first scale for which the config states a rate
REST, WARM_UP = 0.05, 0.1  # shares of the budget: without a step at most, and of a rising rate


@dataclass(frozen=True)
class TrainingJob:
    """A training, and how it is run. The result depends on `spec`, `images`, `start` and `code`.

    code: a digest of it, so that no checkpoint mixes two;
    start: weights to start from, or None; images: prepared files; kernels: of kernel files, their
    names to prepared files; log_every: steps; checkpoint_every: seconds; log: file of the log.
    """

    spec: ModelSpec
    code: str
    start: str | None
    images: tuple[str, ...]
    checkpoint: str
    kernels: dict[str, str]
    device: str
    threads: int
    launch: str
    log_every: int
    checkpoint_every: float
    log: str


def draw_batch(
    crops: Callable[[np.random.Generator], Tensor],
    problems: Sequence[Problem],
    seed: int,
    step: int,
) -> Batch:
    """The batch of a step: it depends on the seed and the step only, so that resuming is exact."""
    rng = np.random.default_rng([seed, step])
    truth = crops(rng)
    problem = problems[rng.integers(len(problems))]
    observation = problem.observe(truth, list(rng.spawn(len(truth))))
    truth = problem.crop(truth)
    noise = torch.from_numpy(rng.standard_normal(truth.shape, np.float32))
    return Batch(truth, observation, rng, step, noise)


def evaluations_of(networks: nn.ModuleDict) -> int:
    """Passes through the networks so far, forward and backward."""
    return sum(network.evaluations for network in networks.values())


def optimizer_of(networks: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """The optimizer of every variant."""
    return torch.optim.Adam(networks.parameters(), lr=learning_rate, fused=True)


def take_step(
    spec: ModelSpec, networks: nn.ModuleDict, optimizer: torch.optim.Optimizer, batch: Batch
) -> dict[str, float]:
    """One step of the optimizer; a step without a finite loss or gradient changes nothing."""
    loss, row = load("variants", spec.variant).loss(networks, batch, spec)
    if loss is None:
        return average(batch.group, {"loss": math.nan, "skipped": 1, **numbers(row)})
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    batch.group.average_gradients(networks)
    norm = nn.utils.clip_grad_norm_(networks.parameters(), spec.clip)
    row = numbers({"loss": batch.group.mean(loss.detach()), "skipped": 0, "gradient": norm, **row})
    if math.isfinite(row["loss"]) and math.isfinite(row["gradient"]):
        optimizer.step()
    else:
        row["skipped"] = 1
    return average(batch.group, row)


def numbers(row: Mapping[str, float | Tensor]) -> dict[str, float]:
    """A row of numbers, whose tensors of one are read in one wait for the GPU."""
    tensors = {key: value for key, value in row.items() if torch.is_tensor(value)}
    if not tensors:
        return dict(row)
    first = next(iter(tensors.values()))
    (values,) = read(*(value.to(first.device).reshape(1) for value in tensors.values())).tolist()
    return {**row, **dict(zip(tensors, values, strict=True))}


def average(group: Group, row: dict[str, float]) -> dict[str, float]:
    """The mean of a row over the processes; of a median it is the mean of their medians."""
    if group.size == 1:
        return row
    return dict(zip(row, group.mean(torch.tensor(list(row.values()))).tolist(), strict=True))


def agree(group: Group, networks: nn.ModuleDict, stopped: bool) -> bool:
    """Give all processes the same count of passes, that of the slowest; whether any is stopped.

    A batch takes as many passes as its slowest image, so the count is that of one process.
    """
    if group.size == 1:
        return stopped
    passes = [count for network in networks.values() for count in network.passes]
    *passes, signals = group.max(torch.tensor([*passes, int(stopped)])).tolist()
    for i, network in enumerate(networks.values()):
        network.passes = passes[2 * i : 2 * i + 2]
    return bool(signals)


def train(
    spec: ModelSpec,
    crops: Callable[[np.random.Generator], Tensor],
    start: nn.ModuleDict | None,
    checkpoint: Path,
    *,
    kernels: Mapping[str, str] | None = None,
    device: str = "cpu",
    log_every: int = 20,
    checkpoint_every: float = 60.0,
    group: Group | None = None,
    way: str = "plain",
    feeders: int = 1,
    sources: Mapping[str, str] | None = None,
) -> tuple[nn.ModuleDict, list[dict]]:
    """Train a variant until its budget of network evaluations is spent.

    spec: all that the result depends on, with the images, the start and the code, whose digests
    `sources` has for the checkpoint. group: the processes that share every step, else this one
    alone. way: of launching the networks' kernels (`launch`). feeders: threads that draw batches
    ahead; a batch is the same whichever draws it.
    Returns the networks and a row per `log_every` steps. A killed training goes on from its
    checkpoint and ends with the weights of an unbroken one.
    """
    group = group or Group()
    budget, inputs = spec.evaluations, {"spec": asdict(spec), **(sources or {})}
    problems = [Problem(problem, kernels) for problem in spec.problems]
    networks = build(spec)
    if start is not None:
        start_from(networks, start)
    networks.to(device)
    for network in networks.values():
        network.precision = spec.precision
    launch(networks, way)
    optimizer = optimizer_of(networks, spec.learning_rate)
    rollback = Rollback(networks, optimizer)
    step, rows, window, seconds = 0, [], [], 0.0
    if state := load_checkpoint(checkpoint, inputs):
        networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])
        rollback.load_state_dict(state["rollback"])
        step, rows, window, seconds = (state[k] for k in ("step", "rows", "window", "seconds"))
        for network, passes in zip(networks.values(), state["passes"], strict=True):
            network.passes = list(passes)
        log.info("resumed from %s at step %d", checkpoint, step)

    signals: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    began = saved = time.monotonic()
    before = seconds
    quiet = True if group.rank else None

    def load_batch(step: int) -> Batch:
        batch = draw_batch(crops, problems, spec.seed, step).part(group)
        return batch.pinned() if device.startswith("cuda") else batch

    batches = prefetch(load_batch, count(step), feeders)
    bar = tqdm(total=budget, initial=evaluations_of(networks), unit="eval", disable=quiet)
    try:
        while (spent := evaluations_of(networks)) < budget:
            rate = learning_rate(spec, step, spent) * rollback.factor
            optimizer.param_groups[0]["lr"] = rate
            row = take_step(spec, networks, optimizer, next(batches).to(device))
            stop = agree(group, networks, bool(signals))
            window.append({"rate": rate, **row})
            step += 1
            if rollback.watch(row):
                log.warning(
                    "step %d: worse than before; back to an earlier state, at %g of the rate",
                    step,
                    rollback.factor,
                )
            bar.update(min(evaluations_of(networks), budget) - bar.n)
            seconds = before + time.monotonic() - began
            if step % log_every == 0 or evaluations_of(networks) >= budget:
                row = summarise(window, step, evaluations_of(networks), seconds)
                row |= {"rollbacks": rollback.count, "memory_mb": peak_memory_mb(device)}
                rows.append(row)
                window = []
                log.info("%s", progress(rows[-1], budget))
            due = time.monotonic() - saved >= checkpoint_every
            if (stop or due or evaluations_of(networks) >= budget) and group.rank == 0:
                state = {
                    "inputs": inputs,
                    "networks": networks.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rollback": rollback.state_dict(),
                    "step": step,
                    "rows": rows,
                    "window": window,
                    "seconds": seconds,
                    "passes": [network.passes for network in networks.values()],
                }
                save_checkpoint(checkpoint, state)
                saved = time.monotonic()
            if stop:
                group.wait()  # Fabric kills the others once one has ended
                name = signal.Signals(signals[0]).name if signals else "a signal"
                log.warning("stopped by %s at step %d; %s keeps it", name, step, checkpoint)
                raise SystemExit(143)
    finally:
        bar.close()
        batches.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return networks, rows


def learning_rate(spec: ModelSpec, step: int, evaluations: int) -> float:
    """The rate of a step (docs/method.md, eq. 33).

    The spec's rate is for a network of 16 channels and falls with 1 / channels. It is zero in the
    first ten steps, where they are within a twentieth of the budget: so `Rollback` measures the
    start. It rises over a tenth of the budget, and falls along a cosine or by half every
    `halve_every` steps.
    """
    spent = evaluations / spec.evaluations
    if step < WINDOW and spent < REST:
        return 0.0
    rate = spec.learning_rate * WIDTH / spec.network.channels[0] * min(1, spent / WARM_UP)
    if spec.halve_every:
        return rate * 0.5 ** (step // spec.halve_every)
    return rate * 0.5 * (1 + math.cos(math.pi * spent))


def summarise(window: list[dict], step: int, evaluations: int, seconds: float) -> dict:
    """A row of the training's CSV: means over the steps since the last row."""
    row = {"step": step, "evaluations": evaluations, "seconds": seconds}
    for key in dict.fromkeys(key for entry in window for key in entry):
        values = [entry[key] for entry in window if not math.isnan(entry.get(key, math.nan))]
        row[key] = float(np.mean(values)) if values else math.nan
    return row


def progress(row: dict, budget: int) -> str:
    """A line for the log: step, loss, speed, remaining time."""
    speed = row["evaluations"] / max(row["seconds"], 1e-9)
    remaining = max(budget - row["evaluations"], 0) / speed
    shown = {k: v for k, v in row.items() if k not in ("step", "evaluations", "seconds")}
    means = " ".join(f"{key} {value:.4g}" for key, value in shown.items())
    return (
        f"step {row['step']} evaluations {row['evaluations']}/{budget} {means} "
        f"speed {speed:.1f}/s remaining {remaining:.0f} s"
    )


def train_job(job: TrainingJob, group: Group | None = None) -> tuple[nn.ModuleDict, list[dict]]:
    """`train` what a job says."""
    # Beside a GPU the processor has batches to draw alone: threads of one core each.
    feeders = job.threads if job.device.startswith("cuda") else 1
    set_up_cpu(job.threads // feeders)
    crops = Crops(job.images, job.spec.crop, job.spec.batch)
    start, sources = None, {"images": crops.digest, "code": job.code}
    if job.start:
        model = load_model(Path(job.start))
        if model.spec.network != job.spec.network:
            raise InputError(f"{job.start}: expected {job.spec.network}, got {model.spec.network}")
        start, sources["start"] = model.networks, model.about["sha256"]
    return train(
        job.spec,
        crops,
        start,
        Path(job.checkpoint),
        kernels=job.kernels,
        device=job.device,
        log_every=job.log_every,
        checkpoint_every=job.checkpoint_every,
        group=group,
        way=job.launch,
        feeders=feeders,
        sources=sources,
    )
