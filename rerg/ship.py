"""`python -m rerg.ship results/shipped`: the RERG of a finished run becomes the weights that ship.

Writes `rerg/weights/rerg.safetensors`, its JSON with the licences of its training images, and a
card with its PSNR.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from rerg.cli import registry
from rerg.config import InputError
from rerg.models import load_model
from rerg.reconstructor import SHIPPED
from rerg.scores import read_scores

NAME = "rerg"
LARGEST = 2_000_000  # bytes


def card(about: Mapping, weights: int, scores: pd.DataFrame, config: Mapping) -> str:
    """What the weights are, in Markdown: origin, licences, mean PSNR by problem and dataset.

    about: of the model; config: of its run, whose scores are given.
    """
    names = {"initial": "as given", NAME: "restored"}
    seed = config["seeds"][0]
    of_the_seed = scores["seed"].isna() | (scores["seed"] == seed)
    table = scores[scores["method"].isin(names) & of_the_seed].assign(
        column=lambda t: t["dataset"] + ", " + t["method"].map(names)
    )
    # an empty cell makes its mean empty, as in the tables
    means = table.pivot_table(
        "psnr", "problem", "column", lambda cells: cells.mean(skipna=False), sort=False
    )
    rows = [
        f"| {problem} | {' | '.join(f'{value:.2f}' for value in row)} |"
        for problem, row in means.iterrows()
    ]
    images = [
        f"- {name}: {entry['citation']};\n  {entry['licence']}"
        for name, entry in about["images"].items()
    ]
    return "\n".join(
        [
            f"# {NAME}",
            "",
            f"RERG of {weights} weights, trained with {about['evaluations']} network evaluations "
            f"in the run `{config['run']}`, seed {seed}, on",
            "",
            *images,
            "",
            f"The weights have the licence of the software, MIT. sha256 {about['sha256']}",
            "",
            f"Mean PSNR in dB on RGB in [0, 1], σ {'' if config['tuning']['rounds'] else 'not '}"
            "tuned; problems of config/problems.yaml, images of config/datasets.yaml:",
            "",
            f"| problem | {' | '.join(means.columns)} |",
            f"|---|{'---|' * len(means.columns)}",
            *rows,
            "",
        ]
    )


def ship(results: Path, folder: Path = SHIPPED) -> None:
    """Copy the RERG of a run's first seed to `folder`, with its description and its card.

    Raises InputError where the run is not finished, its training is destroyed, or the weights
    exceed 2 MB.
    """
    try:
        provenance = json.loads((results / "provenance.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{results}: expected a finished run, found no provenance.json") from None
    config = provenance["config"]
    source = results / "models" / str(config["seeds"][0]) / f"{NAME}.safetensors"
    model = load_model(source)
    if reason := model.about["destroyed"]:
        raise InputError(f"{source}: its training is destroyed: {reason}")
    if source.stat().st_size > LARGEST:
        raise InputError(f"{source}: expected at most {LARGEST} bytes, to ship")
    datasets = registry("datasets.yaml")
    images = {
        name: {key: datasets[name][key] for key in ("licence", "citation")}
        for name in config["datasets"]["train"]
    }
    about = {**model.about, "images": images}
    weights = sum(parameter.numel() for parameter in model.networks.parameters())
    text = card(about, weights, read_scores(results / "scores.csv"), config)
    folder.mkdir(exist_ok=True)
    shutil.copyfile(source, folder / source.name)
    (folder / f"{NAME}.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / f"{NAME}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="rerg.ship", description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path, help="of a finished run, results/<run>")
    try:
        ship(parser.parse_args().results)
    except InputError as error:
        sys.exit(str(error))
