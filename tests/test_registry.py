"""Variants and solvers: read off their files without torch, as their modules are."""

import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from conftest import ROOT

from rerg import registry
from rerg.config import InputError
from rerg.registry import Solver, Variant, load, solvers, variants


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package folder of the test's own, with one variant and one solver."""
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    variants.cache_clear()
    solvers.cache_clear()
    (tmp_path / "variants").mkdir()
    (tmp_path / "solvers").mkdir()
    yield tmp_path
    variants.cache_clear()
    solvers.cache_clear()


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("variants", name) for name in variants()), *(("solvers", name) for name in solvers())],
)
def test_a_description_agrees_with_the_module(kind, name):
    described, module = getattr(registry, kind)()[name], load(kind, name)
    for entry in fields(described):
        default = None
        if entry.default is not MISSING:
            default = entry.default
        elif entry.default_factory is not MISSING:
            default = entry.default_factory()
        assert getattr(described, entry.name) == getattr(module, entry.name.upper(), default)
    if kind == "solvers" or not described.published:
        assert callable(module.loss if kind == "variants" else module.solve)


def test_every_variant_names_what_it_has():
    for name, variant in variants().items():
        assert variant.networks, name
        assert variant.denoiser in ("", *variant.networks), name
        assert set(variant.solvers) <= set(solvers()), name
    for about in (variants(), solvers()):
        labels = [entry.label for entry in about.values()]
        assert len(set(labels)) == len(labels)


def test_a_module_is_found_by_being_there(folder):
    (folder / "variants" / "mine.py").write_text(
        'import torch\nLABEL = "Mine"\nCOLOR = "#000000"\nNETWORKS = {"rg": False}\n'
        'PARAMETERS = {"gamma": 2.0}\nLEVEL = 50 / 255\nraise RuntimeError("must not be run")\n'
    )
    (folder / "variants" / "__init__.py").write_text("")
    assert variants() == {
        "mine": Variant("Mine", "#000000", {"rg": False}, parameters={"gamma": 2.0})
    }


@pytest.mark.parametrize(("kind", "described"), [("variants", Variant), ("solvers", Solver)])
def test_a_module_without_a_constant_is_one_line(kind, described, folder):
    lines = {"label": 'LABEL = "Mine"'}
    for entry in fields(described):
        if entry.default is MISSING and entry.default_factory is MISSING:
            lines[entry.name] = f'{entry.name.upper()} = "x"'
    for missing in lines:
        kept = [line for name, line in lines.items() if name != missing]
        (folder / kind / "mine.py").write_text("\n".join(kept) + "\n")
        with pytest.raises(InputError) as error:
            getattr(registry, kind)()
        path = folder / kind / "mine.py"
        assert str(error.value) == f"{path}: expected a constant {missing.upper()}"


def test_descriptions_need_no_torch():
    code = "import sys; from rerg.registry import *; variants(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
