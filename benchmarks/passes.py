"""A training step against its own passes through the network, each timed apart in one process."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import in_turn, seconds_of
from rerg.batch import Batch
from rerg.networks import UNet
from rerg.specs import ModelSpec
from rerg.training import optimizer_of, take_step


class Passes:
    """Batch sizes of the forward passes of a network, without and with a graph."""

    def __init__(self, network: UNet):
        self.network, self.sizes = network, {False: [], True: []}
        self.hook = network.register_forward_hook(self._count)

    def _count(self, _, inputs: tuple, out: Tensor) -> None:
        self.sizes[out.requires_grad].append(len(out))

    def __enter__(self) -> "Passes":
        self.backward = -self.network.passes[1]
        return self

    def __exit__(self, *_) -> None:
        self.hook.remove()
        self.backward += self.network.passes[1]


def prices(network: UNet, x: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of a pass over x: forward, forward with a graph, backward to x, to all.

    A GPU takes ten in a row, as the passes of a solve follow one another without a wait.
    """
    v, repeats = torch.ones_like(x), 10 if x.is_cuda else 1
    z = x.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            network(x)

    out = network(z)
    passes = [
        forward,
        lambda: network(z),
        lambda: torch.autograd.grad(out, z, v, retain_graph=True),
        lambda: torch.autograd.grad(out, [z, *network.parameters()], v, retain_graph=True),
    ]
    calls = [lambda call=call: [call() for _ in range(repeats)] for call in passes]
    taken = np.median(in_turn(calls, rounds), 0) / repeats
    return dict(zip(("forward", "graph", "backward", "full"), taken.tolist(), strict=True))


class Step(NamedTuple):
    """Seconds of a step and of its passes alone, and how many these are, forward and backward."""

    seconds: float
    passes: float
    forward: int
    backward: int


def step_and_passes(spec: ModelSpec, networks: nn.ModuleDict, batch: Batch, rounds: int) -> Step:
    """A step of a variant with the one network `rg` on a batch, and what its passes take alone.

    In turn with the steps, passes are timed at each batch size that the step has.
    """
    optimizer = optimizer_of(networks, 0.0)  # a rate of 0 keeps the same RG at every step
    network = networks["rg"]
    with Passes(network) as passes:
        take_step(spec, networks, optimizer, batch)
    taken, costs = [], {}
    for _ in range(rounds):
        taken.append(seconds_of(lambda: take_step(spec, networks, optimizer, batch)))
        for size in {*passes.sizes[False], *passes.sizes[True]}:
            costs.setdefault(size, []).append(prices(network, batch.truth[:size], 1))
    price = {
        size: {key: np.median([c[key] for c in cost]) for key in cost[0]}
        for size, cost in costs.items()
    }
    full = max(price)
    cost = sum(price[size]["forward"] for size in passes.sizes[False])
    cost += sum(price[size]["graph"] for size in passes.sizes[True])
    cost += price[full]["full"] + (passes.backward - 1) * price[full]["backward"]
    forward = len(passes.sizes[False]) + len(passes.sizes[True])
    return Step(float(np.median(taken)), float(cost), forward, passes.backward)
