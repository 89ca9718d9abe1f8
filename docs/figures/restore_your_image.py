"""Draw docs/figures/restore-your-image.png by the command: pictures as given and as restored."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

from rerg.cli import main
from rerg.config import read_yaml
from rerg.photos import Photo, write_photo
from rerg.problems import Problem, generator
from rerg.specs import ProblemSpec

FOLDER = Path(__file__).parent
PICTURES = {  # problem: photograph, top-left corner
    "den25": (data.chelsea, (36, 86)),
    "blur16": (data.coffee, (36, 276)),
    "sr2": (data.chelsea, (0, 156)),
    "com80": (data.coffee, (20, 280)),
}
SIDE, AROUND = 168, 24  # pixels that are shown, and that are cut off again


def draw(weights: str) -> None:
    """weights: as `rerg restore --weights` takes them."""
    problems = read_yaml(FOLDER.parents[1] / "config" / "problems.yaml")
    columns = []
    for name, (photograph, (row, column)) in PICTURES.items():
        problem = Problem(ProblemSpec.of(name, problems[name]))
        side, around = SIDE + 2 * AROUND, AROUND // problem.factor
        pixels = photograph()[row : row + side, column : column + side]
        x = torch.from_numpy(pixels).movedim(-1, 0)[None].float() / 255
        observed = problem.observe(x, [generator("docs", name, "0")])
        y = observed.y[0, :, around:-around, around:-around]  # without what has wrapped around
        with tempfile.TemporaryDirectory() as scratch:
            given, out = Path(scratch, "given.png"), Path(scratch, "out.png")
            write_photo(given, Photo(y, bits=16))
            options = ["--problem", name]
            if problem.operator == "mask":
                mask = observed.physics.mask[0, 0, around:-around, around:-around]
                mask = mask.byte().numpy() * 255
                Image.fromarray(mask).save(Path(scratch, "mask.png"))
                options += ["--mask", f"{scratch}/mask.png"]
            if status := main(
                ["restore", str(given), *options, "-o", str(out), "--weights", weights]
            ):
                sys.exit(status)
            write_photo(given, Photo(y))
            pair = [Image.open(path).convert("RGB") for path in (given, out)]
        columns += [
            np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST)) for image in pair
        ]
    rows = [np.concatenate(columns[i : i + 4], 1) for i in (0, 4)]
    Image.fromarray(np.concatenate(rows)).save(FOLDER / "restore-your-image.png", optimize=True)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "rerg")
