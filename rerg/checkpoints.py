"""Checkpoints of a training: written so that a kill leaves the last whole one, read if they fit."""

import os
import pickle
from pathlib import Path

import torch

from rerg.atomic import whole
from rerg.config import InputError


def _differences(here: dict, there: dict, prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*here, *there}):
        a, b = here.get(key), there.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key} is {b} there and {a} here")
    return lines


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a checkpoint so that a kill at any moment leaves the last whole one."""
    with whole(path) as partial, partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path, inputs: dict) -> dict | None:
    """The state of `save_checkpoint`, or None.

    inputs: all that the training depends on, as the checkpoint holds them under that name.
    Raises InputError where they are others, or where the file is not a checkpoint.
    """
    if not path.exists():
        return None
    try:
        # on the CPU: what takes the state brings it to its own device, and it may be another
        state = torch.load(path, weights_only=True, map_location="cpu")
        different = _differences(inputs, state["inputs"])
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError):
        raise InputError(f"{path}: not a whole checkpoint; delete it to train anew") from None
    if different:
        raise InputError(
            f"{path}: checkpoint of another config or code: {different[0]}; delete it to train anew"
        )
    return state
