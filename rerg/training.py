"""The one training loop of all variants: Adam on a budget of network evaluations."""

import logging
import math
import os
import pickle
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rerg.config import InputError, digest
from rerg.devices import peak_memory_mb, set_up_cpu
from rerg.images import Crops, prefetch
from rerg.networks import build, compile_networks, copy_weights, load_weights
from rerg.parallel import Group
from rerg.problems import Problem
from rerg.variants import Batch, Settings, module

log = logging.getLogger(__name__)

COLLAPSED = 0.5  # share of images without a fixed point, over the last fifth of the training


def settings_of(spec: dict) -> Settings:
    """What a variant's loss needs to know of its spec."""
    solves = dict(spec["equilibrium"])
    return Settings(
        scale=spec["network"]["scale"],
        beta=spec["settings"].get("beta", 0.0),
        lost_above=solves.pop("lost_above"),
        equilibrium=solves,
    )


def build_networks(spec: dict) -> nn.ModuleDict:
    """The networks that a variant trains, initialised from the seed."""
    wanted = module(spec["variant"]).NETWORKS
    return nn.ModuleDict({k: build(spec["network"], c, spec["seed"]) for k, c in wanted.items()})


def start_from(networks: nn.ModuleDict, source: nn.ModuleDict) -> None:
    """Start every network of a variant from the RG of another."""
    for network in networks.values():
        copy_weights(source["rg"], network)


def draw_batch(
    crops: Callable[[np.random.Generator], Tensor], problems: list[Problem], seed: int, step: int
) -> Batch:
    """The batch of a step: it depends on the seed and the step only, so that resuming is exact."""
    rng = np.random.default_rng([seed, step])
    truth = crops(rng)
    problem = problems[rng.integers(len(problems))]
    observation = problem.observe(truth, list(rng.spawn(len(truth))))
    return Batch(problem.crop(truth), observation, rng, step)


def evaluations_of(networks: nn.ModuleDict) -> int:
    """Passes through the networks so far, forward and backward."""
    return sum(network.evaluations for network in networks.values())


def optimizer_of(networks: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """The optimizer of every variant."""
    return torch.optim.Adam(networks.parameters(), lr=learning_rate, fused=True)


def take_step(
    variant: str,
    networks: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: Settings,
    clip: float,
) -> dict[str, float]:
    """One step of the optimizer; a step without a finite loss or gradient changes nothing."""
    loss, row = module(variant).loss(networks, batch, settings)
    if loss is None:
        return average(batch.group, {"loss": math.nan, "skipped": 1, **row})
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    batch.group.average_gradients(networks)
    norm = nn.utils.clip_grad_norm_(networks.parameters(), clip)
    sound = bool(torch.isfinite(norm) & torch.isfinite(batch.group.mean(loss.detach())))
    if sound:
        optimizer.step()
    row = {"loss": loss.item(), "skipped": int(not sound), "gradient": norm.item(), **row}
    return average(batch.group, row)


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


def _differences(here: dict, there: dict, prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*here, *there}):
        a, b = here.get(key), there.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key} is {b} there and {a} here")
    return lines


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a checkpoint so that a kill at any moment leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path, spec: dict) -> dict | None:
    """The state of `save_checkpoint`, or None.

    Raises InputError where its spec is another, or where the file is not a checkpoint.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise InputError(f"{path}: not a whole checkpoint; delete it to train anew") from None
    if different := _differences(spec, state["spec"]):
        raise InputError(
            f"{path}: checkpoint of another config: {different[0]}; delete it to train anew"
        )
    return state


def train(
    spec: dict,
    crops: Callable[[np.random.Generator], Tensor],
    start: nn.ModuleDict | None,
    checkpoint: Path,
    *,
    kernels: dict[str, str] | None = None,
    device: str = "cpu",
    log_every: int = 20,
    checkpoint_every: float = 60.0,
    group: Group | None = None,
    compiled: bool = False,
) -> tuple[nn.ModuleDict, list[dict]]:
    """Train a variant until its budget of network evaluations is spent.

    spec: variant, settings (evaluations, learning_rate, beta), network, training (crop, batch,
    clip, precision), equilibrium, problems (trained entries) and seed: all that the result depends
    on, with the images. group: the processes that share every step, else this one alone.
    compiled: run the networks by torch.compile, which changes rounding only.
    Returns the networks and a row per `log_every` steps. A killed training goes on from its
    checkpoint and ends with the weights of an unbroken one.
    """
    group = group or Group()
    variant, budget = spec["variant"], spec["settings"]["evaluations"]
    settings, clip = settings_of(spec), spec["training"]["clip"]
    problems = [Problem(name, entry, kernels) for name, entry in spec["problems"].items()]
    networks = build_networks(spec)
    if start is not None:
        start_from(networks, start)
    networks.to(device)
    for network in networks.values():
        network.precision = spec["training"]["precision"]
    if compiled:
        compile_networks(networks)
    optimizer = optimizer_of(networks, spec["settings"]["learning_rate"])
    step, rows, window, seconds = 0, [], [], 0.0
    if state := load_checkpoint(checkpoint, spec):
        networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])
        step, rows, window, seconds = (state[k] for k in ("step", "rows", "window", "seconds"))
        for network, passes in zip(networks.values(), state["passes"], strict=True):
            network.passes = list(passes)
        log.info("resumed from %s at step %d", checkpoint, step)

    stopped = []
    previous = signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    began = saved = time.monotonic()
    before = seconds
    quiet = True if group.rank else None

    def load(step: int) -> Batch:
        batch = draw_batch(crops, problems, spec["seed"], step).part(group)
        return batch.pinned() if device.startswith("cuda") else batch

    batches = prefetch(load, count(step))
    bar = tqdm(total=budget, initial=evaluations_of(networks), unit="eval", disable=quiet)
    try:
        while (spent := evaluations_of(networks)) < budget:
            optimizer.param_groups[0]["lr"] = learning_rate(spec["settings"], step, spent)
            batch = next(batches).to(device)
            row = take_step(variant, networks, optimizer, batch, settings, clip)
            stop = agree(group, networks, bool(stopped))
            window.append(row)
            step += 1
            bar.update(min(evaluations_of(networks), budget) - bar.n)
            seconds = before + time.monotonic() - began
            if step % log_every == 0 or evaluations_of(networks) >= budget:
                row = summarise(window, step, evaluations_of(networks), seconds)
                rows.append({**row, "memory_mb": peak_memory_mb(device)})
                window = []
                log.info("%s", progress(rows[-1], budget))
            due = time.monotonic() - saved >= checkpoint_every
            if (stop or due or evaluations_of(networks) >= budget) and group.rank == 0:
                state = {
                    "spec": spec,
                    "networks": networks.state_dict(),
                    "optimizer": optimizer.state_dict(),
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
                log.warning("stopped by SIGTERM at step %d; %s keeps it", step, checkpoint)
                raise SystemExit(143)
    finally:
        bar.close()
        batches.close()
        signal.signal(signal.SIGTERM, previous)
    return networks, rows


def learning_rate(settings: dict, step: int, evaluations: int) -> float:
    """The rate of a step: halved every `halve_every` steps, or falling to 0 along a cosine."""
    if "halve_every" in settings:
        return settings["learning_rate"] * 0.5 ** (step // settings["halve_every"])
    spent = evaluations / settings["evaluations"]
    return settings["learning_rate"] * 0.5 * (1 + math.cos(math.pi * spent))


def summarise(window: list[dict], step: int, evaluations: int, seconds: float) -> dict:
    """A row of the training's CSV: means over the steps since the last row."""
    row = {"step": step, "evaluations": evaluations, "seconds": seconds}
    for key in dict.fromkeys(key for entry in window for key in entry):
        values = [entry[key] for entry in window if not math.isnan(entry.get(key, math.nan))]
        row[key] = float(np.mean(values)) if values else math.nan
    return row


def progress(row: dict, budget: int) -> str:
    """A line for the log: step, loss, rate, remaining time."""
    rate = row["evaluations"] / max(row["seconds"], 1e-9)
    remaining = max(budget - row["evaluations"], 0) / rate
    shown = {k: v for k, v in row.items() if k not in ("step", "evaluations", "seconds")}
    numbers = " ".join(f"{key} {value:.4g}" for key, value in shown.items())
    return (
        f"step {row['step']} evaluations {row['evaluations']}/{budget} {numbers} "
        f"rate {rate:.1f}/s remaining {remaining:.0f} s"
    )


def train_job(job: dict, group: Group | None = None) -> tuple[nn.ModuleDict, list[dict]]:
    """`train` from what the rule knows, all of it plain values and paths.

    job: spec, start (a weights file or None), images (prepared files), checkpoint, kernels,
    device, threads, compile, log_every, checkpoint_every.
    """
    set_up_cpu(job["threads"])
    spec, start = job["spec"], None
    if job["start"]:
        start = build_networks({**spec, "variant": spec["settings"]["start"]})
        load_weights(job["start"], start, {"network": spec["network"]})
    return train(
        spec,
        Crops(job["images"], spec["training"]["crop"], spec["training"]["batch"]),
        start,
        Path(job["checkpoint"]),
        kernels=job["kernels"],
        device=job["device"],
        log_every=job["log_every"],
        checkpoint_every=job["checkpoint_every"],
        group=group,
        compiled=job["compile"],
    )


def describe(spec: dict, rows: list[dict]) -> dict:
    """The description that goes beside the weights: what they are, and whether they collapsed.

    `lost` is the share of images without a fixed point over the last fifth of the training, None
    for a variant without solves; `collapsed` says that it exceeds one half.
    """
    tail = [row["lost"] for row in rows[-max(len(rows) // 5, 1) :] if "lost" in row]
    lost = float(np.mean(tail)) if tail else None
    collapsed = lost is not None and lost > COLLAPSED
    if collapsed:
        log.warning("%s collapsed: %.0f %% of the images lost", spec["variant"], 100 * lost)
    return {
        "variant": spec["variant"],
        "config": digest(spec),
        "network": spec["network"],
        "seed": spec["seed"],
        "steps": rows[-1]["step"],
        "evaluations": rows[-1]["evaluations"],
        "seconds": rows[-1]["seconds"],
        "lost": lost,
        "collapsed": collapsed,
        "spec": spec,
    }
