"""What would stop a run late: checked before its first job, a line per fault.

The schemas say what a key must be; here is what keys must be together.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from rerg.config import InputError, closest
from rerg.kernels import check_holds, kernel_of, kernel_size
from rerg.labels import CONTROLS
from rerg.registry import variants
from rerg.signatures import arguments, folder, module, names
from rerg.specs import FLOORS

if TYPE_CHECKING:
    from rerg.run import Run

SCORED = 32  # pixels of a side: SSIM has a window of 11, and AlexNet (LPIPS) needs 31


def typed(value: Any, schema: Mapping, definitions: Mapping) -> Any:
    """What `--config` sets, with numbers and booleans in the place of their text.

    Snakemake hands over what is nested as text; it is read as YAML where the schema, whose `$defs`
    are the definitions, admits a number or a boolean.
    """
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    if isinstance(value, Mapping):
        keys, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        others = others if isinstance(others, Mapping) else {}
        return {key: typed(part, keys.get(key, others), definitions) for key, part in value.items()}
    if isinstance(value, list):
        return [typed(part, schema.get("items", {}), definitions) for part in value]
    if isinstance(value, str) and {"integer", "number", "boolean"} & {*_types(schema)}:
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    return value


def _types(schema: Mapping) -> list[str]:
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


def check_name(name: str, where: str) -> None:
    """Refuse the name of a method that stands for something else in tables or in YAML."""
    if name in CONTROLS:
        raise InputError(f"{where}: {name} is a row of every table; choose another name")
    if not isinstance(yaml.safe_load(name), str):
        raise InputError(f"{where}: YAML reads {name} as no text; choose another name")


def check_crop(run: "Run", source: str) -> None:
    """Refuse a crop of the training that is smaller than a kernel.

    One of a file is held against it once it is there, by `rerg.images.check_kernels`.
    """
    if run.variants():
        for name in run.trained_problems():
            spec = run.problem_spec(name)
            check_holds(run.config["training"]["crop"], spec, f"{source}: training.crop")


def check_kernels(run: "Run") -> None:
    """Refuse kernels that are none, and files that are no entries with kernels."""
    for name in run.config["problems"]:
        spec, where = run.problem_spec(name), f"config/problems.yaml: {name}.kernel"
        file = (spec.kernel or {}).get("file")
        if file and "kernels" not in run.datasets.get(file, {"use": []})["use"]:
            known = [key for key, entry in run.datasets.items() if "kernels" in entry["use"]]
            raise InputError(f"{where}.file: unknown {file}{closest(file, known)}")
        if spec.kernel and not file:
            kernel_of(spec)


def check_precisions(run: "Run", source: Mapping[str, str]) -> None:
    """Refuse a precision in which a solve does not come under its tolerance.

    source: the file that each key of the config is from.
    """

    def comes_under(key: str, precision: str, tolerance: float, whose: str) -> None:
        if FLOORS[precision] > tolerance:
            able = [name for name, floor in FLOORS.items() if floor <= tolerance]
            raise InputError(
                f"{source[key.split('.')[0]]}: {key}: {precision} comes under a relative residual "
                f"of {FLOORS[precision]:g}, but {whose} is {tolerance:g}; "
                f"expected {' or '.join(able) or 'a larger tolerance'}"
            )

    for name in run.variants():
        if variants()[name].equilibrium:
            own = "precision" in run.config["variants"][name]
            key = f"variants.{name}.precision" if own else "training.precision"
            tolerance = run.config["equilibrium"]["tolerance"]
            whose = f"equilibrium.tolerance, which {name} is to meet,"
            comes_under(key, run.precision_of(name), tolerance, whose)
    key, precisions = "restoration.precision", run.config["restoration"]["precision"]
    if precisions != sorted(precisions, key=list(FLOORS).index):
        order = ", ".join(FLOORS)
        raise InputError(
            f"{source['restoration']}: {key}: expected the order {order}, got {precisions}"
        )
    for method in run.all_methods():
        if "variant" in run.methods[method]:
            for problem in run.problems_of(method):
                tolerance = run.options(method, problem).get("tolerance", math.inf)
                whose = f"the tolerance of {method} on {problem}"
                comes_under(key, precisions[-1], tolerance, whose)


def check_launch(run: "Run", source: Mapping[str, str]) -> None:
    """Refuse CUDA graphs where there is no GPU to launch them on."""
    for block in ("training", "restoration"):
        if run.config[block]["launch"] == "graphs" and run.config["device"] != "cuda":
            raise InputError(
                f"{source[block]}: {block}.launch: graphs are CUDA's and expect device cuda; got "
                f"{run.config['device']}"
            )


def smallest(run: "Run") -> int:
    """Pixels that every side of a test or validation image must have.

    Cut to a multiple of each problem's factor, it still holds the kernel and can be scored.
    """
    specs = [run.problem_spec(name) for name in run.config["problems"]]
    return max(-(-max(SCORED, kernel_size(s)) // s.factor) * s.factor for s in specs)


def check_classes(settings: Mapping, where: str) -> None:
    """Refuse a class that deepinv does not have, and an argument that it does not use.

    settings: of a baseline, whose reconstructor and parameters name classes.
    """
    own = {k: v for k, v in settings.get("parameters", {}).items() if k != "sigma_factor"}
    name = {"class": settings["reconstructor"]} if "reconstructor" in settings else {}
    _check_classes({**name, **own}, where)


def _check_classes(value: Any, where: str) -> None:
    if isinstance(value, dict) and isinstance(name := value.get("class"), str):
        home, _, short = name.rpartition(".")
        path = module(home, folder())
        if not path:
            raise InputError(f"{where}: deepinv has no module {home} for {name}")
        if short not in (found := list(names(path))):
            raise InputError(f"{where}: deepinv has no {name}{closest(short, found)}")
        known = arguments(path, short)
        for key in value if known is not None else ():
            if key not in ("class", *known):
                raise InputError(f"{where}: {name} has no argument {key}{closest(key, [*known])}")
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            _check_classes(part, where)
