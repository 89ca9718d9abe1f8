"""Share of a training step that is spent waiting for crops.

    python -m benchmarks.data_loading [prepared .h5 files; default: the embedded training set]

The step is the denoising step of the default config: 4 crops of 48 pixels, DRUNet of widths
16, 32, 64, 64, Adam, one thread, on the CPU. Waiting is timed around the call that asks for the
next batch, with and without prefetching. To be held: at most 5 % with it.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rerg.config import read_yaml
from rerg.devices import set_up_cpu
from rerg.images import Crops, fetch, prefetch, prepare
from rerg.networks import UNet
from rerg.training import optimizer_of

STEPS, WARM_UP = 150, 20


def measure(batches, network: torch.nn.Module) -> tuple[float, float]:
    """Seconds per step, and the share of them that went into waiting for the batch."""
    optimizer = optimizer_of(network, 1e-3)
    batches = iter(batches)
    waited, begun = 0.0, 0.0
    for step in range(STEPS + WARM_UP):
        if step == WARM_UP:
            waited, begun = 0.0, time.perf_counter()
        asked = time.perf_counter()
        x = next(batches)
        waited += time.perf_counter() - asked
        e = torch.randn_like(x) * 25 / 255
        loss = (network(x + e) - e).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - begun
    return seconds / STEPS, waited / seconds


def main(paths: list[str]) -> None:
    set_up_cpu(1)
    config = read_yaml(Path("config/config.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        if not paths:
            entry = read_yaml(Path("config/datasets.yaml"))["embedded-train"]
            lock, paths = Path(folder) / "train.lock", [f"{folder}/train.h5"]
            fetch("embedded-train", entry, lock)
            prepare("embedded-train", entry, lock, Path(paths[0]), config["training"]["crop"])
        crops = Crops(paths, config["training"]["crop"], config["training"]["batch"])

        def load(step: int) -> torch.Tensor:
            return crops(np.random.default_rng([0, step]))

        steps = range(STEPS + WARM_UP)
        for label, batches in (("direct", map(load, steps)), ("prefetched", prefetch(load, steps))):
            network = UNet(config["network"]["channels"], config["network"]["blocks"])
            seconds, share = measure(batches, network)
            print(f"{label:11}{1e3 * seconds:7.1f} ms per step, {100 * share:5.2f} % waiting")


if __name__ == "__main__":
    main(sys.argv[1:])
