"""What a config costs on GPUs, and what the cluster adds: computed, nothing of it is measured.

    python benchmarks/cost.py [config/paper.yaml] [--teraflops 20] [--job-seconds 20]

Floating-point operations of the network are counted on a small input and scale with the pixels.
--teraflops: what a GPU sustains in float32 on convolutions, an assumption: a third of the 67 of
an H100's data sheet. --job-seconds: submission, start and imports of a job of the cluster.
Restorations are counted at the iteration limit of their solver, so theirs is an upper bound.
"""

import argparse
import re
import subprocess
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from rerg.config import Run, read_yaml
from rerg.networks import build
from rerg.tuning import STEPS

ROOT = Path(__file__).parents[1]
# Pixels of all images; those of Set5 from its five sizes.
PIXELS = {
    "set5": 512**2 + 288**2 + 256**2 + 280**2 + 228 * 344,
    "cbsd68": 68 * 481 * 321,
    "bsds500-validation": 100 * 481 * 321,
}
BACKWARD = 2  # a backward pass costs at most two forward ones; half of the passes are backward
SIDE = 64  # of the input on which operations are counted


def merged(base: dict, over: dict) -> dict:
    """A config over the default one, key by key, as Snakemake merges them."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        out[key] = merged(base[key], value) if both else value
    return out


def flops_per_pixel(network: dict) -> float:
    """Floating-point operations of a forward pass, per pixel."""
    unet, counter = build(network, conditioned=False, seed=0), FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        unet(torch.zeros(1, 3, SIDE, SIDE))
    return counter.get_total_flops() / SIDE**2


def jobs_of(path: Path) -> dict[str, int]:
    """Jobs by rule, by a dry run."""
    command = [
        "snakemake",
        "-n",
        "--quiet",
        "rules",
        "--nolock",
        "--forceall",
        "--configfile",
        str(path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = re.findall(r"^([\w-]+) +(\d+)$", done.stdout, re.M)
    return {rule: int(count) for rule, count in rows if rule not in ("total", "job")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "config" / "paper.yaml")
    parser.add_argument("--teraflops", type=float, default=20)
    parser.add_argument("--job-seconds", type=float, default=20)
    given = parser.parse_args()
    config = merged(read_yaml(ROOT / "config" / "config.yaml"), read_yaml(given.config))
    run = Run(config, ROOT, str(given.config))
    per_pixel = flops_per_pixel(config["network"])

    def hours(passes: float, pixels: float) -> float:
        return passes * pixels * per_pixel / (given.teraflops * 1e12) / 3600

    print(f"{per_pixel * 128**2 / 1e9:.1f} GFLOP for a forward pass over 128 x 128 pixels")
    print(f"assumed: {given.teraflops:g} TFLOP/s, {given.job_seconds:g} s per job\n")
    print("| stage | what | GPU hours, computed |\n|---|---|---|")
    total = 0.0
    crops = config["training"]["batch"] * config["training"]["crop"] ** 2
    for variant in run.variants():
        cost = hours(config["variants"][variant]["evaluations"] * (1 + BACKWARD) / 2, crops)
        total += cost
        print(f"| training | {variant}, at most | {cost:.0f} |")
    tested = sum(PIXELS[name] for name in config["datasets"]["test"])
    for solver, options in config["solvers"].items():
        methods = [m for m in run.all_methods() if run.methods[m].get("solver") == solver]
        checks = config["restoration"]["bound_iterates"] if solver == "fast" else 0
        count = sum(len(run.problems_of(m)) for m in methods)
        cost = count * hours(options["iterations"] + checks, tested)
        total += cost
        print(f"| restoration | {solver}: {count} methods x problems, at most | {cost:.0f} |")
    tuning = config["tuning"]
    if tuning["rounds"]:
        per_variant = len(tuning["factors"]) + STEPS + 2 * (tuning["rounds"] - 1)
        trials = per_variant * len(run.variants())
        pixels = sum(PIXELS[name] for name in config["datasets"]["validation"])
        share = min(1, tuning["images"] / 100)
        passes = trials * len(config["problems"]) * tuning["iterations"]
        cost = hours(passes, share * pixels)
        total += cost
        print(f"| tuning | {trials} trials per problem, at most | {cost:.0f} |")
    print(f"| all | | {total:.0f} |\n")

    jobs = jobs_of(given.config)
    count = sum(jobs.values())
    added = count * given.job_seconds / 3600
    share = 100 * added / total
    print(f"{count} jobs, {added:.1f} h for their starts: {share:.1f} % of all, computed")


if __name__ == "__main__":
    main()
