"""The classes of deepinv and their arguments: read off its source, as its import takes seconds."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def folder() -> Path:
    """The folder of deepinv."""
    return Path(find_spec("deepinv").origin).parent


def module(name: str, start: Path) -> Path | None:
    """The file of a module by its dotted name from a folder."""
    path = start.joinpath(*name.split("."))
    files = path.with_suffix(".py"), path / "__init__.py"
    return next((file for file in files if file.is_file()), None)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names(path: Path) -> Iterator[str]:
    """What a module defines or imports."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name


def _definition(path: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """A class and its file; None where the module neither defines nor imports it at its top."""
    for node in _parsed(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        for alias in node.names if isinstance(node, ast.ImportFrom) else []:
            if name == (alias.asname or alias.name):
                start = path.parents[node.level - 1] if node.level else folder().parent
                file = module(node.module or "", start)
                return _definition(file, alias.name) if file and file != path else None
    return None


def arguments(path: Path, name: str) -> set[str] | None:
    """The arguments that a class uses, which a module defines or imports.

    Where it hands its **kwargs on to its base, those of the base too; where it drops them, no
    other. None where the source does not tell.
    """
    found = _definition(path, name)
    if found is None:
        return None
    path, node = found
    base = node.bases[0] if len(node.bases) == 1 else None
    inherited = arguments(path, base.id) if isinstance(base, ast.Name) else None
    init = next((part for part in node.body if getattr(part, "name", "") == "__init__"), None)
    if init is None:
        return None if node.decorator_list else inherited  # a dataclass has arguments of its own
    own = {argument.arg for argument in [*init.args.args[1:], *init.args.kwonlyargs]}
    rest = init.args.kwarg.arg if init.args.kwarg else ""
    used = [part for part in ast.walk(init) if isinstance(part, ast.Name) and part.id == rest]
    if not used:
        return own
    handed = [
        keyword.value
        for call in ast.walk(init)
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("super(")
        for keyword in call.keywords
    ]
    return own | inherited if inherited is not None and all(u in handed for u in used) else None
