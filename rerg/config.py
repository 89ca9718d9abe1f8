"""Reading and checking the configuration, before anything is computed.

Every fault is one line that names the file, the key and what was expected. This module is parsed
by every Snakemake process, so it imports neither torch nor any other module of rerg.
"""

import difflib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

SPLITS = ("train", "validation", "test")
PHYSICS = ("operator", "factor", "kernel", "missing", "noise", "sigma")
TIMEOUT = 3600  # seconds that a baseline may take for a problem, where it states none


class InputError(ValueError):
    """A fault of the user's input: its text is one line that says where and what was expected."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises InputError where the file is missing or is not YAML (with the line of the fault).
    """
    try:
        return yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {line}not YAML: {getattr(error, 'problem', error)}") from None


def _closest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {match[0]}?" if match else f"; known: {', '.join(sorted(known))}"


def _describe(error) -> str:
    """One line for an error of jsonschema."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = next(key for key in error.instance if key not in known)
        where = f"{where}.{unknown}" if where else unknown
        return f"{where}: unknown key{_closest(str(unknown), known)}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        where = f"{where}.{missing}" if where else missing
        return f"{where}: missing"
    expected = {
        "type": lambda: f"expected {error.validator_value}",
        "enum": lambda: "expected one of " + ", ".join(map(str, error.validator_value)),
        "pattern": lambda: f"expected a name of the form {error.validator_value}",
        "minimum": lambda: f"expected at least {error.validator_value}",
        "exclusiveMinimum": lambda: f"expected more than {error.validator_value}",
        "maximum": lambda: f"expected at most {error.validator_value}",
    }.get(error.validator, lambda: error.message.splitlines()[0])
    if error.validator in ("propertyNames", "pattern") and error.validator != "type":
        return f"{where or error.instance}: {expected()}".replace(": :", ":")
    return f"{where}: {expected()}, got {json.dumps(error.instance, default=str)[:60]}"


def origins(files: Sequence[str | Path]) -> dict[str, str]:
    """Top-level key of a merged config to the last file that sets it, else the last file."""
    origin: dict[str, str] = defaultdict(lambda: str(files[-1]))
    for file in files:
        if Path(file).is_file():
            origin |= dict.fromkeys(read_yaml(file) or {}, str(file))
    return origin


def check(instance: Any, schema: Path, *files: str | Path) -> None:
    """Hold an instance, merged from files, against a JSON schema (a YAML file).

    Raises InputError with the first fault: `file: key: what was expected`.
    """
    errors = Draft202012Validator(read_yaml(schema)).iter_errors(instance)
    error = min(errors, key=lambda e: (len(e.absolute_path), str(e.absolute_path)), default=None)
    if error is not None:
        line = _describe(error)
        key = re.split(r"[.:]", line)[0]
        raise InputError(f"{origins(files)[key]}: {line}")


def find_baselines(folders: list[Path]) -> dict[str, Path]:
    """Baselines by name: every folder `<name>/` that holds a file `<name>.smk`, `.py` or `.yaml`.

    Raises InputError for a folder that does not exist and for a name that two folders have.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"baselines: {folder}: no such folder")
        for path in sorted(folder.iterdir()):
            if any((path / f"{path.name}{suffix}").exists() for suffix in (".smk", ".py", ".yaml")):
                if path.name in found:
                    raise InputError(f"{path}: {found[path.name]} has this name already")
                found[path.name] = path
    return found


def _known(names, known, source: str, key: str, kind: str) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{source}: {key}: unknown {kind} {name}{_closest(name, list(known))}")


class Run:
    """One checked configuration, as the rules read it.

    Attributes: `config` (the dict), `problems`, `methods`, `datasets` (the registries, the
    methods with every baseline found), `baselines` (name to folder).
    Raises InputError on any fault.
    """

    def __init__(self, config: Mapping, root: Path, *files: str | Path):
        """config: merged from `files`, which faults are ascribed to; root: of the repository."""
        folder, schemas = root / "config", root / "workflow" / "schemas"
        check(config, schemas / "config.schema.yaml", *files)
        self.config = dict(config)
        registries = {}
        for name in ("problems", "methods", "datasets"):
            path = folder / f"{name}.yaml"
            registries[name] = read_yaml(path)
            check(registries[name], schemas / f"{name}.schema.yaml", f"config/{name}.yaml")
        self.problems, self.methods, self.datasets = registries.values()
        self.baselines = find_baselines(
            [root / "workflow" / "baselines", *map(Path, config["baselines"])]
        )
        described = {}
        for name, path in self.baselines.items():
            settings = path / f"{name}.yaml"
            content = read_yaml(settings) if settings.exists() else None
            described[name, str(settings)] = {} if content is None else content
        for name, settings in config["deepinv"].items():
            described[name, f"{origins(files)['deepinv']}: deepinv.{name}"] = settings
        for (name, where), settings in described.items():
            check(settings, schemas / "baseline.schema.yaml", where)
            if name in self.methods:
                raise InputError(f"{where}: {name} is the name of another method")
            self.methods[name] = self._baseline(name, settings, where)
        self._check_names(files)

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
        operators = {entry["operator"] for entry in self.problems.values()}
        known = [*operators, *self.problems]
        _known(settings.get("problems", []), known, where, "problems", "problem or operator")
        defaults = {"label": name, "parameters": {}, "tune": {}, "timeout": TIMEOUT}
        return {**defaults, **settings, "baseline": ways[0]}

    def _check_names(self, files: Sequence[str | Path]) -> None:
        config, source = self.config, origins(files)

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
        known(config["methods"], self.methods, "methods", "method")
        for block in config["comparisons"]:
            known(block["methods"], self.methods, "comparisons.methods", "method")
            known(block["problems"], config["problems"], "comparisons.problems", "problem")
        known(config["examples"], config["problems"], "examples", "problem")
        for method in self.all_methods():
            settings = self.methods[method]
            if "variant" in settings:
                known([settings["solver"]], config["solvers"], "solvers", "solver")
                known([settings["variant"]], config["variants"], "variants", "variant")
            elif self.denoiser_of(method):
                known([self.denoiser_of(method)], config["variants"], "variants", "variant")

    def all_methods(self) -> list[str]:
        """Methods in the order of the tables: those on all problems, then the comparisons'."""
        methods = list(self.config["methods"])
        for block in self.config["comparisons"]:
            methods += [method for method in block["methods"] if method not in methods]
        return methods

    def problems_of(self, method: str) -> list[str]:
        """The problems that a method restores in this run."""
        if method in self.config["methods"]:
            chosen = self.config["problems"]
        else:
            blocks = [b for b in self.config["comparisons"] if method in b["methods"]]
            chosen = [p for p in self.config["problems"] if any(p in b["problems"] for b in blocks)]
        able = self.methods[method].get("problems")
        return [
            p for p in chosen if able is None or p in able or self.problems[p]["operator"] in able
        ]

    def methods_of(self, problem: str) -> list[str]:
        """The methods that restore a problem in this run."""
        return [m for m in self.all_methods() if problem in self.problems_of(m)]

    def denoiser_of(self, method: str) -> str | None:
        """The variant whose denoiser a baseline uses, if it uses one that is trained in the run."""
        denoiser = self.methods[method].get("denoiser")
        return denoiser if denoiser in ("red", "rg", "mtdeq") else None

    def variants(self) -> list[str]:
        """The variants that the run's methods need."""
        wanted = {self.methods[m].get("variant") for m in self.all_methods()}
        wanted |= {self.denoiser_of(m) for m in self.all_methods()}
        return [v for v in self.config["variants"] if v in wanted]

    def trained_problems(self) -> dict[str, dict]:
        """What the variants are trained on: the physics of the run's problems for training."""
        names = [name for name in self.config["problems"] if self.problems[name]["trained"]]
        return {name: self.physics_of(name) for name in names}

    def physics_of(self, problem: str) -> dict:
        """The part of a problem's entry that its observations depend on."""
        return {key: value for key, value in self.problems[problem].items() if key in PHYSICS}


def digest(content: Any) -> str:
    """sha256 of a configuration, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
