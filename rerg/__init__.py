"""rerg: the reproducible benchmark of learned regularizing gradients for image restoration.

    rg = rerg.load("rerg")
    x = rg.restore(y, physics, sigma=25 / 255)

Nothing of it is imported until it is used.
"""

import importlib

_HOME = {"RG": "rerg.reconstructor", "load": "rerg.reconstructor", "InputError": "rerg.config"}
__all__ = ["RG", "InputError", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("rerg")
    if name in _HOME:
        # By a computed name, as what this file imported would be code of every job (`rerg.code`).
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rerg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
