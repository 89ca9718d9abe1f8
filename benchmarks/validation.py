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

from benchmarks.measure import ROOT, centre, photographs
from rerg.config import InputError, read_yaml
from rerg.devices import set_up_cpu
from rerg.models import Model, load_model
from rerg.problems import Problem, generator
from rerg.restoration import restore_batch
from rerg.specs import ProblemSpec


def problems_of(names: list[str], model: Model, kernels: Path) -> list[Problem]:
    """The named problems of config/problems.yaml; without names those the model was trained on.

    kernels: the folder of the files of kernels, as a run prepares them.
    """
    files = {path.stem: str(path) for path in kernels.glob("*.npz")}
    if not names:
        return [Problem(spec, files) for spec in model.spec.problems]
    entries = read_yaml(ROOT / "config" / "problems.yaml")
    if unknown := sorted({*names} - {*entries}):
        raise InputError(f"{unknown[0]}: no problem of config/problems.yaml")
    return [Problem(ProblemSpec.of(name, entries[name]), files) for name in names]


def restorations(
    models: dict[str, Model], problems: list[Problem], truth: dict[str, Tensor], options: dict
) -> pd.DataFrame:
    """A row per model, problem and image: psnr, evaluations, converged."""
    found = []
    clean, pairs = torch.stack([*truth.values()]), [(p, m) for p in problems for m in models]
    for problem, name in tqdm(pairs, unit="restoration", disable=None):
        x = problem.crop(clean)
        observation = problem.observe(x, [generator("validation", problem.name, i) for i in truth])
        _, stats, traces = restore_batch(models[name], observation, "fast", options, truth=x)
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


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per problem and a column per model, and what the models have over all problems."""
    columns = rows["model"].unique()
    by = rows.groupby(["problem", "model"], sort=False)
    means = by.mean().unstack()[["psnr", "evaluations"]]
    images, converged = by.size().unstack(), by["converged"].sum().unstack()
    cells = pd.DataFrame(index=means.index, columns=columns)
    for problem in cells.index:
        for name in columns:
            psnr, evaluations = (means.loc[problem, (k, name)] for k in ("psnr", "evaluations"))
            there = converged.loc[problem, name]
            short = f" ({there})" if there < images.loc[problem, name] else ""
            cells.loc[problem, name] = f"{psnr:.2f}; {evaluations:.1f}{short}"
    regret = -means["psnr"].sub(means["psnr"].max(axis=1), axis=0).min()
    share = 100 * converged.sum() / images.sum()
    for name in columns:
        cells.loc["mean PSNR, dB", name] = f"{means['psnr'][name].mean():.2f}"
        cells.loc["worst-case regret among these, dB", name] = f"{regret[name]:.2f}"
        cells.loc["converged", name] = f"{share[name]:.1f} %"
        cells.loc["evaluations", name] = f"{means['evaluations'][name].mean():.1f}"
    return cells


def markdown(cells: pd.DataFrame) -> str:
    """A table of texts in Markdown."""
    lines = [["", *cells.columns], ["---", *("---" for _ in cells)]]
    lines += [[name, *row] for name, row in zip(cells.index, cells.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    try:
        models = {str(path.with_suffix("")): load_model(path) for path in given.weights}
        first, model = given.weights[0].resolve(), next(iter(models.values()))
        problems = problems_of(given.problems, model, first.parents[2] / "images")
        truth = dict([*photographs(given.images).items()][-given.last :])
        truth = {name: centre(image, given.crop) for name, image in truth.items()}
        options = {"iterations": given.iterations, "tolerance": given.tolerance}
        rows = restorations(models, problems, truth, options)
    except InputError as error:
        sys.exit(str(error))
    print(markdown(table(rows)))


if __name__ == "__main__":
    main()
