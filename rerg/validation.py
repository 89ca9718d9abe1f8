"""The validation images: what is tuned on them, and whether a model restores them at all."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rerg.images import as_tensor, open_images
from rerg.metrics import psnr
from rerg.models import Model
from rerg.problems import Observation, Problem, batch, batches
from rerg.registry import load
from rerg.specs import ProblemSpec

SHARE = 0.5  # of the images or steps of a training's last fifth that may be lost
CHECKED = 2  # crops: with a dozen problems enough to tell that a model restores nothing
CHECK = {"iterations": 60, "tolerance": 1e-3}  # of the fast solver


@dataclass(frozen=True)
class Validation:
    """The first `count` images of some datasets.

    paths: dataset to its HDF5 file; kernels: names of kernel files to prepared files.
    """

    paths: Mapping[str, Path]
    count: int
    kernels: Mapping[str, Path]
    device: str

    def observe(
        self, spec: ProblemSpec, crop: int | None = None
    ) -> tuple[dict[str, Observation], dict[str, Tensor]]:
        """Observations of the images by a problem, and their ground truth, (3, H, W).

        crop: pixels of the side of their centres; None for whole images.
        """
        problem = Problem(spec, self.kernels)
        observed, truth = {}, {}
        for dataset, path in self.paths.items():
            with open_images(path) as file:
                for image in itertools.islice(file, self.count - len(observed)):
                    x = _centre(as_tensor(file[image][()]), crop)
                    seen = problem.observe_image(dataset, image, x)
                    observed[f"{dataset}/{image}"] = seen.to(self.device)
                    truth[f"{dataset}/{image}"] = problem.crop(x)
        return observed, truth


def _centre(x: Tensor, crop: int | None) -> Tensor:
    if crop is None:
        return x
    row, column = ((side - min(side, crop)) // 2 for side in x.shape[1:])
    return x[:, row : row + crop, column : column + crop]


def gains(
    model: Model,
    validation: Validation,
    problems: Sequence[ProblemSpec],
    crop: int,
) -> dict[str, float]:
    """Mean PSNR of the restorations by the fast solver less that of the initial images, in dB.

    By problem, over centre crops of the validation images.
    """
    found = {}
    for spec in problems:
        observations, truth = validation.observe(spec, crop)
        gained = []
        for names in batches(observations, len(observations)):  # some are smaller than a crop
            o = batch([observations[name] for name in names])
            T = model.restoring_map(o, "fast")
            with torch.no_grad():
                restored = T.restoration(load("solvers", "fast").solve(T, **CHECK).x)
            x = torch.stack([truth[name] for name in names]).to(restored)
            gained.append(psnr(restored, x) - psnr(o.x0, x))
        found[spec.name] = torch.cat(gained).mean().item()
    return found


def last_fifth(rows: Sequence[Mapping], key: str) -> float | None:
    """The mean of a column over the last fifth of a training's table; None where it has none."""
    values = [row[key] for row in rows[-max(len(rows) // 5, 1) :] if key in row]
    return sum(values) / len(values) if values else None


def destroyed(rows: Sequence[Mapping], networks: nn.Module, gained: Mapping[str, float]) -> str:
    """Why a training is no result, in a line; "" where it is one.

    rows: of its table, with the shares `lost` (images without a fixed point) and `skipped` (steps
    without a finite loss and gradient); gained: of `gains`.
    """
    if not all(bool(p.isfinite().all()) for p in networks.parameters()):
        return "weights that are not finite"
    for key, what in (("lost", "images lost"), ("skipped", "steps without a finite loss")):
        if (share := last_fifth(rows, key) or 0) > SHARE:
            return f"{100 * share:.0f} % of the {what} in the last fifth of the training"
    if gained and not sum(gained.values()) > 0:
        mean = sum(gained.values()) / len(gained)
        return f"validation images restored {-mean:.1f} dB below the initial images"
    return ""
