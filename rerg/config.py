"""Reading and checking the configuration, before anything is computed.

Every fault is one line that names the file, the key and what was expected. This module is parsed
by every Snakemake process, so it imports no torch.
"""

import difflib
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

TIMEOUT = 3600  # seconds that a baseline may take for a problem, where it states none


class InputError(ValueError):
    """A fault of the user's input: its text is one line that says where and what was expected."""

    def __init__(self, text: str = ""):
        super().__init__(" ".join(text.splitlines()))  # a name of the user's may have several


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML without a key that stands twice in a mapping: the first would be lost silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises InputError where the file is missing or is not YAML (with the line of the fault), and
    where a key stands twice.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return yaml.load(file, _UniqueKeys)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text ({error.reason})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {line}not YAML: {getattr(error, 'problem', error)}") from None


def read_mapping(path: Path) -> dict:
    """`read_yaml` of a file with keys. Raises InputError for any other content, too."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys, got {json.dumps(content, default=str)[:60]}")
    return content


@contextmanager
def ending_in_a_line() -> Iterator[None]:
    """End the process with status 1 and the line of an InputError."""
    try:
        yield
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def closest(word: str, known: Sequence[str]) -> str:
    """The end of a line about an unknown word: the known one that was meant, or all of them."""
    match = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {match[0]}?" if match else f"; known: {', '.join(sorted(known))}"


def _describe(error) -> str:
    """One line for an error of jsonschema."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = next(key for key in error.instance if key not in known)
        where = f"{where}.{unknown}" if where else unknown
        return f"{where}: unknown key{closest(unknown, known)}"
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
        "exclusiveMaximum": lambda: f"expected less than {error.validator_value}",
        "uniqueItems": lambda: "expected each entry once",
        "minItems": lambda: f"expected at least {error.validator_value} entries",
        "maxItems": lambda: f"expected at most {error.validator_value} entries",
    }.get(error.validator, lambda: error.message.splitlines()[0])
    if "description" in error.schema:
        expected = lambda: f"expected {error.schema['description']}"  # noqa: E731
    if error.validator in ("propertyNames", "pattern"):
        return f"{where or error.instance}: {expected()}".replace(": :", ":")
    got = f"{expected()}, got {json.dumps(error.instance, default=str)[:60]}"
    return f"{where}: {got}" if where else got


# A whole number written as a float would reach torch as one, and .nan passes every comparison.
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "integer": lambda _, x: type(x) is int,
        "number": lambda _, x: type(x) is int or (type(x) is float and math.isfinite(x)),
    }
)
Validator = extend(Draft202012Validator, type_checker=_TYPES)


def origins(files: Sequence[str | Path | Mapping]) -> dict[str, str]:
    """Top-level key of a merged config to the last file that sets it, else the last file.

    A mapping among the files holds what `--config` sets.
    """
    paths = [str(file) for file in files if not isinstance(file, Mapping)]
    origin: dict[str, str] = defaultdict(lambda: paths[-1])
    for path in paths:
        if Path(path).is_file() and isinstance(content := read_yaml(path), dict):
            origin |= dict.fromkeys(content, path)
    for given in (file for file in files if isinstance(file, Mapping)):
        origin |= dict.fromkeys(given, "--config")
    return origin


def check(instance: Any, schema: Mapping | Path, *files: str | Path | Mapping) -> None:
    """Hold an instance, merged from files, against a JSON schema (or the YAML file of one).

    Raises InputError with the first fault: `file: key: what was expected`.
    """
    schema = schema if isinstance(schema, Mapping) else read_yaml(schema)
    errors = Validator(schema).iter_errors(instance)
    error = min(errors, key=lambda e: (len(e.absolute_path), str(e.absolute_path)), default=None)
    if error is not None:
        line = _describe(error)
        key = re.split(r"[.:]", line)[0]
        raise InputError(f"{origins(files)[key]}: {line}".replace(": : ", ": "))
