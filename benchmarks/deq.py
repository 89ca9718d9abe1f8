"""Deep equilibria: against deepinv and torchdeq, against a plain one, against their own network.

Same network, same problems, same tolerance; `theirs` is the faster of a library's solvers, plain
iteration and Anderson acceleration with the library's defaults, that reach the equilibrium.
deepinv stops on the mean over the batch of the residuals, torchdeq on their maximum, and rerg
stops each image on its own.
"""

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from deepinv.optim import L2, PGD, AndersonAccelerationConfig, DEQConfig, Prior
from torch import Tensor, nn
from torchdeq import get_deq
from tqdm import tqdm

from benchmarks.measure import Row, Workload, in_turn, quartiles, timed_row
from rerg.equilibrium import ProximalGradient
from rerg.networks import UNet
from rerg.restoration import psnr, solve
from rerg.training import draw_batch, settings_of, take_step
from rerg.variants import Batch, Settings, module

TOLERANCE = {"restoration": 1e-4, "training": 1e-3}
LIMIT = {"restoration": 500, "training": 100}
CLIP = 1.0


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


def restorations(work: Workload) -> list[Row]:
    """A batch of every operator, restored by the fast solver and by the libraries."""
    network, rounds = work.network(), 1 if work.quick else 3
    options = {"iterations": LIMIT["restoration"], "tolerance": TOLERANCE["restoration"]}
    details = []
    for problem in tqdm(work.of_each_operator(), "deq: restorations", disable=None):
        truth, observation = work.observe(problem, 2 if work.quick else 4)
        T = ProximalGradient(network, observation, work.scale)
        calls = {"rerg": lambda T=T: solve(T, "fast", options).x}
        for library, make in LIBRARIES.items():
            calls[library] = make(T, "restoration", False)
            calls[f"{library}, Anderson"] = make(T, "restoration", True)
        with torch.no_grad():
            exact = solve(T, "fast", {"iterations": 2000, "tolerance": 1e-6}).x
            taken = in_turn(list(calls.values()), rounds)
            for (name, call), seconds in zip(calls.items(), taken.T, strict=True):
                before = network.evaluations
                x = call()
                details.append(
                    {
                        "problem": problem.name,
                        "solver": name,
                        "seconds": seconds.tolist(),
                        "evaluations": network.evaluations - before,
                        "off": (psnr(x, truth) - psnr(exact, truth)).abs().max().item(),
                    }
                )
    return against(details, "restoration", "dB", 0.05)


def against(details: list[dict], what: str, unit: str, off: float) -> list[Row]:
    """Rows against each library: sums over the problems of the faster solver that gets there.

    off: how far, in `unit`, a solver may end from the equilibrium to count as there.
    """
    problems = list(dict.fromkeys(d["problem"] for d in details))
    of = {(d["problem"], d["solver"]): d for d in details}
    found = []
    for library in LIBRARIES:
        there, missed = [], []
        for problem in problems:
            tried = [of[problem, library], of[problem, f"{library}, Anderson"]]
            tried = [d for d in tried if d["off"] <= off]
            if tried:
                there.append((of[problem, "rerg"], min(tried, key=lambda d: sum(d["seconds"]))))
            else:
                missed.append(problem)
        name = f"DEQ {what} against {library}"
        note = f"{len(there)} operators; there: within {off:g} {unit} of the equilibrium"
        far = max(of[problem, "rerg"]["off"] for problem in problems)
        note += f", rerg at most {far:.2g} off"
        note += f"; {library} does not get there on {', '.join(missed)}" if missed else ""
        if not there:
            found.append(Row(f"{name}, seconds", None, None, "s", None, ">= 1", note=note))
            continue
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


def reconstruction(x: Tensor, batch: Batch) -> Tensor:
    """The loss of deqgd (30) of a restoration."""
    error = (x - batch.truth).square().flatten(1).mean(1)
    start = (batch.observation.x0 - batch.truth).square().flatten(1).mean(1)
    return (error / start.clamp_min(1 / 255**2)).mean()


def solves(settings: Settings, **changes: float) -> Settings:
    """The settings with other solves, none of whose images is left out."""
    equilibrium = {**settings.equilibrium, **changes}
    return Settings(settings.scale, settings.beta, equilibrium, lost_above=np.inf)


def uniform(settings: Settings, tolerance: float, limit: int) -> Settings:
    """The settings with the same tolerance and limit forward and backward."""
    names = {"iterations": limit, "backward_iterations": limit}
    return solves(settings, tolerance=tolerance, backward_tolerance=tolerance, **names)


def implicit(networks: nn.ModuleDict, batch: Batch, settings: Settings) -> float:
    """Our implicit gradient of the loss of deqgd, left in the parameters; the loss."""
    networks.zero_grad(set_to_none=True)
    loss, _ = module("deqgd").loss(networks, batch, settings)
    loss.backward()
    return loss.item()


def training_steps(work: Workload) -> list[Row]:
    """Loss and implicit gradient of a batch of every operator, at the same tolerance."""
    networks, rounds = work.networks(), 1 if work.quick else 3
    settings = settings_of(work.spec)
    ours = uniform(settings, TOLERANCE["training"], LIMIT["training"])
    tight = uniform(settings, 1e-6, 300)
    details = []
    for problem in tqdm(work.of_each_operator(), "deq: training steps", disable=None):
        batch = draw_batch(work.crops, [problem], 0, 0)
        T = ProximalGradient(networks["rg"], batch.observation, work.scale)

        def theirs(solve: Callable[[], Tensor], batch: Batch = batch) -> None:
            networks.zero_grad(set_to_none=True)
            reconstruction(solve(), batch).backward()

        calls = {"rerg": lambda batch=batch: implicit(networks, batch, ours)}
        for library, make in LIBRARIES.items():
            for anderson in (False, True):
                solve_by = make(T, "training", anderson)
                name = f"{library}, Anderson" if anderson else library
                calls[name] = lambda solve_by=solve_by, theirs=theirs: theirs(solve_by)
        implicit(networks, batch, tight)
        exact = gradient_of(networks)
        taken = in_turn(list(calls.values()), rounds)
        for (name, call), seconds in zip(calls.items(), taken.T, strict=True):
            before = networks["rg"].evaluations
            call()
            details.append(
                {
                    "problem": problem.name,
                    "solver": name,
                    "seconds": seconds.tolist(),
                    "evaluations": networks["rg"].evaluations - before,
                    "off": ((gradient_of(networks) - exact).norm() / exact.norm()).item(),
                }
            )
    return against(details, "training step", "of the exact gradient's norm", 0.1)


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
    """Median seconds of a pass over x: forward, forward with a graph, backward to x, to all."""
    v = torch.ones_like(x)
    z = x.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            network(x)

    out = network(z)
    calls = [
        forward,
        lambda: network(z),
        lambda: torch.autograd.grad(out, z, v, retain_graph=True),
        lambda: torch.autograd.grad(out, [z, *network.parameters()], v, retain_graph=True),
    ]
    taken = np.median(in_turn(calls, rounds), 0).tolist()
    return dict(zip(("forward", "graph", "backward", "full"), taken, strict=True))


def own_network(work: Workload) -> list[Row]:
    """A training step of deqgd against its own passes through the network, timed apart."""
    settings, steps = settings_of(work.spec), 2 if work.quick else 16
    networks = work.networks()
    optimizer = torch.optim.Adam(networks.parameters(), lr=0.0)  # the same RG at every step
    network, ratios, whole, priced = networks["rg"], [], [], []
    rounds = 1 if work.quick else 3
    for step in tqdm(range(steps), "deq: own network", disable=None):
        batch = draw_batch(work.crops, list(work.problems.values()), 0, step)
        with Passes(network) as passes:
            take_step("deqgd", networks, optimizer, batch, settings, CLIP)
        taken = []
        x, costs = batch.truth, {}
        for _ in range(rounds):
            began = time.perf_counter()
            take_step("deqgd", networks, optimizer, batch, settings, CLIP)
            taken.append(time.perf_counter() - began)
            for size in {*passes.sizes[False], *passes.sizes[True]}:
                costs.setdefault(size, []).append(prices(network, x[:size], 1))
        price = {
            size: {key: np.median([c[key] for c in cost]) for key in cost[0]}
            for size, cost in costs.items()
        }
        full = max(price)
        cost = sum(price[size]["forward"] for size in passes.sizes[False])
        cost += sum(price[size]["graph"] for size in passes.sizes[True])
        cost += price[full]["full"] + (passes.backward - 1) * price[full]["backward"]
        whole.append(float(np.median(taken)))
        priced.append(float(cost))
    ratios = np.array(whole) / np.array(priced)
    return [
        Row(
            "DEQ training step against its own network evaluations",
            float(np.median(whole)),
            float(np.median(priced)),
            "s",
            sum(whole) / sum(priced),
            "<= 1.1",
            quartiles(ratios),
            f"ratio is ours / theirs, over {steps} batches of the problems",
        )
    ]


def plain_implicit(networks: nn.ModuleDict, batch: Batch, scale: float, count: int) -> float:
    """The gradient of the loss of deqgd by `count` plain steps forward and backward each."""
    networks.zero_grad(set_to_none=True)
    T = ProximalGradient(networks["rg"], batch.observation, scale)
    x = T.start()
    with torch.no_grad():
        for _ in range(count):
            x = T(x)
    z = x.requires_grad_()
    out = T(z)
    leaf = out.detach().requires_grad_()
    loss = reconstruction(leaf, batch)
    (v,) = torch.autograd.grad(loss, leaf)
    u = v
    for _ in range(count):
        u = torch.autograd.grad(out, z, u, retain_graph=True)[0] + v
    out.backward(u)
    return loss.item()


def plain_training(work: Workload) -> list[Row]:
    """Training by deqgd against a plain DEQ: fixed counts of plain steps, at an equal gradient.

    The count is the smallest of a grid whose median error of the gradient, over the batches, is
    not above ours. Both then train on one stream from the same weights, step by step in turn, and
    the losses at their ends are those of unseen batches at exact equilibria.
    """
    settings, problems = settings_of(work.spec), list(work.problems.values())
    probe, steps = (2, 2) if work.quick else (8, 24)
    tight = uniform(settings, 1e-6, 300)
    networks = work.networks()
    batches = [draw_batch(work.crops, problems, 1, step) for step in range(probe)]
    exact = []
    for batch in batches:
        implicit(networks, batch, tight)
        exact.append(gradient_of(networks))

    def error(gradient: Callable[[Batch], object]) -> float:
        off = []
        for batch, g in zip(batches, exact, strict=True):
            gradient(batch)
            off.append(((gradient_of(networks) - g).norm() / g.norm()).item())
        return float(np.median(off))

    every = solves(settings)
    ours_off = error(lambda batch: implicit(networks, batch, every))
    for count in (5, 10) if work.quick else (5, 10, 15, 20, 30, 40, 60, 80, 120, 160, 240):
        theirs_off = error(lambda batch, n=count: plain_implicit(networks, batch, work.scale, n))
        if theirs_off <= ours_off:
            break
    pair = {"ours": networks, "theirs": copy.deepcopy(networks)}
    rate = work.spec["settings"]["learning_rate"] / 10  # the RG is trained already
    optimizers = {k: torch.optim.Adam(n.parameters(), lr=rate) for k, n in pair.items()}
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}

    def step_of(side: str, batch: Batch) -> None:
        began = time.perf_counter()
        if side == "ours":
            implicit(pair[side], batch, every)
        else:
            plain_implicit(pair[side], batch, work.scale, count)
        nn.utils.clip_grad_norm_(pair[side].parameters(), CLIP)
        optimizers[side].step()
        taken[side].append(time.perf_counter() - began)

    for step in tqdm(range(steps), "deq: plain training", disable=None):
        batch = draw_batch(work.crops, problems, 2, step)
        for side in ("ours", "theirs") if step % 2 else ("theirs", "ours"):
            step_of(side, batch)
    losses = {
        side: float(np.mean([implicit(n, batch, tight) for batch in batches]))
        for side, n in pair.items()
    }
    ours, theirs = (np.array(taken[side]) for side in ("ours", "theirs"))
    note = (
        f"{count} plain steps each way; error of the gradient {ours_off:.3f} and {theirs_off:.3f}; "
        f"loss after {steps} steps {losses['ours']:.4f} and {losses['theirs']:.4f}"
    )
    return [
        Row(
            "DEQ training to the same loss against plain fixed counts, per step",
            float(ours.mean()),
            float(theirs.mean()),
            "s",
            float(theirs.sum() / ours.sum()),
            ">= 2",
            quartiles(theirs / ours),
            note,
        )
    ]


def rows(work: Workload) -> list[Row]:
    """Everything about deep equilibria."""
    return [
        *restorations(work),
        *training_steps(work),
        *own_network(work),
        *plain_training(work),
    ]
