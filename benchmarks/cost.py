"""What a config costs on a GPU: its passes at the speed that was measured, and its jobs.

    python -m benchmarks.cost [config/paper.yaml] [--measured benchmarks/h200.json]
        [--job-seconds 20]

--measured: a file of `python -m benchmarks.gpu`. Passes are counted from the config, each solver at
its iteration limit; their time is that of the measured network nearest in operations, scaled by
pixels and operations. --job-seconds: submission, start and imports of a job of the cluster.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dag import planned
from rerg.config import read_yaml
from rerg.networks import UNet
from rerg.run import Run
from rerg.tuning import STEPS

ROOT = Path(__file__).parents[1]
# Pixels of all images; those of Set5 from its five sizes.
PIXELS = {
    "set5": 512**2 + 288**2 + 256**2 + 280**2 + 228 * 344,
    "cbsd68": 68 * 481 * 321,
    "bsds500-validation": 100 * 481 * 321,
}
SIDE = 64  # of the input on which operations are counted


def merged(base: dict, over: dict) -> dict:
    """A config over the default one, key by key, as Snakemake merges them."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        out[key] = merged(base[key], value) if both else value
    return out


def operations(channels: list[int], blocks: int) -> float:
    """Floating-point operations of a forward pass, per pixel."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.device("meta"):  # nothing is computed
        unet = UNet(channels, blocks)
        with counter:
            unet.body(torch.zeros(1, 3, SIDE, SIDE))
    return counter.get_total_flops() / SIDE**2


class Speed:
    """Seconds of passes through a network, of the measured one nearest to it in operations."""

    def __init__(self, measured: Path, channels: list[int], blocks: int):
        rows = json.loads(measured.read_text())["rows"]
        passes = [row for row in rows if row["what"] == "pass"]
        own = operations(channels, blocks)
        sizes = {row["network"]: operations(row["channels"], row["blocks"]) / own for row in passes}
        nearest = min(sizes, key=lambda name: abs(math.log(sizes[name])))
        self.network, self.scale = nearest, 1 / sizes[nearest]
        self.rows = {row["precision"]: row for row in passes if row["network"] == nearest}

    def forward(self, precision: str) -> float:
        """Of a forward pass, per pixel."""
        row = self.rows[precision]
        return self.scale * 1e-3 * row["forward_ms"] / self._pixels(row)

    def training(self, precision: str) -> float:
        """Of a pass of a training, half of which are backward, per pixel."""
        row = self.rows[precision]
        return self.scale * 1e-3 * row["both_ms"] / 2 / self._pixels(row)

    def _pixels(self, row: dict) -> int:
        batch, _, height, width = row["shape"]
        return batch * height * width


def jobs_of(path: Path) -> dict[str, int]:
    """Jobs by rule, by a dry run."""
    jobs = planned(str(path.resolve()), ROOT, "--nolock", "--forceall")
    return {rule: count for rule, count in jobs.items() if rule != "total"}


def shown(hours: np.ndarray) -> str:
    """The two ends of a range, once where they are the same."""
    return " - ".join(dict.fromkeys(f"{value:.1f}" for value in hours))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost")
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "config" / "paper.yaml")
    parser.add_argument("--measured", type=Path, default=ROOT / "benchmarks" / "h200.json")
    parser.add_argument("--job-seconds", type=float, default=20)
    given = parser.parse_args()
    config = merged(read_yaml(ROOT / "config" / "config.yaml"), read_yaml(given.config))
    datasets = [*config["datasets"]["test"], *config["datasets"]["validation"]]
    if unknown := [name for name in datasets if name not in PIXELS]:
        parser.error(f"{unknown[0]}: its size is not known here; expected {', '.join(PIXELS)}")
    run = Run(config, ROOT, str(given.config))
    speed = Speed(given.measured, config["network"]["channels"], config["network"]["blocks"])
    # At its limit a solve takes half of its passes in the first precision at most; the last is the
    # slowest.
    ends = [config["restoration"]["precision"][i] for i in (0, -1)]
    about = json.loads(given.measured.read_text())
    print(f"Passes as measured on one {about['device']}, torch {about['torch']}, with the network")
    print(f"`{speed.network}`, times {speed.scale:.2f}; solves at least half in {ends[1]}\n")
    print("| stage | what | precision | GPU hours, at most |\n|---|---|---|---|")
    total = np.zeros(2)

    def row(stage: str, what: str, precision: str, hours: np.ndarray) -> None:
        total[:] += hours
        print(f"| {stage} | {what} | {precision} | {shown(hours)} |")

    def restored(passes: float, pixels: float, climbs: bool) -> np.ndarray:
        first, last = (passes * pixels * speed.forward(end) / 3600 for end in ends)
        return np.array([(first + last) / 2, last] if climbs else [first, first])

    crops = config["training"]["batch"] * config["training"]["crop"] ** 2
    for variant in run.variants():
        precision = run.precision_of(variant)
        passes = config["variants"][variant]["evaluations"] * len(run.seeds)
        hours = passes * crops * speed.training(precision) / 3600
        row("training", variant, precision, np.full(2, hours))
    tested = sum(PIXELS[name] for name in config["datasets"]["test"])
    both = " then ".join(config["restoration"]["precision"])
    for solver, options in config["solvers"].items():
        methods = [m for m in run.all_methods() if run.methods[m].get("solver") == solver]
        checks = config["restoration"]["bound_iterates"] if solver == "fast" else 0
        count = sum(len(run.problems_of(m)) * len(run.seeds_of(m)) for m in methods)
        if not count:
            continue
        climbs = "tolerance" in options  # else all is in the first precision
        hours = count * restored(options["iterations"] + checks, tested, climbs)
        where = both if climbs else ends[0]
        row("restoration", f"{solver}: {count} methods x problems", where, hours)
    tuning = config["tuning"]
    if tuning["rounds"]:
        pixels = sum(PIXELS[name] for name in config["datasets"]["validation"])
        pixels *= min(1, tuning["images"] / 100)
        names = dict.fromkeys(name for m in run.all_methods() for name in run.tuned(m))
        for what, factors, solver in (
            ("σ", "factors", "fast"),
            ("step of Adam-GD", "step_factors", "adam"),
        ):
            trials = len(tuning[factors]) + STEPS + 2 * (tuning["rounds"] - 1)
            passes = sum(
                trials * len(run.seeds_of(name)) * run.tuning_options(name, problem)["iterations"]
                for name in names
                if run.methods[name].get("solver") == solver
                for problem in run.tuned_problems(name)
            )
            climbs = solver == "fast"
            where = both if climbs else ends[0]
            hours = restored(passes, pixels, climbs)
            row("tuning", f"{what}, {trials} trials per problem and seed", where, hours)
    print(f"| all | | | {shown(total)} |\n")

    jobs = jobs_of(given.config)
    count = sum(jobs.values())
    added = count * given.job_seconds / 3600
    share = 100 * added / total[0]
    print(f"{count} jobs, {added:.1f} h for their starts: {share:.1f} % of the least of that")


if __name__ == "__main__":
    main()
