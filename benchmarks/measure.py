"""What the benchmarks share: timing in turn, a row of the table, and what a finished run offers."""

import importlib
import operator
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rerg.config import InputError, read_yaml
from rerg.devices import set_up_cpu
from rerg.images import as_tensor, fetch, prepare, read_images, read_rgb
from rerg.models import Model, build, load_model
from rerg.networks import UNet
from rerg.problems import Observation, Problem, generator
from rerg.specs import ModelSpec

ROOT = Path(__file__).parents[1]
GOALS = {">=": operator.ge, "<=": operator.le}


def number(value: float | None) -> str:
    """A number for the table; an empty cell where there is none."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass
class Row:
    """A row of the table.

    ratio: what the goal speaks of; where two sides are timed it is theirs / ours, so that 2 is
    twice as fast. spread: the quartiles of the ratio. goal: an operator and a number, or nothing.
    A row that cannot be measured has no ratio, and its note says why.
    """

    name: str
    ours: float | None
    theirs: float | None
    unit: str
    ratio: float | None
    goal: str = ""
    spread: tuple[float, float] | None = None
    note: str = ""
    details: list[dict] = field(default_factory=list)

    @property
    def met(self) -> bool | None:
        """Whether the ratio keeps to the goal, None where there is either none."""
        if not self.goal or self.ratio is None:
            return None
        compare, value = re.fullmatch(r"([<>]=) ([\d.e-]+)", self.goal).groups()
        return bool(GOALS[compare](self.ratio, float(value)))

    def line(self) -> str:
        """The row in Markdown."""
        met = {True: "yes", False: "no", None: ""}[self.met]
        spread = " – ".join(map(number, self.spread)) if self.spread else ""
        cells = [self.name, number(self.ours), number(self.theirs), self.unit, number(self.ratio)]
        return "| " + " | ".join([*cells, spread, self.goal, met, self.note]) + " |"


def wait() -> None:
    """Wait for what a GPU is still to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call, on a GPU until it is done."""
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def in_turn(calls: list[Callable[[], object]], rounds: int) -> np.ndarray:
    """Seconds of calls (rounds, calls), in turn in one process and from both ends.

    A load that others put on the machine then falls on all calls alike. Each is called once before.
    """
    for call in calls:
        call()
    taken = np.empty((rounds, len(calls)))
    for i in range(rounds):
        order = range(len(calls)) if i % 2 == 0 else reversed(range(len(calls)))
        for j in order:
            taken[i, j] = seconds_of(calls[j])
    return taken


def quartiles(values: np.ndarray) -> tuple[float, float]:
    """The first and the third quartile."""
    return tuple(np.quantile(values, (0.25, 0.75)).tolist())


def timed_row(name: str, ours: np.ndarray, theirs: np.ndarray, goal: str = "", **more) -> Row:
    """The row of two timed sides: medians over the rounds, and the median of their ratio."""
    ratios = theirs / ours
    return Row(
        name,
        float(np.median(ours)),
        float(np.median(theirs)),
        "s",
        float(np.median(ratios)),
        goal,
        quartiles(ratios),
        **more,
    )


def paper_networks() -> nn.ModuleDict:
    """An RG with the network of config/paper.yaml, untrained: its passes take as long."""
    network = read_yaml(ROOT / "config" / "paper.yaml")["network"]
    return nn.ModuleDict({"rg": UNet(network["channels"], network["blocks"])})


def millions(network: UNet) -> str:
    """How many million weights a network has."""
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2g} million weights"


def kernels_of(run: Path) -> dict[str, str]:
    """The names of the files of kernels that a run prepared, to their paths."""
    return {path.stem: str(path) for path in (run / "images").glob("*.npz")}


def photographs(folder: Path) -> dict[str, Tensor]:
    """The images (3, H, W) in [0, 1] of a folder, by their names in order.

    Raises InputError where it has none.
    """
    formats = (".png", ".jpg", ".bmp")
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in formats)
    if not paths:
        raise InputError(f"{folder}: no image; expected files png, jpg or bmp")
    return {path.stem: as_tensor(read_rgb(path)) for path in paths}


def centre(image: Tensor, size: int) -> Tensor:
    """The centre of an image, which is mirrored at its borders where it is smaller."""
    short = [max(size - side, 0) for side in image.shape[1:]]
    if any(short):
        padding = [(0, 0), *((s // 2, s - s // 2) for s in short)]
        image = torch.from_numpy(np.pad(image.numpy(), padding, "symmetric"))
    row, column = ((side - size) // 2 for side in image.shape[1:])
    return image[:, row : row + size, column : column + size]


@dataclass(frozen=True)
class Workload:
    """What is measured on: an RG of a finished run, its trained problems, and images.

    seed: of the model; folder: images of one's own instead of the embedded test set; crop: pixels
    of the side of their centres that are restored; count: how many images at most; quick: toy
    sizes, for the tests.
    """

    run: Path
    _: KW_ONLY
    variant: str = "rerg"
    seed: int = 0
    folder: Path | None = None
    crop: int = 64
    count: int = 2
    quick: bool = False

    def model(self) -> Model:
        """A fresh copy of the RG, for use without gradients."""
        return load_model(self.run / "models" / str(self.seed) / f"{self.variant}.safetensors")

    @cached_property
    def spec(self) -> ModelSpec:
        """The spec that the RG was trained by."""
        return self.model().spec

    @property
    def scale(self) -> float:
        """1/c of R = N/c."""
        return self.spec.scale

    def networks(self) -> nn.ModuleDict:
        """A fresh copy of the RG's networks, with gradients."""
        networks = build(self.spec)
        networks.load_state_dict(self.model().networks.state_dict())
        return networks

    def network(self) -> UNet:
        """A fresh copy of the RG's network, for use without gradients."""
        return self.model().networks["rg"]

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """The problems that the RG was trained on; one in quick mode."""
        kernels = kernels_of(self.run)
        found = {spec.name: Problem(spec, kernels) for spec in self.spec.problems}
        return dict(list(found.items())[:1]) if self.quick else found

    def of_each_operator(self) -> list[Problem]:
        """One problem of each operator, the last of the config: the hardest."""
        return list({p.operator: p for p in self.problems.values()}.values())

    @cached_property
    def photographs(self) -> dict[str, Tensor]:
        """Whole images (3, H, W) in [0, 1], from as many files as possible, by their names."""
        found = _embedded() if self.folder is None else photographs(self.folder)
        least = self.spec.crop
        for name, image in found.items():
            if min(image.shape[1:]) < least:
                raise InputError(f"{self.folder}: {name}: expected at least {least} pixels a side")
        return found

    @property
    def names(self) -> list[str]:
        """The images that are restored, spread evenly over all."""
        names = list(self.photographs)
        chosen = np.linspace(0, len(names) - 1, min(self.count, len(names)))
        return [names[round(i)] for i in chosen]

    def truth(self, count: int | None = None, size: int | None = None) -> Tensor:
        """Clean centres (B, 3, size, size) of the images; more than there are begin anew."""
        size = size or self.crop
        names = self.names if count is None else list(self.photographs)
        return torch.stack([centre(self.photographs[n], size) for n in _cycle(names, count)])

    def observe(
        self, problem: Problem, count: int | None = None, size: int | None = None
    ) -> tuple[Tensor, Observation]:
        """Clean images, cropped to the problem, and their observation."""
        truth = self.truth(count, size)
        rngs = [generator("benchmarks", problem.name, str(i)) for i in range(len(truth))]
        return problem.crop(truth), problem.observe(truth, rngs)

    def crops(self, rng: np.random.Generator) -> Tensor:
        """A batch of random crops of the size that the RG was trained on."""
        size, found = self.spec.crop, []
        names = list(self.photographs)
        for _ in range(self.spec.batch):
            image = self.photographs[names[rng.integers(len(names))]]
            row, column = (rng.integers(side - size + 1) for side in image.shape[1:])
            found.append(image[:, row : row + size, column : column + size])
        return torch.stack(found)


def _cycle(names: list[str], count: int | None) -> list[str]:
    return names if count is None else [names[i % len(names)] for i in range(count)]


def _embedded() -> dict[str, Tensor]:
    """The images of the dataset `embedded-test`."""
    entry = read_yaml(ROOT / "config" / "datasets.yaml")["embedded-test"]
    with tempfile.TemporaryDirectory() as folder:
        lock, target = Path(folder) / "lock", Path(folder) / "images.h5"
        fetch("embedded-test", entry, lock)
        prepare("embedded-test", entry, lock, target, 1)
        return read_images(target)


def rows_of(name: str, work: Workload) -> list[Row]:
    """The rows of one benchmark, on one thread, printed as they come."""
    warnings.filterwarnings("ignore", module=r"(torch|deepinv|torchdeq)\b.*")
    set_up_cpu(1)
    found = []
    for row in importlib.import_module(f"benchmarks.{name}").rows(work):
        print(row.line(), flush=True)
        found.append(row)
    return found
