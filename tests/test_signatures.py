"""The arguments of deepinv's classes, as read off its source and as Python sees them."""

import importlib
import inspect

import pytest

from rerg.signatures import arguments, folder, module


@pytest.mark.parametrize("home", ["optim", "optim.prior", "models", "sampling"])
def test_arguments_are_those_that_python_sees(home):
    told = 0
    for name, found in vars(importlib.import_module(f"deepinv.{home}")).items():
        if inspect.isclass(found) and found.__module__.startswith("deepinv."):
            kinds = {p.name: p.kind.name for p in inspect.signature(found).parameters.values()}
            seen = {argument for argument, kind in kinds.items() if not kind.startswith("VAR_")}
            known = arguments(module(home, folder()), name)
            if known is not None:
                assert seen <= known if "VAR_KEYWORD" in kinds.values() else seen == known, name
            told += known is not None
    assert told > 10


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class A:\n def __init__(self, a, *, b=1): ...", {"a", "b"}),
        ("class A:\n def __init__(self, a, **rest): ...", {"a"}),
        ("class A:\n def __init__(self, a, **rest): self.rest = rest", None),
        ("class B:\n def __init__(self, b): ...\nclass A(B): ...", {"b"}),
        (
            "class B:\n def __init__(self, b): ...\n"
            "class A(B):\n def __init__(self, a, **rest): super().__init__(**rest)",
            {"a", "b"},
        ),
        ("class A(nn.Module):\n def __init__(self, a, **rest): super().__init__(**rest)", None),
        ("class A(nn.Module): ...", None),
        ("@dataclass\nclass A:\n a: int = 1", None),
        ("def A(a): ...", None),
        ("from .b import B as A", {"c"}),
        ("from . import A", None),
    ],
)
def test_what_the_source_tells(source, expected, tmp_path):
    (tmp_path / "__init__.py").write_text(source)
    (tmp_path / "b.py").write_text("class B:\n def __init__(self, c): ...")
    assert arguments(tmp_path / "__init__.py", "A") == expected
