"""Scores as a run writes them, from a model of quality: problem + method + image."""

import json

import numpy as np
import pandas as pd

from rerg.scores import COLUMNS

FLOOR = {"initial": -7.0, "tv": -1.5, "red": -4.0, "rg": -0.6, "rg1": -1.2, "deqgd": -0.3}
EVALUATIONS = {"fast": 60, "gd": 500, "adam": 500}


def synthetic_scores(methods, problems, images=5, seed=0, dataset="photos"):
    """All methods on all problems; `methods` maps the method to its entry, `problems` likewise."""
    generator = np.random.default_rng(seed)
    rows = []
    for number, problem in enumerate(problems):
        for image in range(images):
            base = 31 - 0.7 * number + np.random.default_rng([number, image]).normal(0, 2)
            for method in ["initial", *methods, "truth"]:
                entry = methods.get(method, {})
                variant = entry.get("variant", method)
                quality = base + FLOOR.get(variant, 0.0) + generator.normal(0, 0.15)
                row = {
                    "run": "synthetic",
                    "dataset": dataset,
                    "problem": problem,
                    "method": method,
                    "image": f"image{image}",
                    "psnr": quality if method != "truth" else np.inf,
                    "ssim": min(0.03 * quality, 0.99) if method != "truth" else 1.0,
                    "lpips": 0.5 - 0.012 * quality if method != "truth" else 0.0,
                    "error": 10 ** (-quality / 20) if method != "truth" else 0.0,
                    "seed": 0,
                    "commit": "0000000",
                }
                if "solver" in entry:
                    row |= _solved(row, entry["solver"], base, generator)
                rows.append(row)
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype(COLUMNS)


def _solved(row, solver, base, generator):
    evaluations = int(EVALUATIONS[solver] * generator.uniform(0.6, 1))
    q = generator.uniform(0.6, 1.03)
    grid = np.unique(np.geomspace(1, evaluations, 40).astype(int))
    start = base + FLOOR["initial"]
    curve = row["psnr"] - (row["psnr"] - start) * np.exp(-5 * grid / evaluations)
    return {
        "iterations": evaluations,
        "network_evaluations": evaluations,
        "residual": 10 ** generator.uniform(-6, -4),
        "converged": bool(generator.uniform() < 0.9),
        "seconds": 0.01 * evaluations,
        "peak_memory_mb": 200.0,
        "device": "cpu",
        "bound_r": row["error"] * (1 - q) * 1.5 if q < 1 else row["error"],
        "bound_q": q,
        "bound": row["error"] * generator.uniform(1.2, 6) if q < 1 else np.nan,
        "bound_violations": 0,
        "bound_iterates": 30,
        "trace": json.dumps(
            [[int(k), round(float(v), 4)] for k, v in zip(grid, curve, strict=True)]
        ),
    }
