"""Deep equilibria: against deepinv and torchdeq, against a plain one, against their own network.

Same network, same problems, same tolerance; `theirs` is the faster of a library's solvers, plain
iteration and Anderson acceleration with the library's defaults, that get there: that end near the
equilibrium, or at most twice as far from it as rerg. A problem where neither does is left out and
named. deepinv stops on the mean over the batch of the residuals, torchdeq on their maximum, and
rerg stops each image on its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from deepinv.optim import L2, PGD, AndersonAccelerationConfig, DEQConfig, Prior
from torch import Tensor, nn
from torchdeq import get_deq
from tqdm import tqdm

from benchmarks.measure import (
    Row,
    Workload,
    in_turn,
    millions,
    paper_networks,
    quartiles,
    timed_row,
)
from benchmarks.passes import step_and_passes
from rerg.batch import Batch
from rerg.maps import GradientDescent, ProximalGradient
from rerg.metrics import psnr
from rerg.networks import UNet
from rerg.reconstruction import relative_errors
from rerg.solvers.fast import solve
from rerg.specs import ModelSpec
from rerg.training import draw_batch
from rerg.variants import deqgd

TOLERANCE = {"restoration": 1e-4, "training": 1e-3}
LIMIT = {"restoration": 300, "training": 60}
CROP = 48  # pixels of a side of the restored images, as in training


class Gradient(Prior):
    """R = N/c as a prior of deepinv."""

    def __init__(self, N: UNet, scale: float):
        super().__init__()
        self.N, self.scale = N, scale

    def grad(self, x: Tensor, *_, **__) -> Tensor:
        """R(x)."""
        return self.scale * self.N(x)


def deepinv_pgd(T: ProximalGradient, what: str, anderson: bool) -> Callable[[], Tensor]:
    """deepinv's PGD for the map T: the gradient step on the prior first, then the prox."""
    limit, deq = LIMIT[what], None
    if what == "training":
        deq = DEQConfig(anderson_acceleration_backward=anderson, max_iter_backward=limit)
    model = PGD(
        data_fidelity=L2(),
        prior=Gradient(T.N, T.scale),
        lambda_reg=T.observation.weight,
        stepsize=1 / (T.scale * T.observation.weight),
        g_first=True,
        early_stop=True,
        thres_conv=TOLERANCE[what],
        max_iter=limit,
        unfold=deq is not None,
        trainable_params=[],
        DEQ=deq,
        anderson_acceleration=AndersonAccelerationConfig() if anderson else None,
    )
    return lambda: model(T.observation.y, T.observation.physics, init=T.start())


def torchdeq_of(T: ProximalGradient, what: str, anderson: bool) -> Callable[[], Tensor]:
    """torchdeq's solvers for the map T."""
    solver, limit = "anderson" if anderson else "fixed_point_iter", LIMIT[what]
    deq = get_deq(
        ift=True,
        f_solver=solver,
        b_solver=solver,
        f_max_iter=limit,
        b_max_iter=limit,
        f_tol=TOLERANCE[what],
        b_tol=TOLERANCE[what],
        f_stop_mode="rel",
        b_stop_mode="rel",
    )
    deq.train(what == "training")
    return lambda: deq(T, T.start())[0][-1]


LIBRARIES = {"deepinv": deepinv_pgd, "torchdeq": torchdeq_of}


class Counted:
    """A call that keeps its last result, and the passes through a network that it took."""

    def __init__(self, network: UNet, call: Callable[[], object]):
        self.network, self.call = network, call

    def __call__(self) -> None:
        before = self.network.evaluations
        self.result = self.call()
        self.evaluations = self.network.evaluations - before


def measured(
    problem: str, calls: dict[str, Counted], taken: np.ndarray, off: dict[str, float]
) -> list[dict]:
    """What each solver took for a problem, and how far it ended from the equilibrium."""
    return [
        {
            "problem": problem,
            "solver": name,
            "seconds": seconds.tolist(),
            "evaluations": call.evaluations,
            "off": off[name],
        }
        for (name, call), seconds in zip(calls.items(), taken.T, strict=True)
    ]


def restorations(work: Workload) -> list[Row]:
    """A batch of every operator, restored by the fast solver and by the libraries."""
    network, rounds = work.network(), 1 if work.quick else 3
    options = {"iterations": LIMIT["restoration"], "tolerance": TOLERANCE["restoration"]}
    details = []
    for problem in tqdm(work.of_each_operator(), "deq: restorations", disable=None):
        truth, observation = work.observe(problem, 2 if work.quick else 4, CROP)
        T = ProximalGradient(network, observation, work.scale)
        calls = {"rerg": Counted(network, lambda T=T: solve(T, **options).x)}
        for library, make in LIBRARIES.items():
            calls[library] = Counted(network, make(T, "restoration", False))
            calls[f"{library}, Anderson"] = Counted(network, make(T, "restoration", True))
        with torch.no_grad():
            exact = psnr(solve(T, iterations=1500, tolerance=1e-6).x, truth)
            taken = in_turn(list(calls.values()), rounds)
        off = {k: (psnr(c.result, truth) - exact).abs().max().item() for k, c in calls.items()}
        details += measured(problem.name, calls, taken, off)
    return against(details, "restoration", "dB", 0.05)


def against(details: list[dict], what: str, unit: str, near: float) -> list[Row]:
    """Rows against each library: sums over the problems of the faster solver that gets there.

    near: how far, in `unit`, a solver may end from the equilibrium whatever rerg does.
    """
    problems = list(dict.fromkeys(d["problem"] for d in details))
    of = {(d["problem"], d["solver"]): d for d in details}
    found = []
    for library in LIBRARIES:
        there, missed = [], []
        for problem in problems:
            ours = of[problem, "rerg"]
            tried = [of[problem, library], of[problem, f"{library}, Anderson"]]
            tried = [d for d in tried if d["off"] <= max(near, 2 * ours["off"])]
            if tried:
                there.append((ours, min(tried, key=lambda d: sum(d["seconds"]))))
            else:
                missed.append(problem)
        name = f"DEQ {what} against {library}"
        lost = f"; {library} does not get there on {', '.join(missed)}" if missed else ""
        if not there:
            found.append(Row(f"{name}, seconds", None, None, "s", None, ">= 1", note=lost[2:]))
            continue
        ends = [max(pair[side]["off"] for pair in there) for side in (0, 1)]
        note = f"{len(there)} operators; at most {ends[0]:.2g} and {ends[1]:.2g} {unit} off{lost}"
        seconds = np.array([[ours["seconds"], theirs["seconds"]] for ours, theirs in there]).sum(0)
        counts = np.array([[ours["evaluations"], theirs["evaluations"]] for ours, theirs in there])
        found.append(timed_row(f"{name}, seconds", *seconds, ">= 1", note=note))
        each = counts[:, 1] / counts[:, 0]
        o, t = counts.sum(0).tolist()
        found.append(
            Row(f"{name}, evaluations", o, t, "evaluations", t / o, ">= 1", quartiles(each))
        )
    found[0].details = details
    return found


def gradient_of(networks: nn.ModuleDict) -> Tensor:
    """All gradients of the parameters, in a row."""
    return torch.cat([p.grad.flatten() for p in networks.parameters()])


def solves(spec: ModelSpec, **changes: float) -> ModelSpec:
    """A training of deqgd with other solves, none of whose images is left out."""
    equilibrium = replace(spec.equilibrium, lost_above=np.inf, **changes)
    return replace(spec, variant="deqgd", equilibrium=equilibrium)


def uniform(spec: ModelSpec, tolerance: float, limit: int) -> ModelSpec:
    """The same with one tolerance and one limit forward and backward."""
    names = {"iterations": limit, "backward_iterations": limit}
    return solves(spec, tolerance=tolerance, backward_tolerance=tolerance, **names)


def implicit(networks: nn.ModuleDict, batch: Batch, spec: ModelSpec) -> None:
    """Our implicit gradient of the loss of deqgd, left in the parameters."""
    networks.zero_grad(set_to_none=True)
    loss, _ = deqgd.loss(networks, batch, spec)
    loss.backward()


def training_steps(work: Workload) -> list[Row]:
    """Loss and implicit gradient of a batch of every operator, at the same tolerance."""
    networks, rounds = work.networks(), 1 if work.quick else 3
    network = networks["rg"]
    own = uniform(work.spec, TOLERANCE["training"], LIMIT["training"])
    tight = uniform(work.spec, 1e-6, 300)
    details = []
    for problem in tqdm(work.of_each_operator(), "deq: training steps", disable=None):
        batch = draw_batch(work.crops, [problem], 0, 0)
        T = ProximalGradient(network, batch.observation, work.scale)

        def ours(batch: Batch = batch) -> Tensor:
            implicit(networks, batch, own)
            return gradient_of(networks)

        def theirs(solve_by: Callable[[], Tensor], batch: Batch = batch) -> Tensor:
            networks.zero_grad(set_to_none=True)
            relative_errors(solve_by(), batch).mean().backward()
            return gradient_of(networks)

        calls = {"rerg": Counted(network, ours)}
        for library, make in LIBRARIES.items():
            for anderson in (False, True):
                call = partial(theirs, make(T, "training", anderson))
                name = f"{library}, Anderson" if anderson else library
                calls[name] = Counted(network, call)
        implicit(networks, batch, tight)
        exact = gradient_of(networks)
        taken = in_turn(list(calls.values()), rounds)
        off = {k: ((c.result - exact).norm() / exact.norm()).item() for k, c in calls.items()}
        details += measured(problem.name, calls, taken, off)
    return against(details, "training step", "of the gradient's norm", 0.1)


def own_network(work: Workload, networks: nn.ModuleDict, steps: int, rounds: int) -> Row:
    """A training step of deqgd against its own passes through the network, timed apart."""
    spec = replace(work.spec, variant="deqgd")
    whole, priced = [], []
    for step in tqdm(range(steps), "deq: own network", disable=None):
        batch = draw_batch(work.crops, list(work.problems.values()), 0, step)
        found = step_and_passes(spec, networks, batch, rounds)
        whole.append(found.seconds)
        priced.append(found.passes)
    return Row(
        f"DEQ training step against its own network evaluations, {millions(networks['rg'])}",
        float(np.median(whole)),
        float(np.median(priced)),
        "s",
        sum(whole) / sum(priced),
        "<= 1.1",
        quartiles(np.array(whole) / np.array(priced)),
        f"ratio is ours / theirs, over {steps} batches of the problems",
    )


def plain_implicit(
    networks: nn.ModuleDict,
    batch: Batch,
    scale: float,
    forward: int,
    backward: int,
    kind: type[ProximalGradient] = ProximalGradient,
) -> None:
    """The gradient of the loss of deqgd by so many plain steps, left in the parameters."""
    networks.zero_grad(set_to_none=True)
    T = kind(networks["rg"], batch.observation, scale)
    x = T.start()
    with torch.no_grad():
        for _ in range(forward):
            x = T(x)
    z = x.requires_grad_()
    out = T(z)
    leaf = out.detach().requires_grad_()
    (v,) = torch.autograd.grad(relative_errors(leaf, batch).mean(), leaf)
    u = v
    for _ in range(backward):
        u = torch.autograd.grad(out, z, u, retain_graph=True)[0] + v
    out.backward(u)


def plain_gradients(work: Workload) -> list[Row]:
    """Our gradient of deqgd against a plain DEQ's, of fixed counts of steps, at an equal error.

    The plain counts are the fewest of a grid that are as exact as the config's tolerances, of the
    fast map and of gradient descent's, which is the paper's; or our tolerances are the first,
    halved and halved again, that are as exact as plain steps up to the config's limits. The error
    is relative, in the mean over batches of all problems.
    """
    spec, problems = work.spec, list(work.problems.values())
    count, rounds = (2, 1) if work.quick else (8, 3)
    networks, tight = work.networks(), uniform(spec, 1e-6, 300)
    batches = [draw_batch(work.crops, problems, 1, step) for step in range(count)]
    exact = []
    for batch in batches:
        implicit(networks, batch, tight)
        exact.append(gradient_of(networks))

    def error(gradient: Callable[[Batch], object]) -> float:
        off = []
        for batch, g in zip(batches, exact, strict=True):
            gradient(batch)
            off.append(((gradient_of(networks) - g).norm() / g.norm()).item())
        return float(np.mean(off))

    def plainly(forward: int, backward: int, *kind: type) -> Callable[[Batch], None]:
        return lambda batch: plain_implicit(networks, batch, work.scale, forward, backward, *kind)

    def ours(halved: int) -> Callable[[Batch], object]:
        limits = {"iterations": 300, "backward_iterations": 100} if halved else {}
        names = ("tolerance", "backward_tolerance")
        closer = {name: getattr(spec.equilibrium, name) / 2**halved for name in names}
        chosen = solves(spec, **closer, **limits)
        return lambda batch: implicit(networks, batch, chosen)

    def first(candidates: list[Callable], limit: float) -> tuple[int, float]:
        """The first candidate of an error within the limit, else the last; its error."""
        for place, candidate in enumerate(candidates):
            off = error(candidate)
            if off <= limit or candidate is candidates[-1]:
                return place, off

    fewest = (5, 10, 15, 20, 30, 40, 60, 80)
    descents = (160,) if work.quick else (160, 640)
    limits = (spec.equilibrium.iterations, spec.equilibrium.backward_iterations)
    off = error(ours(0))
    i, plain_off = first([plainly(n, n) for n in fewest], off)
    j, descent_off = first([plainly(n, n, GradientDescent) for n in descents], off)
    limits_off = error(plainly(*limits))
    k, close_off = first([ours(halved) for halved in range(9)], limits_off)
    n, m = fewest[i], descents[j]
    pairs = [
        (f"{n} plain steps each way, as exact as ours", 0, rounds, plainly(n, n)),
        (f"{m} steps of gradient descent each way", 0, 1, plainly(m, m, GradientDescent)),
        (f"plain steps up to the limits, {limits[0]} and {limits[1]}", k, rounds, plainly(*limits)),
    ]
    errors = [(off, plain_off), (off, descent_off), (close_off, limits_off)]
    found = []
    for (name, halved, times, plain), (own, other) in zip(pairs, errors, strict=True):
        taken = sum(
            in_turn([partial(ours(halved), batch), partial(plain, batch)], times)
            for batch in tqdm(batches, "deq: plain gradients", disable=None)
        )
        note = f"error {own:.2g} and {other:.2g} of the gradient's norm, tolerances / {2**halved}"
        found.append(timed_row(f"DEQ gradient against {name}", *taken.T, ">= 2", note=note))
    return found


def rows(work: Workload) -> Iterator[Row]:
    """Everything about deep equilibria."""
    yield from restorations(work)
    yield from training_steps(work)
    if work.quick:
        yield own_network(work, work.networks(), 2, 1)
    else:
        yield own_network(work, work.networks(), 16, 3)
        yield own_network(work, paper_networks(), 1, 1)
    yield from plain_gradients(work)
