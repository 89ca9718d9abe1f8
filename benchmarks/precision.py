"""What bfloat16 in the network costs a restoration: PSNR, residual and seconds beside float32.

    python benchmarks/precision.py results/demo rerg embedded-test [--device cuda] [--images 1]

To be held, for a precision to be offered for restorations: 0.02 dB at most, on every problem.
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path

from rerg.images import read_images
from rerg.networks import load_weights
from rerg.problems import load_observations
from rerg.restoration import psnr, solve
from rerg.training import build_networks
from rerg.variants import restoring_map

OPTIONS = {"iterations": 100, "tolerance": 1e-4}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("variant")
    parser.add_argument("dataset")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1)
    given = parser.parse_args()
    weights = given.run / "models" / f"{given.variant}.safetensors"
    spec = json.loads(weights.with_suffix(".json").read_text())["spec"]
    networks = build_networks(spec)
    load_weights(weights, networks, {})
    networks.to(given.device).requires_grad_(False)
    stored = read_images(given.run / "images" / f"{given.dataset}.h5")
    images = dict(islice(stored.items(), given.images))
    print("| problem | PSNR, dB | change by bf16, dB | residual | of bf16 | s | of bf16 |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted((given.run / "observations" / given.dataset).glob("*.npz")):
        problem, observations = load_observations(path, given.device)
        rows = []
        for precision in ("float32", "bf16"):
            for network in networks.values():
                network.precision = precision
            quality, residual, began = [], [], time.perf_counter()
            for name, x in images.items():
                truth = problem.crop(x[None])
                T = restoring_map(
                    given.variant, networks, observations[name], spec["network"]["scale"], "fast"
                )
                solution = solve(T, "fast", OPTIONS)
                quality.append(psnr(T.restoration(solution.x).cpu(), truth).item())
                residual.append(solution.residual.max().item())
            seconds = time.perf_counter() - began
            rows.append((sum(quality) / len(quality), max(residual), seconds))
        (exact, r, s), (rough, r16, s16) = rows
        print(
            f"| {problem.name} | {exact:.2f} | {rough - exact:+.3f} | {r:.0e} | {r16:.0e} "
            f"| {s:.1f} | {s16:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
