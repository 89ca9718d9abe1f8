"""Baselines: a Python function or a deepinv reconstructor, run where it cannot hurt the others.

A baseline is called as `restore(y, physics, sigma, **parameters) -> x` on a batch of observations
of equal size: y (B, 3, h, w), the deepinv physics A, σ in [0, 1], and x (B, 3, H, W).
"""

import importlib
import importlib.util
import inspect
import json
import logging
import math
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from deepinv.optim import BaseOptim
from torch import Tensor, nn

from rerg.config import digest
from rerg.networks import load_weights
from rerg.problems import Observation, batch
from rerg.restoration import batches
from rerg.training import build_networks

log = logging.getLogger(__name__)

Restore = Callable[..., Tensor]


class Denoiser(nn.Module):
    """D(u, σ) = u - N(u, σ) with a network trained in the run; a blind N is not told σ."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, u: Tensor, sigma: Tensor | float, **_) -> Tensor:
        """D(u, σ) for u (B, 3, H, W), σ in [0, 1]."""
        return u - self.network(u, sigma)


def trained_denoiser(spec: dict, weights: str) -> Denoiser:
    """The denoiser of a trained variant: its conditioned network, or the blind one of `red`."""
    networks = build_networks(spec)
    load_weights(weights, networks, {"config": digest(spec)})
    return Denoiser(networks["denoiser"] if "denoiser" in networks else networks["rg"])


def published_denoiser(path: str) -> nn.Module:
    """The DRUNet of Zhang et al. for colour images, from a file of weights that the user has."""
    from deepinv.models import DRUNet

    path = os.path.expandvars(path)
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file (weights of DRUNet for colour images)")
    return DRUNet(in_channels=3, out_channels=3, pretrained=path)


def build(value: object, given: dict) -> object:
    """A parameter from YAML: {class: optim.PnP, ...} is built, `$name` is one of `given`."""
    if isinstance(value, dict):
        arguments = {k: build(v, given) for k, v in value.items() if k != "class"}
        if "class" not in value:
            return arguments
        module, _, name = value["class"].rpartition(".")
        return getattr(importlib.import_module(f"deepinv.{module}"), name)(**arguments)
    return given.get(value, value) if isinstance(value, str) else value


def _reconstruct(name: str, y: Tensor, physics, sigma: float, /, x0: Tensor, **parameters):
    del sigma  # a reconstructor that needs it has $sigma among its parameters
    model = build({"class": name, **parameters}, {}).to(y.device)
    start = {"init": (x0, x0)} if isinstance(model, BaseOptim) else {}
    return model(y, physics, **start)


def folder_of(files: list[str]) -> str:
    """The folder of a baseline by its own file; empty for a reconstructor, which has none."""
    return str(Path(files[0]).parent) if files else ""


def load(name: str, settings: dict, folder: str) -> Restore:
    """The function of a baseline: `restore` of its file, or a call of its deepinv reconstructor."""
    if "reconstructor" in settings:
        return partial(_reconstruct, settings["reconstructor"])
    path = Path(folder, f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"baseline_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.restore


def prepare(
    name: str, settings: dict, folder: str, spec: dict | None, weights: list[str], device: str
) -> tuple[Restore, nn.Module | None]:
    """The function of a baseline and its denoiser, if it has one.

    spec, weights: those of the variant whose denoiser it uses; else None and [].
    """
    denoiser = None
    if weights:
        denoiser = trained_denoiser(spec, weights[0])
    elif "denoiser" in settings:
        denoiser = published_denoiser(settings["denoiser"])
    if denoiser is not None:
        denoiser = denoiser.to(device).eval()
    return load(name, settings, folder), denoiser


def restore(
    function: Restore,
    observations: dict[str, Observation],
    parameters: dict,
    denoiser: nn.Module | None = None,
    batch_size: int = 1,
) -> dict[str, np.ndarray]:
    """Restore every image: the arrays of a restoration file (`{image}`, `stats`).

    The parameters are the function's own, but for `sigma_factor`, by which σ is multiplied; the
    values $sigma, $x0 and $denoiser stand for those objects, and a function that has an argument
    `x0` or `denoiser` gets it anyway.
    Raises ValueError for a restoration of another type or shape, or that is not finite.
    """
    parameters = dict(parameters)
    factor = parameters.pop("sigma_factor", 1)
    wanted = inspect.signature(function).parameters
    arrays, stats = {}, {}
    for names in batches(observations, batch_size):
        o = batch([observations[name] for name in names])
        sigma = factor * o.sigma
        given = {"x0": o.x0, "denoiser": denoiser}
        extra = {key: value for key, value in given.items() if key in wanted}
        given = {"$sigma": sigma} | {f"${key}": value for key, value in given.items()}
        before = time.perf_counter()
        with torch.no_grad():
            x = function(o.y.clone(), o.physics, sigma, **extra, **build(parameters, given))
        x = _checked(x, o.x0.shape)
        seconds = (time.perf_counter() - before) / len(names)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        if o.y.is_cuda:
            memory = torch.cuda.max_memory_allocated(o.y.device) / 2**20
        arrays |= dict(zip(names, x, strict=True))
        entry = {"seconds": seconds, "peak_memory_mb": memory, "device": o.y.device.type}
        stats |= dict.fromkeys(names, entry)
    return {**arrays, "stats": np.array(json.dumps(stats))}


def _checked(x: object, shape: torch.Size) -> np.ndarray:
    if not isinstance(x, Tensor):
        raise ValueError(f"expected a tensor, got {type(x).__name__}")
    if x.shape != shape:
        raise ValueError(f"expected shape {tuple(shape)}, got {tuple(x.shape)}")
    x = x.detach().cpu().numpy().astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("the restoration has values that are not finite")
    return x


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
