"""What a job's code means: a digest of the modules that it imports, read and not run.

Rules hand it to their jobs as a parameter, so that Snakemake runs them again when it changes.
Comments, docstrings and the form of the source are no part of it, nor is how a variant or a solver
is called and drawn.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent
# Constants that tables and figures alone use; their rules have them.
SHOWN = ("LABEL", "COLOR", "LINE", "MARKER", "DESCENT")


def _path(module: str) -> Path | None:
    """The file of a module of this package, `rerg.x` or `rerg.x.y`; None for a name inside one."""
    path = ROOT.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


@cache
def imports(path: Path) -> list[str]:
    """The modules of this package that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "rerg" and _path(name)]


def closure(script: Path, *modules: str) -> dict[str, Path]:
    """The modules of this package that a script imports, and that these import in turn.

    Name to file. modules: such that the script imports by a computed name (`rerg.registry.load`),
    as `variants.rerg`.
    """
    found: dict[str, Path] = {}
    left = [*imports(script), *(f"rerg.{module}" for module in modules)]
    while left:
        module = left.pop()
        if module not in found:
            found[module] = _path(module)
            left += imports(found[module])
            left += [module.rpartition(".")[0]] * ("." in module)  # a package runs before its parts
    return found


def _meaning(node: ast.AST) -> Iterator[str]:
    """The names of the nodes of a syntax tree and their values, without docstrings and comments.

    Fields that are empty are left out, as every version of Python adds some: so a run may be taken
    to another.
    """
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield name
            yield from _meaning(value)
        elif isinstance(value, list) and value:
            yield name
            for part in value:
                if not isinstance(part, ast.AST):
                    yield repr(part)
                elif not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)):
                    yield from _meaning(part)
        elif value is not None and value != []:
            yield f"{name}={value!r}"
    yield ")"


def _computes(node: ast.AST) -> bool:
    """Whether a statement at the top of a module is more than how something is shown."""
    return not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in SHOWN)


@cache
def _digest(path: Path) -> str:
    tree = ast.Module([node for node in _parsed(path).body if _computes(node)], [])
    return hashlib.sha256(" ".join(_meaning(tree)).encode()).hexdigest()


@cache
def code_digest(script: Path, *modules: str) -> str:
    """sha256 of what a script and its import closure mean."""
    files = {"script": script, **closure(script, *modules)}
    parts = [f"{name} {_digest(path)}" for name, path in sorted(files.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
