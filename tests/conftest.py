"""What the tests share: one thread, the problems of the config, clean images, a trained RG."""

import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from deepinv.physics import Inpainting

from rerg.batch import Batch
from rerg.check import clean_images
from rerg.problems import Observation, Problem, generator
from rerg.registry import variants
from rerg.specs import EquilibriumSpec, ModelSpec, NetworkSpec, ProblemSpec
from rerg.training import train

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)
PROBLEMS = yaml.safe_load((ROOT / "config" / "problems.yaml").read_text())
_FOLDER = tempfile.TemporaryDirectory()


def _kernel_files() -> dict[str, str]:
    """Asymmetric kernels in the place of the files that problems name, which are downloaded."""
    paths = {}
    for entry in PROBLEMS.values():
        if name := entry.get("kernel", {}).get("file"):
            paths[name] = str(Path(_FOLDER.name) / f"{name}.npz")
    for seed, path in enumerate(paths.values()):
        rng = np.random.default_rng(seed)
        size = 25 - 2 * seed
        np.savez(path, **{str(i): rng.random((size, size)) ** 20 for i in range(12)})
    return paths


TRAINED = [name for name, variant in variants().items() if not variant.published]
KERNELS = _kernel_files()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file comes first, so that of two processes none is left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_workflow.py")


def problem_of(name: str) -> Problem:
    """A problem of config/problems.yaml."""
    return Problem(ProblemSpec.of(name, PROBLEMS[name]), KERNELS)


def white(shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal noise."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape))).to(dtype)


def dense(physics, like: torch.Tensor) -> torch.Tensor:
    """A as a matrix (hw, HW) that acts on each channel, by applying it to the basis.

    For completion it is the first mask's. HW must be a multiple of 3.
    """
    if isinstance(physics, Inpainting):
        return torch.diag(physics.mask[0, 0].flatten())
    size = like[0, 0].numel()
    basis = torch.eye(size, dtype=like.dtype).view(size // 3, 3, *like.shape[-2:])
    return physics.A(basis).flatten(2).flatten(0, 1).T


def spec_of(variant: str, evaluations: int, **changes) -> ModelSpec:
    """A small training on every trained problem without files; changes: fields of the spec."""
    return replace(
        ModelSpec(
            variant=variant,
            seed=0,
            start="",
            evaluations=evaluations,
            learning_rate=1e-3,
            halve_every=0,
            crop=32,
            batch=4,
            clip=1.0,
            precision="float32",
            network=NetworkSpec((8, 8, 16, 16), blocks=1, scale=400.0),
            equilibrium=EquilibriumSpec(
                iterations=30,
                tolerance=1e-3,
                backward_iterations=10,
                backward_tolerance=1e-2,
                lost_above=0.1,
            ),
            problems=tuple(
                ProblemSpec.of(name, entry)
                for name, entry in PROBLEMS.items()
                if entry["trained"] and "file" not in entry.get("kernel", {})
            ),
            parameters=variants()[variant].parameters,
        ),
        **changes,
    )


def write_images(path: Path, images: torch.Tensor) -> None:
    """Images (B, 3, H, W) as a prepared file, with the ids "0", "1", ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for i, image in enumerate(images):
            pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
            file[str(i)] = pixels
            file[str(i)].attrs["pixels"] = sha256(pixels.tobytes()).hexdigest()


def crops(rng: np.random.Generator) -> torch.Tensor:
    """A batch of four clean crops, (4, 3, 32, 32)."""
    return clean_images(4, 32, 32, seed=int(rng.integers(2**32)))


def observe(problem: str, height: int, width: int, count: int = 1) -> tuple:
    """Clean images, cropped to the problem, and their observation."""
    described = problem_of(problem)
    truth = described.crop(clean_images(count, height, width, seed=99))
    rngs = [generator("test", problem, str(i)) for i in range(count)]
    return truth, described.observe(truth, rngs)


@pytest.fixture(scope="session", params=list(PROBLEMS))
def name(request) -> str:
    """The name of every problem of config/problems.yaml."""
    return request.param


def batch_of(truth: torch.Tensor, observation: Observation, step: int = 0) -> Batch:
    """A batch with a generator and noise of its own, the same at each call."""
    noise = np.random.default_rng(1).standard_normal(truth.shape, "float32")
    return Batch(truth, observation, np.random.default_rng(0), step, torch.from_numpy(noise))


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> torch.nn.ModuleDict:
    """An RG trained on the bound of all trained problems, from `red`: seconds, and it converges."""
    folder = tmp_path_factory.mktemp("training")
    red, _ = train(spec_of("red", 400), crops, None, folder / "red")
    rg1, _ = train(spec_of("rg1", 1000), crops, red, folder / "rg1")
    return rg1.requires_grad_(False)
