"""What a job is told, as frozen dataclasses: problems, networks, trainings.

They are plain values: equal specs are equal, and `digest` of one depends on everything in it, on
the order of the problems too. No torch here, as the workflow builds them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rerg.config import InputError

# The precisions of a network's convolutions, from the cheapest to the most exact, each with the
# relative residual that a solve in it comes under: the largest of seven problems on an H200,
# rounded up; of float32 the tolerance of these solves, which four met (benchmarks/h200.json).
FLOORS = {"bf16": 3e-3, "tf32": 4e-5, "float32": 1e-7}


@dataclass(frozen=True)
class ProblemSpec:
    """What the observations of a problem depend on; an entry of config/problems.yaml has it.

    noise: standard deviation, sigma: σ of the weight λ = σ², both in 1/255; factor: of a
    downsampling; kernel: its entry; missing: share of the pixels.
    """

    name: str
    operator: str
    noise: float
    sigma: float
    factor: int = 1
    kernel: Mapping[str, Any] | None = None
    missing: float = 0.0

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any]) -> Self:
        """The spec of an entry of config/problems.yaml."""
        return cls(
            name,
            entry["operator"],
            noise=float(entry["noise"]),
            sigma=float(entry["sigma"]),
            factor=entry.get("factor", 1),
            kernel=entry.get("kernel"),
            missing=float(entry.get("missing", 0)),
        )


@dataclass(frozen=True)
class NetworkSpec:
    """channels: widths of the four scales; blocks: per scale; scale: 1/c with R = N/c."""

    channels: tuple[int, ...]
    blocks: int
    scale: float


@dataclass(frozen=True)
class EquilibriumSpec:
    """The solves inside training; lost_above: relative residual above which an image is lost."""

    iterations: int
    tolerance: float
    backward_iterations: int
    backward_tolerance: float
    lost_above: float


@dataclass(frozen=True)
class ModelSpec:
    """All that a trained model depends on, with the images, its start's weights and the code.

    start: the variant that it starts from, "" for none; evaluations: budget of network evaluations,
    forward or backward, each over a batch; halve_every: steps, 0 for a cosine; crop: pixels; clip:
    norm of the gradient; precision: of the network in training; parameters: of the variant's loss.
    """

    variant: str
    seed: int
    start: str
    evaluations: int
    learning_rate: float
    halve_every: int
    crop: int
    batch: int
    clip: float
    precision: str
    network: NetworkSpec
    equilibrium: EquilibriumSpec
    problems: tuple[ProblemSpec, ...]
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """1/c with R = N/c."""
        return self.network.scale

    @classmethod
    def read(cls, content: Any, source: Path | str) -> Self:
        """The spec that `asdict` made, read back from JSON.

        Raises InputError that names the source where a key is missing or has another type.
        """
        from pydantic import TypeAdapter, ValidationError  # here, as few jobs need its 0.2 s

        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{source}: spec.{where}: {first['msg']}") from None


def digest(content: Any) -> str:
    """sha256 of plain values or a spec, independent of the order of keys, not of that of lists."""
    plain = asdict(content) if hasattr(content, "__dataclass_fields__") else content
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
