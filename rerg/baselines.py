"""Baselines: a Python function or a deepinv reconstructor, run where it cannot hurt the others.

A baseline is called as `restore(y, physics, sigma, **parameters) -> x` on a batch of observations
of equal size: y (B, 3, h, w), the deepinv physics A, σ in [0, 1], and x (B, 3, H, W).
"""

import importlib
import importlib.util
import inspect
import logging
import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from deepinv.optim import BaseOptim
from torch import Tensor, nn

from rerg.devices import peak_memory_mb
from rerg.files import Restored, fault
from rerg.models import load_model
from rerg.problems import Observation, batch, batches
from rerg.published import load_denoiser
from rerg.registry import variants

log = logging.getLogger(__name__)

Restore = Callable[..., Tensor]
FACTOR = "sigma_factor"  # the parameter by which σ of the problem is multiplied


class Denoiser(nn.Module):
    """D(u, σ) = u - N(u, σ) with a network trained in the run; a blind N is not told σ."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, u: Tensor, sigma: Tensor | float, **_) -> Tensor:
        """D(u, σ) for u (B, 3, H, W), σ in [0, 1]."""
        return u - self.network(u, sigma)


def build(value: object, given: dict) -> object:
    """A parameter from YAML: {class: optim.PnP, ...} is built, `$name` is one of `given`."""
    if isinstance(value, dict):
        arguments = {k: build(v, given) for k, v in value.items() if k != "class"}
        if "class" not in value:
            return arguments
        module, _, name = value["class"].rpartition(".")
        return getattr(importlib.import_module(f"deepinv.{module}"), name)(**arguments)
    if isinstance(value, list):
        return [build(part, given) for part in value]
    return given.get(value, value) if isinstance(value, str) else value


def _reconstruct(name: str, y: Tensor, physics, sigma: float, /, x0: Tensor, **parameters):
    del sigma  # a reconstructor that needs it has $sigma among its parameters
    model = build({"class": name, **parameters}, {}).to(y.device)
    start = {"init": (x0, x0)} if isinstance(model, BaseOptim) else {}
    return model(y, physics, **start)


@dataclass(frozen=True)
class Baseline:
    """function: `restore`; parameters: its own; denoiser: if it has one."""

    function: Restore
    parameters: dict
    denoiser: nn.Module | None


def load_baseline(
    name: str, settings: Mapping, file: Path | None, weights: Path | None, device: str
) -> Baseline:
    """A baseline from its settings (`rerg.run`).

    file: of its function, None for a reconstructor of deepinv; weights: of the variant or of the
    registry's entry whose denoiser it uses, else None.
    """
    if file is None:
        function = partial(_reconstruct, settings["reconstructor"])
    else:
        spec = importlib.util.spec_from_file_location(f"baseline_{name}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = module.restore
    denoiser = None
    if weights is not None:
        trained = settings["denoiser"] in variants()
        own = Denoiser(load_model(weights).denoiser()) if trained else load_denoiser(weights)
        denoiser = own.to(device).eval()
    return Baseline(function, settings["parameters"], denoiser)


def restore(
    baseline: Baseline,
    observations: Mapping[str, Observation],
    parameters: Mapping | None = None,
    batch_size: int = 1,
) -> Restored:
    """Restore every image.

    parameters: in the place of the declared ones, as far as they are named; `sigma_factor` among
    them multiplies σ. The values $sigma, $x0 and $denoiser stand for those objects, and a function
    that has an argument `x0` or `denoiser` gets it anyway.
    Raises ValueError for a restoration of another type or shape, or that is not finite.
    """
    parameters = {**baseline.parameters, **(parameters or {})}
    factor = parameters.pop(FACTOR, 1)
    wanted = inspect.signature(baseline.function).parameters
    images, stats = {}, {}
    for names in batches(observations, batch_size):
        o = batch([observations[name] for name in names]).scaled(factor)
        given = {"x0": o.x0, "denoiser": baseline.denoiser}
        extra = {key: value for key, value in given.items() if key in wanted}
        given = {"$sigma": o.sigma} | {f"${key}": value for key, value in given.items()}
        before = time.perf_counter()
        with torch.no_grad():
            own = build(parameters, given)
            x = baseline.function(o.y.clone(), o.physics, o.sigma, **extra, **own)
        if not isinstance(x, Tensor):
            raise ValueError(f"expected a tensor, got {type(x).__name__}")
        x = x.detach().cpu().numpy().astype(np.float32)
        entry = {
            "seconds": (time.perf_counter() - before) / len(names),
            "peak_memory_mb": peak_memory_mb(o.y.device),
            "device": o.y.device.type,
        }
        for name, image in zip(names, x, strict=False):
            if reason := fault(image, tuple(o.x0.shape[1:])):
                raise ValueError(reason)
            images[name], stats[name] = image, entry
        if len(x) != len(names):
            raise ValueError(f"expected {len(names)} images, got {len(x)}")
    return Restored(images, stats)


def guarded(task: Callable[[], object], timeout: float) -> tuple[object, str | None]:
    """The result of a task in a child process, or the reason why there is none, in a line.

    A task that raises, crashes the process or needs more than `timeout` seconds has no result.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(task, sender, timeout))
    child.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return receiver.recv()
        return None, f"over its time limit of {timeout:g} s"
    except EOFError:
        child.join()
        return None, f"its process ended with status {child.exitcode}"
    finally:
        child.kill()
        child.join()


def _send(task: Callable[[], object], sender, timeout: float) -> None:
    signal.alarm(math.ceil(timeout) + 1)  # it ends even where the parent was killed
    try:
        result = task(), None
    except Exception as error:
        log.error("%s", traceback.format_exc())
        reason = (str(error).strip().splitlines() or [""])[0]
        result = None, f"{type(error).__name__}: {reason}"
    sender.send(result)
