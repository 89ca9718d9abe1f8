"""How well models restore validation images: what settings are chosen by, before a test image.

    python -m benchmarks.validation WEIGHTS.safetensors [...] --images FOLDER [--last 20]
        [--crop 64] [--iterations 150] [--tolerance 1e-4] [--problems den50 com95 ...]

The centres of the last images of a folder, by name (those that come first may have tuned), are
restored by each model from the problems that the first was trained on, or from those named, with
the fast solver and the σ of config/problems.yaml. A cell is the mean PSNR in dB, the mean
evaluations, and in brackets how many converged where not all did. The last rows are means over the
problems, and the largest distance in dB to the best of these models on any problem.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measure import ROOT, centre, kernels_of, photographs
from rerg.config import InputError, read_yaml
from rerg.devices import set_up_cpu
from rerg.models import Model, load_model
from rerg.problems import Problem, generator
from rerg.restoration import restore_batch
from rerg.specs import ProblemSpec


def problems_of(names: list[str], model: Model, run: Path) -> list[Problem]:
    """The named problems of config/problems.yaml; without names those the model was trained on.

    run: the folder of the run that prepared their kernels.
    """
    kernels = kernels_of(run)
    if not names:
        return [Problem(spec, kernels) for spec in model.spec.problems]
    entries = read_yaml(ROOT / "config" / "problems.yaml")
    if unknown := sorted({*names} - {*entries}):
        raise InputError(f"{unknown[0]}: no problem of config/problems.yaml")
    return [Problem(ProblemSpec.of(name, entries[name]), kernels) for name in names]


def restorations(
    models: dict[str, Model], problem: Problem, truth: dict[str, Tensor], options: dict
) -> pd.DataFrame:
    """A row per model and image of a problem: psnr, evaluations, converged."""
    x, found = problem.crop(torch.stack([*truth.values()])), []
    rngs = [generator("validation", problem.name, image) for image in truth]
    observation = problem.observe(x, rngs)
    for name, model in models.items():
        _, stats, traces = restore_batch(model, observation, "fast", options, truth=x)
        found += [
            {
                "problem": problem.name,
                "model": name,
                "psnr": trace[-1, 2],
                "evaluations": entry["network_evaluations"],
                "converged": entry["converged"],
            }
            for entry, trace in zip(stats, traces, strict=True)
        ]
    return pd.DataFrame(found)


def cells(rows: pd.DataFrame) -> list[str]:
    """A problem's cell of each model: mean PSNR, mean evaluations, and who converged if not all."""
    found = []
    for _, of_model in rows.groupby("model", sort=False):
        psnr, evaluations = of_model["psnr"].mean(), of_model["evaluations"].mean()
        there = of_model["converged"].sum()
        short = f" ({there})" if there < len(of_model) else ""
        found.append(f"{psnr:.2f}; {evaluations:.1f}{short}")
    return found


def summary(rows: pd.DataFrame) -> dict[str, list[str]]:
    """What each model has over all problems."""
    numbers = rows.groupby(["problem", "model"]).mean().unstack()
    numbers = numbers.reindex(columns=rows["model"].unique(), level="model")
    psnr = numbers["psnr"]
    regret = psnr.rsub(psnr.max(axis=1), axis=0).max()
    return {
        "mean PSNR, dB": [f"{value:.2f}" for value in psnr.mean()],
        "worst-case regret among these, dB": [f"{value:.2f}" for value in regret],
        "converged": [f"{100 * value:.1f} %" for value in numbers["converged"].mean()],
        "evaluations": [f"{value:.1f}" for value in numbers["evaluations"].mean()],
    }


def line(name: str, values: list[str]) -> str:
    """A row of the table, in Markdown."""
    return f"| {' | '.join([name, *values])} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation")
    parser.add_argument("weights", type=Path, nargs="+", help="files of models, as runs keep them")
    parser.add_argument("--images", type=Path, required=True, help="folder of validation images")
    parser.add_argument("--last", type=int, default=20, help="how many of them, from the end")
    parser.add_argument("--crop", type=int, default=64, help="pixels of a side of their centres")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--problems", nargs="+", default=[], help="of config/problems.yaml")
    given = parser.parse_args()
    set_up_cpu(1)
    found = []
    try:
        models = {str(path.with_suffix("")): load_model(path) for path in given.weights}
        first, model = given.weights[0].resolve(), next(iter(models.values()))
        problems = problems_of(given.problems, model, first.parents[2])
        truth = dict([*photographs(given.images).items()][-given.last :])
        truth = {name: centre(image, given.crop) for name, image in truth.items()}
        options = {"iterations": given.iterations, "tolerance": given.tolerance}
        print(line("", [*models]) + "\n" + line("---", ["---"] * len(models)), flush=True)
        for problem in tqdm(problems, unit="problem", disable=None):
            found.append(restorations(models, problem, truth, options))
            print(line(problem.name, cells(found[-1])), flush=True)
    except InputError as error:
        sys.exit(str(error))
    for name, values in summary(pd.concat(found)).items():
        print(line(name, values))


if __name__ == "__main__":
    main()
