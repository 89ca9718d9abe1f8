"""What a job's code means: its import closure against the real imports, and what changes it."""

import ast
import json
import subprocess
import sys

import pytest
from conftest import ROOT, TRAINED

from rerg import code
from rerg.code import closure, code_digest, imports
from rerg.registry import solvers, variants

SCRIPTS = sorted((ROOT / "workflow" / "scripts").glob("*.py"))
PACKAGE = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "rerg").rglob("*.py")
}
# Each case runs in a fork, so that the libraries are imported once.
IMPORTER = """
import ast, importlib, json, os, sys
import deepinv, h5py, jsonschema, lpips, matplotlib.pyplot, pandas
import pydantic, scipy.io, seaborn, torch, tqdm
assert not any(name.split(".")[0] == "rerg" for name in sys.modules)
for line in sys.stdin:
    script, *modules = json.loads(line)
    if os.fork():
        assert os.wait()[1] == 0, line
        continue
    tree = ast.parse(open(script).read())
    tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(tree, script, "exec"))
    for module in modules:
        importlib.import_module(f"rerg.{module}")
    print(json.dumps([name for name in sys.modules if name.split(".")[0] == "rerg"]), flush=True)
    os._exit(0)
"""


def cases():
    """Every script, and with every variant or solver that it may load by name."""
    train, tune, restore = (
        ROOT / "workflow/scripts" / f"{n}.py" for n in ("train", "tune", "restore")
    )
    return [
        *((path,) for path in SCRIPTS),
        *((train, f"variants.{variant}") for variant in TRAINED),
        *((restore, f"variants.{variant}", "solvers.fast") for variant in variants()),
        *((restore, "variants.rerg", f"solvers.{solver}") for solver in solvers()),
        (tune, "variants.rerg", "solvers.fast"),
    ]


def test_a_closure_holds_every_module_that_is_really_imported():
    lines = "".join(json.dumps([str(part) for part in case]) + "\n" for case in cases())
    done = subprocess.run(
        [sys.executable, "-c", IMPORTER], cwd=ROOT, input=lines, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = [set(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(loaded) == len(cases()) and all(loaded)
    for case, modules in zip(cases(), loaded, strict=True):
        assert modules <= set(closure(*case)), case


def test_a_stage_depends_on_no_later_one():
    folder = ROOT / "workflow" / "scripts"
    later = {f"rerg.{name}" for name in ("figures", "tables", "claims", "provenance")}
    for variant in TRAINED:
        trained = closure(folder / "train.py", f"variants.{variant}")
        assert not {*later, "rerg.scores", "rerg.tuning", "rerg.restoration"} & set(trained)
        restored = closure(folder / "restore.py", f"variants.{variant}", "solvers.fast")
        assert not {*later, "rerg.training", "rerg.parallel"} & set(restored)
    assert not {*later, "rerg.training"} & set(closure(folder / "baseline.py"))
    assert "rerg.models" not in closure(folder / "observe.py")


def test_a_variant_depends_on_no_other():
    for variant in TRAINED:
        modules = closure(ROOT / "workflow/scripts/train.py", f"variants.{variant}")
        assert [m for m in modules if m.startswith("rerg.variants.")] == [
            f"rerg.variants.{variant}"
        ]


def test_the_package_has_no_circle_of_imports(tmp_path):
    left = {}
    for name, path in PACKAGE.items():
        tree = ast.parse(path.read_text())
        really = [node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(node)[:20]]
        (tmp_path / f"{name}.py").write_text(ast.unparse(ast.Module(really, [])))
        left[name] = set(imports(tmp_path / f"{name}.py")) - {name}
    assert len(left) > 30 and sum(map(len, left.values())) > 60
    while leaves := {name for name, needed in left.items() if not needed & set(left)}:
        left = {name: needed for name, needed in left.items() if name not in leaves}
    assert not left


ORIGINAL = '''
"""What it does."""

from pkg.a import f
from rerg.a import f


class C:
    """A class."""

    size: int = 1


def g(x, *, y=2.5, **z):
    """Docstring."""
    from rerg import b

    if x:
        return [f(x), None, b"", {**z}]
    return f"{x!r:>3}" + "a"
'''


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """The digest of a script that imports `rerg.a` and `rerg.b`, from the sources of all three."""
    count = iter(range(1000))

    def digest(
        script=ORIGINAL, a="def f(x):\n    return x\n", b="from rerg import c\n", c="C = 1\n"
    ):
        folder = tmp_path / str(next(count)) / "rerg"  # as files are read once
        folder.mkdir(parents=True)
        monkeypatch.setattr(code, "ROOT", folder)
        modules = {"__init__": "", "a": a, "b": b, "c": c, "unused": f"X = {folder!r}\n"}
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        (folder.parent / "script.py").write_text(script)
        assert set(closure(folder.parent / "script.py")) == {"rerg", "rerg.a", "rerg.b", "rerg.c"}
        return code_digest(folder.parent / "script.py")

    return digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class C:", "# a comment\nclass C:  # another"),
        ('"""A class."""', '"""Another text."""'),
        ('    """Docstring."""\n', ""),
        ('"""What it does."""', ""),
        ("\n\n\n", "\n\n\n\n\n"),
        ('[f(x), None, b"", {**z}]', "(\n            [f(x), None, b'', {**z,},]\n        )"),
        ("2.5", "2.50"),
    ],
)
def test_comments_docstrings_and_form_mean_nothing(old, new, digest_of):
    assert old in ORIGINAL
    assert digest_of(ORIGINAL.replace(old, new)) == digest_of()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size: int = 1", "size: int = 2"),
        ("size: int = 1", "size: int = 1.0"),
        ("size: int = 1", "size: int"),
        ("y=2.5", "y=2.6"),
        ("y=2.5", "y"),
        ("x, *, y", "x, y"),
        ("**z)", "**w)"),
        ("None", "..."),
        ('b""', '""'),
        ("{**z}", "{'z': z}"),
        ("if x:", "if not x:"),
        ("if x:", "while x:"),
        ("!r:>3", "!s:>3"),
        (":>3", ":>4"),
        ('"a"', '"b"'),
        ("def g", "async def g"),
        ("class C:", "@f\nclass C:"),
        ("[f(x), None", "[None, f(x)"),
    ],
)
def test_code_means_something(old, new, digest_of):
    assert old in ORIGINAL
    changed = ORIGINAL.replace(old, new)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(ORIGINAL))
    assert digest_of(changed) != digest_of()


@pytest.mark.parametrize("constant", ["LABEL", "COLOR", "LINE", "MARKER"])
def test_how_a_variant_or_a_solver_is_shown_means_nothing(digest_of, constant):
    def with_constants(shown: str, scale: int) -> str:
        return digest_of(a=f"{constant} = {shown!r}\nSCALE = {scale}\n")

    assert with_constants("a", 1) == with_constants("b", 1) != with_constants("a", 2)


def test_what_is_imported_means_something(digest_of):
    same, a, deep = (
        digest_of(),
        digest_of(a="def f(x):\n    return -x\n"),
        digest_of(c="C = 2\n"),  # imported by what a function of the script imports
    )
    assert digest_of() == same and len({same, a, deep}) == 3
    assert digest_of(c="# only a comment\nC = 1\n") == same
