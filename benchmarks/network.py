"""Where the solver's time goes: the share inside the network, and what the network itself costs.

The network is the floor of every solver: time outside it is the operator's, the acceleration's and
Python's. Its own cost is then compared by memory format, precision and threads.
"""

import copy
import time

import torch
from tqdm import tqdm

from benchmarks.measure import Row, Workload, in_turn, quartiles, timed_row
from rerg.networks import UNet
from rerg.restoration import solve
from rerg.variants import restoring_map

ITERATIONS = 20


class Stopwatch:
    """Seconds inside the forward passes of a network."""

    def __init__(self, network: UNet):
        self.seconds, self.began = 0.0, 0.0
        network.register_forward_pre_hook(self._start)
        network.register_forward_hook(self._stop)

    def _start(self, *_) -> None:
        self.began = time.perf_counter()

    def _stop(self, *_) -> None:
        self.seconds += time.perf_counter() - self.began


def share(work: Workload) -> list[Row]:
    """The share of the fast solver's time inside the network, per operator and size of image."""
    network = work.network()
    watch = Stopwatch(network)
    options = {"iterations": ITERATIONS, "tolerance": 0.0}  # the same work at every size
    sizes, rounds = ((32,), 1) if work.quick else ((64, 128, 256), 3)
    found = []
    for problem in tqdm(work.of_each_operator(), "network: share", disable=None):
        for size in sizes:
            _, observation = work.observe(problem, 1, size)
            inside, whole, parts = [], [], []
            for i in range(rounds + 1):
                T = restoring_map(work.variant, {"rg": network}, observation, work.scale, "fast")
                watch.seconds, began = 0.0, time.perf_counter()
                solve(T, "fast", options)
                seconds = time.perf_counter() - began
                if i > 0 or rounds == 1:
                    inside.append(watch.seconds)
                    whole.append(seconds)
                    parts.append(watch.seconds / seconds)
            parts = torch.tensor(parts)
            found.append(
                Row(
                    f"share of the solver inside the network, {problem.name}, {size} x {size}",
                    sum(inside) / rounds,
                    sum(whole) / rounds,
                    "s",
                    parts.median().item(),
                    ">= 0.95",
                    quartiles(parts.numpy()),
                    "ratio is ours / theirs: inside / whole" if not found else "",
                )
            )
    return found


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


def rows(work: Workload) -> list[Row]:
    """The share, then the cost."""
    return [*share(work), *cost(work)]
