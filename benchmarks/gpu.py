"""What a GPU does with the networks, the solvers and the trainings: under four minutes, no data.

    python -m benchmarks.gpu [--json FILE] [--weights models/0/rerg.safetensors] [--quick]

Three networks, of the demo, of the middle and of config/paper.yaml, in three precisions, untrained:
their passes take as long as trained ones, and with an output as long as that of a trained RG the
equilibria of denoising exist. `--weights` adds the floors and times of a trained RG. Rows are
printed and written as they come; a part that fails is a row that says so. A goal is that of an
H100 or H200. The machine needs torch and the wheels that README.md lists, and no Snakemake.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import ROOT, seconds_of
from benchmarks.passes import step_and_passes
from rerg.batch import Batch
from rerg.config import read_yaml
from rerg.devices import peak_memory_mb, set_up_cpu
from rerg.images import Crops, prefetch
from rerg.models import Model, build, load_model
from rerg.networks import launch
from rerg.problems import Observation, Problem, generator
from rerg.provenance import commit, machine
from rerg.registry import load, variants
from rerg.restoration import climb
from rerg.specs import FLOORS, EquilibriumSpec, ModelSpec, NetworkSpec, ProblemSpec
from rerg.training import draw_batch, optimizer_of, take_step

PROBLEMS = read_yaml(ROOT / "config" / "problems.yaml")
RESIDUAL = 1e-5  # of config/paper.yaml
SHARE = 0.1  # of a noisy image's length, the output of an RG of the demo on it


@dataclass(frozen=True)
class Case:
    """A network, the batch and the crop that it is trained with, and the goal for its passes.

    goal: of the time of a step or of a restoration over that of its own passes.
    """

    name: str
    network: NetworkSpec
    batch: int
    crop: int
    goal: str | None = None

    def spec(self, variant: str, precision: str, **solves: float) -> ModelSpec:
        """A training of it; solves: fields of the equilibrium."""
        equilibrium = EquilibriumSpec(20, 0.0, 8, 0.0, np.inf)
        return ModelSpec(
            variant=variant,
            seed=0,
            start="",
            evaluations=1,
            learning_rate=1e-4,
            halve_every=0,
            crop=self.crop,
            batch=self.batch,
            clip=1.0,
            precision=precision,
            network=self.network,
            equilibrium=replace(equilibrium, **solves),
            problems=(ProblemSpec.of("sr2", PROBLEMS["sr2"]),),
            parameters=variants()[variant].parameters,
        )


def network_of(*channels: int, blocks: int) -> NetworkSpec:
    """A network with the scale of the configs."""
    return NetworkSpec(channels, blocks, 400.0)


CASES = (
    Case("demo", network_of(16, 32, 64, 64, blocks=1), 16, 64),
    Case("middle", network_of(32, 64, 128, 128, blocks=2), 16, 64, "<= 1.15"),
    Case("paper", network_of(64, 128, 256, 512, blocks=4), 16, 128, "<= 1.05"),
)
QUICK = (Case("toy", network_of(4, 4, 8, 8, blocks=1), 2, 32, "<= 1.15"),)


@dataclass(frozen=True)
class Bench:
    """What is measured, and where. quick: toy sizes; weights: of a trained RG, or None."""

    device: str
    quick: bool
    weights: Path | None

    @property
    def cases(self) -> tuple[Case, ...]:
        """The networks."""
        return QUICK if self.quick else CASES

    @property
    def seconds(self) -> float:
        """That a thing is measured for, at least."""
        return 0.0 if self.quick else 0.4

    @cached_property
    def images(self) -> Path:
        """Smooth random images of the size of those of BSDS500, as a prepared file."""
        path = Path(tempfile.mkdtemp(), "images.h5")
        with h5py.File(path, "w") as file:
            for i, image in enumerate(smooth(2 if self.quick else 32, 321, 481)):
                file[str(i)] = (255 * image).byte().movedim(0, -1).numpy()
                file[str(i)].attrs["pixels"] = str(i)
        return path

    def crops(self, case: Case) -> Crops:
        """Crops of them as the training of a case has them."""
        return Crops(self.images, case.crop, case.batch)

    def drawn(self, case: Case, problem: str = "sr2") -> Batch:
        """A batch of a case, on the device."""
        chosen = Problem(ProblemSpec.of(problem, PROBLEMS[problem]))
        return draw_batch(self.crops(case), [chosen], 0, 0).to(self.device)

    def model(self, case: Case, precision: str = "float32") -> Model:
        """An untrained RG whose output is as long as that of a trained one."""
        spec = case.spec("deqgd", precision)
        networks = build(spec).to(self.device).requires_grad_(False)
        x = self.drawn(case, "den25").observation.x0
        tail = networks["rg"].unet.m_tail.weight
        tail *= SHARE * x.norm() / networks["rg"](x).norm()
        model = Model(networks, spec, {})
        model.compute_in(precision)
        return model

    def milliseconds(self, call: Callable[[], object], repeats: int = 10) -> float:
        """Median of a call's time, so many in a row, as a solve makes them."""
        repeats = 1 if self.quick else repeats
        call()
        taken = [seconds_of(call)]
        while sum(taken) < self.seconds or len(taken) < 3:
            taken.append(seconds_of(lambda: [call() for _ in range(repeats)]) / repeats)
        return 1e3 * statistics.median(taken[1:])


def smooth(images: int, height: int, width: int) -> Tensor:
    """Random images (B, 3, H, W) in [0, 1] without fine detail."""
    coarse = np.random.default_rng(0).random((images, 3, 12, 16), np.float32)
    return F.interpolate(torch.from_numpy(coarse), (height, width), mode="bicubic").clamp(0, 1)


Found = Iterator[dict]


def passes(bench: Bench) -> Found:
    """A bare pass: forward, and forward with backward to all, over training and test batches."""
    for case in bench.cases:
        for precision in FLOORS:
            network = bench.model(case, precision).networks["rg"]
            side, tested = (32, (1, 48, 64)) if bench.quick else (128, (4, 321, 481))
            x = smooth(case.batch, side, side).to(bench.device)
            whole = smooth(*tested).to(bench.device)
            with torch.no_grad():
                forward = bench.milliseconds(lambda n=network, x=x: n(x))
                test = bench.milliseconds(lambda n=network, x=whole: n(x))
            network.requires_grad_(True)
            both = bench.milliseconds(lambda n=network, x=x: n(x).square().sum().backward())
            yield {
                "what": "pass",
                "network": case.name,
                "channels": list(case.network.channels),
                "blocks": case.network.blocks,
                "precision": precision,
                "shape": list(x.shape),
                "forward_ms": forward,
                "both_ms": both,
                "tested": list(whole.shape),
                "tested_ms": test,
            }


def ways(bench: Bench, precision: str) -> tuple[str, ...]:
    """The ways to launch a network that are compared with its passes, which are plain."""
    return ("plain", "graphs") if bench.device != "cpu" and precision == "tf32" else ("plain",)


def graphs(bench: Bench) -> Found:
    """A forward pass launched as one CUDA graph, against the same launched plainly."""
    if bench.device == "cpu":
        return
    for case in bench.cases:
        networks = bench.model(case, "tf32").networks
        x = smooth(case.batch, case.crop, case.crop).to(bench.device)
        found = {}
        for way in ways(bench, "tf32"):
            launch(networks, way)
            with torch.no_grad():
                found[way] = bench.milliseconds(lambda n=networks["rg"], x=x: n(x))
        yield {"what": "graph", "network": case.name, "shape": list(x.shape),
               "plain_ms": found["plain"], "graph_ms": found["graphs"],
               "ratio": found["plain"] / found["graphs"]}  # fmt: skip


def forget(bench: Bench) -> None:
    """Give back what earlier parts held, so that a peak is that of what follows."""
    gc.collect()
    if bench.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb(bench: Bench) -> float:
    """Most memory since then: of the GPU all that torch reserved, that of graphs too."""
    if bench.device == "cpu":
        return peak_memory_mb("cpu")
    return torch.cuda.max_memory_reserved() / 2**20


def steps(bench: Bench) -> Found:
    """A training step of `deqgd` of 20 and 8 iterations against its own passes, and its memory."""
    for case in bench.cases:
        for precision in FLOORS:
            networks = bench.model(case, precision).networks.requires_grad_(True)
            counts = {"iterations": 2, "backward_iterations": 1} if bench.quick else {}
            spec, batch = case.spec("deqgd", precision, **counts), bench.drawn(case)
            forget(bench)
            step = step_and_passes(spec, networks, batch, 1 if bench.quick else 3)
            row = {
                "what": "step",
                "network": case.name,
                "precision": precision,
                "launch": "plain",
                "shape": list(batch.truth.shape),
                "ms": 1e3 * step.seconds,
                "passes_ms": 1e3 * step.passes,
                "forward": step.forward,
                "backward": step.backward,
                "peak_mb": peak_mb(bench),
                "ratio": step.seconds / step.passes,
                "goal": case.goal,
            }
            yield row
            for way in ways(bench, precision)[1:]:
                forget(bench)
                launch(networks, way)
                take = partial(take_step, spec, networks, optimizer_of(networks, 0.0), batch)
                ms = bench.milliseconds(take, 1)
                yield {**row, "launch": way, "ms": ms, "peak_mb": peak_mb(bench),
                       "ratio": ms / row["passes_ms"]}  # fmt: skip
                del take
            del networks, batch


def launches(bench: Bench) -> Found:
    """What a step of `deqgd` launches, and the share of its time in which the GPU computes it."""
    if bench.device == "cpu":
        return
    for case in bench.cases:
        networks = bench.model(case, "tf32").networks.requires_grad_(True)
        step = partial(take_step, case.spec("deqgd", "tf32"), networks, optimizer_of(networks, 0.0))
        batch = bench.drawn(case)
        step(batch)  # warms up
        seconds = seconds_of(lambda s=step, b=batch: s(b))
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            step(batch)
            torch.cuda.synchronize()
        kernels = [e for e in profiled.events() if e.device_type == DeviceType.CUDA]
        busy = sum(e.self_device_time_total for e in kernels) / 1e3
        yield {"what": "launches", "network": case.name, "shape": list(batch.truth.shape),
               "kernels": len(kernels), "ms": 1e3 * seconds, "kernel_ms": busy,
               "ratio": busy / (1e3 * seconds)}  # fmt: skip


def tested(bench: Bench, problem: str) -> tuple[Tensor, Observation]:
    """Images as those of a test set, and their observation."""
    size = (1, 32, 48) if bench.quick else (4, 321, 480)
    chosen = Problem(ProblemSpec.of(problem, PROBLEMS[problem]))
    truth = chosen.crop(smooth(*size))
    rngs = [generator("gpu", problem, str(i)) for i in range(len(truth))]
    return truth.to(bench.device), chosen.observe(truth, rngs).to(bench.device)


def restorations(bench: Bench) -> Found:
    """Thirty iterations of the fast solver on test images against their own forward passes."""
    iterations = 2 if bench.quick else 30
    _, observation = tested(bench, "sr2")
    for case in bench.cases:
        for precision in FLOORS:
            model = bench.model(case, precision)
            T, network = model.restoring_map(observation, "fast"), model.networks["rg"]
            solve = partial(load("solvers", "fast").solve, T, tolerance=0.0, iterations=iterations)
            with torch.no_grad():
                bare = bench.milliseconds(lambda n=network: n(observation.x0))
                taken = solve().evaluations.max().item()
                for way in ways(bench, precision):
                    launch(model.networks, way)
                    whole = bench.milliseconds(solve, 1)
                    yield {
                        "what": "restoration",
                        "network": case.name,
                        "precision": precision,
                        "launch": way,
                        "shape": list(observation.x0.shape),
                        "ms": whole,
                        "passes_ms": taken * bare,
                        "forward": taken,
                        "ratio": whole / (taken * bare),
                        "goal": case.goal,
                    }


def floors(bench: Bench) -> Found:
    """Where a solve stalls in each precision, and the time to a residual of 1e-5 by climbing."""
    models = [(case.name, bench.model(case), ["den25"]) for case in bench.cases]
    if bench.weights:
        trained = load_model(bench.weights, device=bench.device)
        names = [problem.name for problem in trained.spec.problems]
        models.append((bench.weights.stem, trained, names))
    for name, model, problems in models:
        for problem in problems:
            _, observation = tested(bench, problem)
            options = {"iterations": 5 if bench.quick else 300, "tolerance": RESIDUAL}
            found = {}
            for way in (["bf16"], ["tf32"], ["tf32", "float32"], ["float32"]):
                solve = partial(climb, model, observation, "fast", options, way)
                with torch.no_grad():
                    solution, *_ = solve()  # warms up
                    found[" + ".join(way)] = solution, seconds_of(solve)
            cheap = found["tf32"][1]
            for way, (solution, seconds) in found.items():
                yield {
                    "what": "solve",
                    "network": name,
                    "problem": problem,
                    "precision": way,
                    "shape": list(observation.x0.shape),
                    "residual": solution.residual.max().item(),
                    "evaluations": solution.evaluations.max().item(),
                    "stopped": solution.stopped,
                    "ms": 1e3 * seconds,
                    "ratio": seconds / cheap,
                    "goal": "<= 1.5" if way == "tf32 + float32" else None,
                }


def waits(bench: Bench) -> Found:
    """Waits of the host for the GPU per iteration of the solvers, by torch's own record of them."""
    if bench.device == "cpu":
        return
    _, observation = tested(bench, "sr2")
    case = bench.cases[0]
    mtdeq = case.spec("mtdeq", "float32")
    admm = build(mtdeq).to(bench.device).requires_grad_(False)  # with a noise map
    for network in admm.values():
        network.unet.m_tail.weight *= SHARE
    for model in (bench.model(case), Model(admm, mtdeq, {})):
        T = model.restoring_map(observation, "fast")
        solve = partial(load("solvers", "fast").solve, T, tolerance=0.0)
        counts = []
        solve(iterations=2)  # warms up
        torch.cuda.set_sync_debug_mode("warn")  # says once that it is a prototype
        for iterations in (10, 30):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                taken = solve(iterations=iterations).evaluations.max().item()
            waited = [w for w in seen if "called a synchronizing CUDA operation" in str(w.message)]
            counts.append((taken, len(waited)))
        torch.cuda.set_sync_debug_mode("default")
        (few, first), (many, second) = counts
        per_iteration = (second - first) / (many - few) if many > few else None
        yield {"what": "waits", "variant": model.spec.variant, "evaluations": many,
               "per_iteration": per_iteration, "goal": "<= 1"}  # fmt: skip


def feeding(bench: Bench) -> Found:
    """Batches that threads draw in a second, and how busy the GPU is in a training of `red`."""
    case = bench.cases[-1]
    names = ("den25", "sr2", "blur16", "com80")
    problems = [Problem(ProblemSpec.of(name, PROBLEMS[name])) for name in names]
    load_batch = partial(draw_batch, bench.crops(case), problems, 0)
    cores = torch.multiprocessing.cpu_count()
    for threads in sorted({1, min(8, cores)}):
        batches = prefetch(load_batch, count(), threads)
        for _ in range(2 * threads + 2):
            next(batches)
        number = 2 if bench.quick else 20 * threads
        seconds = seconds_of(lambda b=batches, n=number: [next(b) for _ in range(n)])
        batches.close()
        yield {"what": "drawing", "shape": [case.batch, 3, case.crop, case.crop],
               "threads": threads, "ms": 1e3 * seconds / number}  # fmt: skip
    for precision in FLOORS:
        spec = case.spec("red", precision)
        networks = build(spec).to(bench.device)
        networks["rg"].precision = precision
        optimizer = optimizer_of(networks, 1e-4)
        here = load_batch(0).to(bench.device)
        bare = bench.milliseconds(
            lambda n=networks, o=optimizer, s=spec, b=here: take_step(s, n, o, b), 1
        )

        def load_pinned(step: int) -> Batch:
            batch = load_batch(step)
            return batch if bench.device == "cpu" else batch.pinned()

        batches = prefetch(load_pinned, count(), min(8, cores))

        def step(n=networks, o=optimizer, s=spec, b=batches) -> None:
            take_step(s, n, o, next(b).to(bench.device))

        for _ in range(2 if bench.quick else 20):
            step()
        number = 2 if bench.quick else 100
        fed = 1e3 * seconds_of(lambda f=step, n=number: [f() for _ in range(n)]) / number
        batches.close()
        yield {"what": "training of red", "network": case.name, "precision": precision,
               "threads": min(8, cores), "ms": fed, "passes_ms": bare, "ratio": bare / fed,
               "goal": ">= 0.9"}  # fmt: skip


_ready: Any = None  # in each process of `side_by_side`: the barrier of all of them


def _meet(barrier: Any) -> None:
    global _ready
    _ready = barrier


def _steps_in(seconds: float, device: str, quick: bool) -> float:
    """Steps of `deqgd` of the first network that one process makes in a second, beside others."""
    set_up_cpu(1)
    bench = Bench(device, quick, None)
    case = bench.cases[0]
    spec, batch = case.spec("deqgd", "tf32"), bench.drawn(case)
    networks = bench.model(case, "tf32").networks.requires_grad_(True)
    optimizer = optimizer_of(networks, 0.0)
    take_step(spec, networks, optimizer, batch)
    _ready.wait()
    began, made = time.perf_counter(), 0
    while made == 0 or time.perf_counter() - began < seconds:
        take_step(spec, networks, optimizer, batch)
        made += 1
    return made / (time.perf_counter() - began)


def side_by_side(bench: Bench) -> Found:
    """Steps that processes make together on the one device, against one alone."""
    spawn, alone = multiprocessing.get_context("spawn"), 0.0
    for jobs in (1,) if bench.quick else (1, 4):
        meeting = {"initializer": _meet, "initargs": (spawn.Barrier(jobs),)}
        with ProcessPoolExecutor(jobs, spawn, **meeting) as pool:
            run = partial(pool.submit, _steps_in, 5 * bench.seconds, bench.device, bench.quick)
            made = sum(f.result() for f in [run() for _ in range(jobs)])
        alone = alone or made
        yield {"what": "jobs side by side", "jobs": jobs, "steps_per_s": made,
               "ratio": made / alone}  # fmt: skip


PARTS = (passes, graphs, steps, launches, restorations, floors, waits, feeding, side_by_side)


def line(row: dict) -> str:
    """A row in words: what, of what, and its numbers."""

    return ", ".join(f"{key} {text(value)}" for key, value in row.items() if value is not None)


def text(value: object) -> str:
    """A value for the table; nothing where there is none."""
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def table(rows: list[dict]) -> str:
    """The rows as a table in Markdown, with the columns that all kinds share."""
    shared = ("what", "network", "precision", "launch", "shape", "ratio", "goal")
    lines = ["| " + " | ".join((*shared, "numbers")) + " |", "|---" * (len(shared) + 1) + "|"]
    for row in rows:
        rest = {key: value for key, value in row.items() if key not in shared}
        cells = [*(text(row.get(key)) for key in shared), line(rest)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(bench: Bench, target: Path) -> list[dict]:
    """All parts, one after another, written after every row."""
    about = {"device": bench.device, "torch": torch.__version__, "commit": commit(ROOT)}
    if bench.device != "cpu":
        about["device"] = torch.cuda.get_device_name()
    content = {**about, "machine": machine(), "seconds": {}, "rows": []}
    target.parent.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        began = time.perf_counter()
        print(f"{part.__name__}: {part.__doc__.splitlines()[0]}", flush=True)
        try:
            for row in part(bench):
                content["rows"].append(row)
                print(f"  {line(row)}", flush=True)
                target.write_text(json.dumps(content, indent=1) + "\n")
        except Exception as error:  # the other parts are worth their minutes
            failed = f"{type(error).__name__}: {error}".splitlines()[0]
            content["rows"].append({"what": part.__name__, "failed": failed})
            print(f"  {failed}", flush=True)
        content["seconds"][part.__name__] = round(time.perf_counter() - began, 1)
        target.write_text(json.dumps(content, indent=1) + "\n")
    return content["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", type=Path, help="of a trained RG, for its floors and times")
    parser.add_argument("--quick", action="store_true", help="toy sizes: whether it runs at all")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "gpu.json")
    given = parser.parse_args()
    set_up_cpu(1)
    rows = measure(Bench(given.device, given.quick, given.weights), given.json)
    print(f"\n{table(rows)}\n\nwritten to {given.json}")


if __name__ == "__main__":
    main()
