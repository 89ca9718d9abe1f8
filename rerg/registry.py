"""Variants and solvers: every module in the folder of that name, found by being there.

The workflow, the tables and the figures need names, labels and colours of them, and no torch. So
the constants of a module are read off its source as literals, and `load` imports it where it runs.
"""

import ast
import importlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from rerg.config import InputError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Variant:
    """A way to train an RG, as the constants of `rerg/variants/<name>.py` describe it.

    label, color: in tables and figures; networks: what is trained, name to "has a noise map";
    regularizing_gradient: whether it is one of the RGs whose regret is compared; denoiser: the
    network whose residual a baseline may use as a denoiser; equilibrium: whether the loss solves
    for a fixed point; solvers: those that can restore with it, empty for all; parameters: further
    numbers of its loss, with their defaults; published: whether it is taken from the entry of its
    name in config/weights.yaml, instead of trained.
    """

    label: str
    color: str
    networks: Mapping[str, bool]
    regularizing_gradient: bool = False
    denoiser: str = ""
    equilibrium: bool = False
    solvers: tuple[str, ...] = ()
    published: bool = False
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Solver:
    """A procedure that restores with an RG, by the constants of `rerg/solvers/<name>.py`.

    label, line, marker: in tables and figures; options: what the config must give, key to its type
    ("count" or "positive"); tuned: that of them which is chosen by problem on validation images;
    descent: whether it is a descent, whose iterates the paper's figure of PSNR shows.
    """

    label: str
    line: str
    marker: str
    options: Mapping[str, str]
    tuned: str = ""
    descent: bool = False


def _literals(path: Path) -> dict[str, Any]:
    """The constants of a module, `NAME = literal` at its top level."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            try:
                found[name.lower()] = ast.literal_eval(node.value)
            except ValueError:
                continue  # computed, hence none of the description
    return found


def _described(kind: type, folder: str) -> dict[str, Any]:
    entries = {}
    for path in sorted((FOLDER / folder).glob("[a-z]*.py")):
        constants = _literals(path)
        for entry in fields(kind):
            required = entry.default is MISSING and entry.default_factory is MISSING
            if required and entry.name not in constants:
                raise InputError(f"{path}: expected a constant {entry.name.upper()}")
        known = {entry.name for entry in fields(kind)} & set(constants)
        entries[path.stem] = kind(**{name: constants[name] for name in known})
    return entries


@cache
def variants() -> dict[str, Variant]:
    """Name to description of every variant.

    Raises InputError for a module without one of the constants.
    """
    return _described(Variant, "variants")


@cache
def solvers() -> dict[str, Solver]:
    """Name to description of every solver.

    Raises InputError for a module without one of the constants.
    """
    return _described(Solver, "solvers")


def load(folder: str, name: str) -> ModuleType:
    """The module of a variant (`load("variants", "rerg")`) or of a solver."""
    return importlib.import_module(f"rerg.{folder}.{name}")
