"""A run: one checked configuration, and what its rules ask of it.

Parsed by every Snakemake process: no torch.
"""

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from snakemake.utils import update_config

from rerg.checks import (
    check_classes,
    check_crop,
    check_kernels,
    check_launch,
    check_name,
    check_precisions,
    typed,
)
from rerg.config import TIMEOUT, InputError, check, closest, origins, read_yaml
from rerg.datasets import listed_images
from rerg.registry import solvers, variants
from rerg.specs import EquilibriumSpec, ModelSpec, NetworkSpec, ProblemSpec

SPLITS = ("train", "validation", "test")
ALL = "all"  # the seed of a method that nothing is trained for
TYPES = {
    "count": {"type": "integer", "minimum": 1},
    "positive": {"type": "number", "exclusiveMinimum": 0},
}


def find_baselines(folders: Sequence[Path], source: str) -> dict[str, Path]:
    """Baselines by name: every folder `<name>/` that holds a file `<name>.smk`, `.py` or `.yaml`.

    source: the file that names the folders.
    Raises InputError for a folder that does not exist and for a name that two folders have.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{source}: baselines: {folder}: no such folder")
        for path in sorted(folder.iterdir()):
            if any((path / f"{path.name}{suffix}").exists() for suffix in (".smk", ".py", ".yaml")):
                if path.name in found:
                    raise InputError(f"{path}: {found[path.name]} has this name already")
                found[path.name] = path
    return found


def lacks(settings: Mapping) -> str:
    """What a method needs and this machine lacks, in words; "" where it lacks nothing.

    settings: of the method. Published weights are fetched in a run, so they are never lacking.
    """
    needs = {"programs": [], "packages": [], "files": [], **settings.get("needs", {})}
    missing = [
        *(f"the program {name}" for name in needs["programs"] if not shutil.which(name)),
        *(f"the package {name}" for name in needs["packages"] if not find_spec(name)),
        *(f"the file {f}" for f in needs["files"] if not Path(os.path.expandvars(f)).exists()),
    ]
    return " and ".join(missing)


def _known(names: Sequence[str], known, source: str, key: str, kind: str) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{source}: {key}: unknown {kind} {name}{closest(name, list(known))}")


def _schema(folder: Path) -> dict:
    """The schema of a run's config, with the variants, solvers and keys of a baseline there are."""
    schema = read_yaml(folder / "config.schema.yaml")
    baseline = read_yaml(folder / "baseline.schema.yaml")
    schema["$defs"] |= baseline.pop("$defs")
    baseline.pop("$schema")  # with it jsonschema would take its own types, which admit .nan
    variant, properties = schema["$defs"]["variant"], schema["properties"]
    properties["deepinv"]["additionalProperties"] = {**baseline, "required": ["reconstructor"]}
    properties["variants"]["properties"] = {
        name: {
            **variant,
            "properties": variant["properties"]
            | {key: {"type": "number"} for key in about.parameters},
        }
        for name, about in variants().items()
        if not about.published
    }
    properties["solvers"]["properties"] = {
        name: {
            "type": "object",
            "additionalProperties": False,
            "required": list(about.options),
            "properties": {key: TYPES[kind] for key, kind in about.options.items()},
        }
        for name, about in solvers().items()
    }
    return schema


def trained_methods() -> dict[str, dict]:
    """Every variant with every solver that can restore with it: `rerg`, `rerg-gd`, `rerg-adam`."""
    methods = {}
    for variant, about in variants().items():
        for solver in about.solvers or solvers():
            main = solver == "fast"
            methods[variant if main else f"{variant}-{solver}"] = {
                "label": about.label if main else f"{about.label}, {solvers()[solver].label}",
                "variant": variant,
                "solver": solver,
            }
    return methods


class Run:
    """One checked configuration.

    Attributes: `config` (the dict), `problems`, `methods`, `datasets`, `weights` (the registries,
    the methods with every baseline found), `baselines` (name to folder), `images` (of each test
    set the ids, none where the registry lists no files).
    Raises InputError on any fault.
    """

    def __init__(self, config: Mapping, root: Path, *files: str | Path | Mapping):
        """config: merged from `files`, which faults are ascribed to (a mapping: what `--config`
        sets); root: of the repository.
        """
        folder, self._schemas = root / "config", root / "workflow" / "schemas"
        # Snakemake reads them too, but a key that stands twice it loses.
        self._source = source = origins(files)
        schema = _schema(self._schemas)
        self.config = copy.deepcopy(dict(config))
        for given in (file for file in files if isinstance(file, Mapping)):
            update_config(self.config, typed(given, schema, schema["$defs"]))
        check(self.config, schema, *files)
        registries = {}
        for name in ("problems", "datasets", "weights"):
            path = folder / f"{name}.yaml"
            registries[name] = read_yaml(path)
            check(registries[name], self._schemas / f"{name}.schema.yaml", path)
        self.problems, self.datasets, self.weights = registries.values()
        for name in self.weights:
            if name in variants() and not variants()[name].published:
                raise InputError(
                    f"{folder / 'weights.yaml'}: {name}: the name of a trained variant"
                )
        # all that there are, whether a problem of the registry has them or not
        problem = read_yaml(self._schemas / "problems.schema.yaml")["additionalProperties"]
        self._operators = problem["properties"]["operator"]["enum"]
        self.methods: dict[str, dict] = trained_methods()
        self.baselines = find_baselines(
            [root / "workflow" / "baselines", *map(Path, self.config["baselines"])],
            source["baselines"],
        )
        self._add_baselines(source)
        self._check_names(source)
        self.images = {
            name: listed_images(self.datasets[name], root)
            for name in self.config["datasets"]["test"]
        }
        check_kernels(self)
        check_crop(self, source["training"])
        check_precisions(self, source)
        check_launch(self, source)

    def _add_baselines(self, source: Mapping[str, str]) -> None:
        described = {}
        schema = read_yaml(self._schemas / "baseline.schema.yaml")
        for name, path in self.baselines.items():
            settings = path / f"{name}.yaml"
            content = read_yaml(settings) if settings.exists() else None
            described[name, str(settings)] = {} if content is None else content
        for (_, where), settings in described.items():
            check(settings, schema, where)
        for name, settings in self.config["deepinv"].items():
            described[name, f"{source['deepinv']}: deepinv.{name}"] = settings
        for (name, where), settings in described.items():
            check_name(name, where)
            check_classes(settings, where)
            if name in self.methods:
                raise InputError(f"{where}: {name} is the name of another method")
            self.methods[name] = self._baseline(name, settings, where)

    def _baseline(self, name: str, settings: dict, where: str) -> dict:
        """The settings of a baseline with their defaults; `baseline` says what runs it."""
        path = self.baselines.get(name)
        files = [s for s in (".smk", ".py") if path and (path / f"{name}{s}").exists()]
        ways = files + ["reconstructor"] * ("reconstructor" in settings)
        if len(ways) != 1:
            raise InputError(
                f"{where}: expected one of {name}.py, {name}.smk, a reconstructor; got {len(ways)}"
            )
        for key in ("parameters", "tune", "denoiser", "timeout"):
            if ways == [".smk"] and key in settings:
                raise InputError(f"{where}: {key}: {name}.smk runs alone, and would not read it")
        parameters, tune = settings.get("parameters", {}), settings.get("tune", {})
        _known(tune, ["sigma_factor", *parameters], where, "tune", "parameter")
        for key in tune:
            value = parameters.get(key, 1)  # which the figure of the trials divides by
            if not (isinstance(value, int | float) and value > 0):
                raise InputError(
                    f"{where}: tune.{key}: expected a number above 0 as its declared value in "
                    f"parameters, got {value}"
                )
        known = [*self._operators, *self.problems]
        _known(settings.get("problems", []), known, where, "problems", "problem or operator")
        if "denoiser" in settings:
            denoisers = [name for name, about in variants().items() if about.denoiser]
            denoisers += [name for name, about in self.weights.items() if about["network"] != "rg"]
            _known([settings["denoiser"]], denoisers, where, "denoiser", "denoiser")
        defaults = {"label": name, "parameters": {}, "tune": {}, "timeout": TIMEOUT}
        return {**defaults, **settings, "baseline": ways[0]}

    def _check_names(self, source: Mapping[str, str]) -> None:
        config = self.config

        def known(names: Sequence[str], registry: Mapping, key: str, kind: str) -> None:
            _known(names, registry, source[key.split(".")[0]], key, kind)

        batch, processes, nodes = (config["training"][k] for k in ("batch", "processes", "nodes"))
        if batch % (processes * nodes):
            raise InputError(
                f"{source['training']}: training.batch: expected a multiple of "
                f"training.processes x training.nodes, {processes * nodes}, got {batch}"
            )
        for split in SPLITS:
            names = config["datasets"][split]
            known(names, self.datasets, f"datasets.{split}", "dataset")
            for name in names:
                if split not in self.datasets[name]["use"]:
                    uses = ", ".join(self.datasets[name]["use"])
                    raise InputError(
                        f"{source['datasets']}: datasets.{split}: "
                        f"{name} is for {uses}, not for {split}"
                    )
        known(config["problems"], self.problems, "problems", "problem")
        if sum(map(len, self.batches.values())) < len(config["problems"]):
            raise InputError(
                f"{source['problems']}: problems: two groups that share a job have one name, first-"
                "last; expected another order, or another problems_per_job"
            )
        known(config["methods"], self.methods, "methods", "method")
        for block in config["comparisons"]:
            known(block["methods"], self.methods, "comparisons.methods", "method")
            known(block["problems"], config["problems"], "comparisons.problems", "problem")
        known(config["examples"], config["problems"], "examples", "problem")
        for name, settings in config["variants"].items():
            if start := settings.get("start"):
                known([start], config["variants"], f"variants.{name}.start", "variant")
                if start == name or "start" in config["variants"][start]:
                    raise InputError(
                        f"{source['variants']}: variants.{name}.start: expected a variant that "
                        f"starts from no other, got {start}"
                    )
        for method in self.all_methods():
            settings = self.methods[method]
            if "variant" in settings:
                known([settings["solver"]], config["solvers"], "solvers", "solver")
            model = self.variant_of(method)
            if model and model not in self.weights:
                known([model], config["variants"], "variants", "variant")
            if model in config["variants"] and not (self.trained_problems() or config["stored"]):
                raise InputError(
                    f"{source['problems']}: problems: expected one with trained: true, as {model} "
                    "is trained on them"
                )
            if (missing := lacks(settings)) and not config["stored"]:
                key = "methods" if method in config["methods"] else "comparisons"
                raise InputError(
                    f"{source[key]}: {key}: {method} needs {missing}, not found on this machine"
                )

    def check_table(self, path: Path) -> None:
        """Refuse `stored` where the path has no table of scores."""
        if not path.is_file():
            source = self._source["stored"]
            raise InputError(f"{source}: stored: {path}: no such file; expected the stored scores")

    @property
    def name(self) -> str:
        """Results lie in `results/<name>/`."""
        return self.config["run"]

    @property
    def seeds(self) -> list[int]:
        """Of weights and batches: a model per variant and seed."""
        return self.config["seeds"]

    def all_methods(self) -> list[str]:
        """Methods in the order of the tables: those on all problems, then the comparisons'."""
        methods = list(self.config["methods"])
        for block in self.config["comparisons"]:
            methods += [method for method in block["methods"] if method not in methods]
        return methods

    def problems_of(self, method: str) -> list[str]:
        """The problems that a method restores in this run."""
        return self._problems_of.get(method, [])

    @cached_property
    def _problems_of(self) -> dict[str, list[str]]:
        """By method; once, as every job asks."""
        found = {}
        for method in self.all_methods():
            blocks = [b["problems"] for b in self.config["comparisons"] if method in b["methods"]]
            every = method in self.config["methods"]
            chosen = set(self.config["problems"] if every else chain.from_iterable(blocks))
            able = self.methods[method].get("problems")
            if able is not None:
                chosen = {p for p in chosen if {p, self.problems[p]["operator"]} & set(able)}
            found[method] = [p for p in self.config["problems"] if p in chosen]
        return found

    @cached_property
    def batches(self) -> dict[str, list[str]]:
        """The groups of problems that share a job, by name: `den15`, or `den15-com90`."""
        problems, n = self.config["problems"], self.config["problems_per_job"]
        groups = [problems[i : i + n] for i in range(0, len(problems), n)]
        return {"-".join(dict.fromkeys([group[0], group[-1]])): group for group in groups}

    def batch_of(self, problem: str) -> str:
        """The group that a problem of the run is in."""
        return next(name for name, group in self.batches.items() if problem in group)

    def problems_in(self, method: str, batch: str) -> list[str]:
        """The problems of a group that a method restores."""
        return [p for p in self.problems_of(method) if p in self.batches[batch]]

    def variant_of(self, method: str) -> str | None:
        """The model that a method restores with, or whose denoiser a baseline uses; else None.

        It is a variant, or an entry of the registry of published weights.
        """
        settings = self.methods[method]
        return settings.get("variant") or settings.get("denoiser")

    def seeds_of(self, method: str) -> list[str]:
        """The seeds of a method's restorations, as in paths: `all` where nothing is trained."""
        return list(map(str, self.seeds)) if self.variant_of(method) in self.variants() else [ALL]

    def published(self) -> list[str]:
        """The published weights that the run's methods need."""
        wanted = {self.variant_of(m) for m in self.all_methods()}
        return [name for name in self.weights if name in wanted]

    def variants(self) -> list[str]:
        """The variants that the run's methods need, and those that these start from."""
        wanted = {self.variant_of(m) for m in self.all_methods()} - {None}
        wanted |= {self.config["variants"].get(v, {}).get("start") for v in wanted}
        return [v for v in self.config["variants"] if v in wanted]

    def tuned(self, method: str) -> list[str]:
        """The names of the tables of trials that a method's restoration reads.

        A variant has one with its σ, and a method whose solver has an option to tune one more.
        """
        settings = self.methods[method]
        if not self.config["tuning"]["rounds"]:
            return []
        if "variant" in settings:
            own = solvers()[settings["solver"]].tuned
            return [settings["variant"], *([method] if own else [])]
        return [method] if settings.get("tune") else []

    def all_tuned(self) -> list[str]:
        """The names of all tables of trials; none for a method that restores no problem here."""
        names = {name for method in self.all_methods() for name in self.tuned(method)}
        return sorted(name for name in names if self.tuned_problems(name))

    def tuned_problems(self, name: str) -> list[str]:
        """The problems that a table of trials is about."""
        methods = [m for m in self.all_methods() if name in self.tuned(m)]
        return [
            p for p in self.config["problems"] if any(p in self.problems_of(m) for m in methods)
        ]

    def tuning_options(self, name: str, problem: str) -> dict[str, Any]:
        """The solver's options in the trials of a variant's σ, or of a method's own option."""
        if name in variants():
            return {key: self.config["tuning"][key] for key in ("iterations", "tolerance")}
        return self.options(name, problem)

    def problem_spec(self, problem: str) -> ProblemSpec:
        """The part of a problem's entry that its observations depend on."""
        return ProblemSpec.of(problem, self.problems[problem])

    def kernel_sets(self, problems: Sequence[str]) -> list[str]:
        """The registry entries with the kernel files of some problems."""
        kernels = [self.problems[problem].get("kernel", {}) for problem in problems]
        return sorted({kernel["file"] for kernel in kernels if "file" in kernel})

    def trained_problems(self) -> list[str]:
        """The problems of the run that the variants are trained on."""
        return [name for name in self.config["problems"] if self.problems[name]["trained"]]

    @cached_property
    def _trained(self) -> tuple[ProblemSpec, ...]:
        """The specs of the trained problems; once, as every restoration names its model's spec."""
        return tuple(self.problem_spec(name) for name in self.trained_problems())

    def precision_of(self, variant: str) -> str:
        """The precision of a variant's network in training."""
        return self.config["variants"][variant].get(
            "precision", self.config["training"]["precision"]
        )

    def model_spec(self, variant: str, seed: int) -> ModelSpec:
        """All that a model depends on, with the images and the code."""
        settings, training = self.config["variants"][variant], self.config["training"]
        about, network = variants()[variant], self.config["network"]
        return ModelSpec(
            variant=variant,
            seed=seed,
            start=settings.get("start", ""),
            evaluations=settings["evaluations"],
            learning_rate=float(settings["learning_rate"]),
            halve_every=settings.get("halve_every", 0),
            crop=training["crop"],
            batch=training["batch"],
            clip=float(training["clip"]),
            precision=self.precision_of(variant),
            network=NetworkSpec(
                tuple(network["channels"]), network["blocks"], float(network["scale"])
            ),
            equilibrium=EquilibriumSpec(**self.config["equilibrium"]),
            problems=self._trained,
            parameters={k: float(settings.get(k, v)) for k, v in about.parameters.items()},
        )

    def options(self, method: str, problem: str) -> dict[str, Any]:
        """The solver's options for a problem, whose entry may state some of them."""
        options = self.config["solvers"][self.methods[method]["solver"]]
        return {key: self.problems[problem].get(key, value) for key, value in options.items()}
