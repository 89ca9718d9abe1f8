"""Scores as a run writes them, from a model of quality: problem + method + seed + image."""

import json

import numpy as np
import pandas as pd

from rerg.scores import COLUMNS

FLOOR = {"initial": -7.0, "tv": -1.5, "red": -4.0, "rg": -0.6, "rg1": -1.2, "deqgd": -0.3}
EVALUATIONS = {"fast": 60, "gd": 500, "adam": 500, "turns": 480}


def synthetic_scores(methods, problems, images=5, seed=0, dataset="photos", seeds=(0,)):
    """All methods on all problems; `methods` maps the method to its entry, `problems` likewise.

    Variants have rows of every one of `seeds`, all else one row for all of them.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for number, problem in enumerate(problems):
        for image in range(images):
            base = 31 - 0.7 * number + np.random.default_rng([number, image]).normal(0, 2)
            for method in ["initial", *methods, "truth"]:
                entry = methods.get(method, {})
                for of_seed in seeds if "variant" in entry else [None]:
                    rows.append(_row(entry, method, of_seed, problem, image, base, generator))
    table = pd.DataFrame(rows).assign(run="synthetic", dataset=dataset, commit="0000000")
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def expected_of(methods, problems, datasets=("photos",), seeds=(0,), images=None):
    """What the config of such a run says of its table; images: by dataset, where they are known."""
    return {
        "datasets": list(datasets),
        "images": images or {name: [] for name in datasets},
        "seeds": list(seeds),
        "methods": {
            name: {"problems": list(problems), "seeded": "variant" in entry}
            for name, entry in methods.items()
        },
    }


def _row(entry, method, seed, problem, image, base, generator):
    variant = entry.get("variant", method)
    quality = base + FLOOR.get(variant, 0.0) + generator.normal(0, 0.15)
    if seed is not None:
        quality += np.random.default_rng([seed, len(variant)]).normal(0, 0.2)
    row = {
        "problem": problem,
        "method": method,
        "seed": seed,
        "image": f"image{image}",
        "psnr": quality if method != "truth" else np.inf,
        "ssim": min(0.03 * quality, 0.99) if method != "truth" else 1.0,
        "lpips": 0.5 - 0.012 * quality if method != "truth" else 0.0,
        "error": 10 ** (-quality / 20) if method != "truth" else 0.0,
    }
    if "solver" in entry:
        row |= _solved(row, entry["solver"], base, generator)
    return row


def _solved(row, solver, base, generator):
    evaluations = int(EVALUATIONS[solver] * generator.uniform(0.6, 1))
    q = generator.uniform(0.6, 1.03)
    grid = np.unique(np.geomspace(1, evaluations, 40).astype(int))
    start = base + FLOOR["initial"]
    curve = row["psnr"] - (row["psnr"] - start) * np.exp(-5 * grid / evaluations)
    converged = bool(generator.uniform() < 0.9)
    bounded = {
        "bound_r": row["error"] * (1 - q) * 1.5 if q < 1 else row["error"],
        "bound_q": q,
        "bound": row["error"] * generator.uniform(1.2, 6) if q < 1 else np.nan,
        "bound_violations": 0,
        "bound_iterates": 30,
    }
    return {
        "iterations": evaluations,
        "network_evaluations": evaluations,
        "residual": 10 ** generator.uniform(-6, -4),
        "converged": None if solver == "adam" else converged,
        "stopped": "limit" if solver == "adam" or not converged else "converged",
        "seconds": 0.01 * evaluations,
        "peak_memory_mb": 200.0,
        "device": "cpu",
        "trace": json.dumps(
            [[int(k), round(float(v), 4)] for k, v in zip(grid, curve, strict=True)]
        ),
        **(bounded if solver == "fast" else {}),
    }
