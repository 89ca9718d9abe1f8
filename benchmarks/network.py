"""Where the solver's time goes: the share inside the network, and what the network itself costs.

The network is the floor of every solver: time outside it is the operator's, the acceleration's and
Python's. Its own cost is then compared by memory format, precision and threads.
"""

import copy
import time
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.measure import (
    ROOT,
    Row,
    Workload,
    in_turn,
    millions,
    paper_networks,
    quartiles,
    seconds_of,
    timed_row,
)
from rerg.config import read_yaml
from rerg.maps import ProximalGradient
from rerg.networks import UNet
from rerg.problems import Problem
from rerg.registry import load


class Stopwatch:
    """Seconds inside the forward passes of a network."""

    def __init__(self, network: UNet):
        self.seconds, self.began = 0.0, 0.0
        self.hooks = [
            network.register_forward_pre_hook(self._start),
            network.register_forward_hook(self._stop),
        ]

    def _start(self, *_) -> None:
        self.began = time.perf_counter()

    def _stop(self, *_) -> None:
        self.seconds += time.perf_counter() - self.began

    def remove(self) -> None:
        """Measure no longer."""
        for hook in self.hooks:
            hook.remove()


def share(work: Workload) -> Iterator[Row]:
    """The share of the fast solver's time inside the network, per operator and size of batch.

    Also for the network of config/paper.yaml.
    """
    network, options = work.network(), read_yaml(ROOT / "config" / "config.yaml")["solvers"]["fast"]
    if work.quick:
        cases = [(network, 1, 32, options, 1)]
    else:
        sizes = ((1, 64), (1, 128), (1, 256), (8, 96))
        cases = [(network, count, size, options, 3) for count, size in sizes]
        # untrained, it has no equilibrium to stop at
        paper = paper_networks()["rg"].requires_grad_(False)
        cases.append((paper, 1, 64, {**options, "iterations": 20}, 1))
    pairs = list(product(work.of_each_operator(), cases))
    for problem, case in tqdm(pairs, "network", disable=None):
        yield share_of(work, problem, *case)


def share_of(
    work: Workload,
    problem: Problem,
    network: UNet,
    count: int,
    size: int,
    options: dict,
    rounds: int,
) -> Row:
    """The share of the fast solver's time inside a network, for so many images of a size."""
    watch = Stopwatch(network)
    _, observation = work.observe(problem, count, size)
    inside, whole = np.empty(rounds), np.empty(rounds)
    for i in range(-1, rounds):  # the first warms up
        T = ProximalGradient(network, observation, work.scale)
        watch.seconds = 0.0
        whole[i] = seconds_of(lambda T=T: load("solvers", "fast").solve(T, **options))
        inside[i] = watch.seconds
    watch.remove()
    return Row(
        f"share of the solver inside the network of {millions(network)}, {problem.name}, "
        f"{count} x {size} x {size}",
        float(np.median(inside)),
        float(np.median(whole)),
        "s",
        float(np.median(inside / whole)),
        ">= 0.95",
        quartiles(inside / whole),
        "ratio is ours / theirs: inside / whole",
    )


def cost(work: Workload) -> list[Row]:
    """A forward pass by memory format, precision and threads."""
    network, size = work.network(), 32 if work.quick else 128
    x, rounds = work.truth(1 if work.quick else 4, size), 1 if work.quick else 7
    contiguous = copy.deepcopy(network).unet.to(memory_format=torch.contiguous_format)
    low = copy.deepcopy(network)
    low.precision = "bf16"

    def with_threads(count: int) -> None:
        torch.set_num_threads(count)
        network(x)
        torch.set_num_threads(1)

    calls = [
        lambda: network(x),
        lambda: contiguous.forward_unet(x),
        lambda: low(x),
        lambda: with_threads(2),
    ]
    with torch.no_grad():
        ours, plain, bf16, two = in_turn(calls, rounds).T
    where = f"forward pass, {len(x)} x {size} x {size}"
    return [
        timed_row(f"{where}: channels_last against contiguous", ours, plain, ">= 1"),
        timed_row(f"{where}: bfloat16 against float32", bf16, ours),
        timed_row(f"{where}: two threads against one", two, ours),
    ]


def rows(work: Workload) -> Iterator[Row]:
    """The share, then the cost."""
    yield from share(work)
    yield from cost(work)
