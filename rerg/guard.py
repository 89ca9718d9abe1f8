"""A baseline's program, run where it cannot hurt the others.

    python -m rerg.guard [--timeout SECONDS] OBSERVATIONS RESTORATIONS PROGRAM ARGUMENTS...

runs the program, which writes the file RESTORATIONS. Where it fails, takes longer, or leaves no
sound restoration, that file holds the reason instead (`failed`), and the exit status is 0: the
scores then have an empty cell.
"""

import argparse
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from rerg.config import TIMEOUT


def run(command: list[str], timeout: float) -> str | None:
    """Run a program, and end it with all that it started after `timeout` seconds.

    Returns the reason why it failed, in a line.
    """
    try:
        child = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    try:
        status = child.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"over its time limit of {timeout:g} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return f"{command[0]} ended with status {status}" if status else None


def fault(restorations: Path, observations: Path) -> str | None:
    """What is wrong with a restoration file, in a line: names, types, shapes, finite values."""
    try:
        restored = np.load(restorations, allow_pickle=False)
        restored = {key: restored[key] for key in restored.files}
    except FileNotFoundError:
        return "no restoration was written"
    except (zipfile.BadZipFile, ValueError, OSError, AttributeError) as error:
        return f"expected an npz file without pickles ({error})"
    if "failed" in restored:
        return str(restored["failed"])
    observed = np.load(observations, allow_pickle=False)
    for key in observed.files:
        if not key.endswith(".x0"):
            continue
        image, shape = key.removesuffix(".x0"), observed[key].shape
        if image not in restored:
            return f"{image}: no such array"
        x = restored[image]
        if x.dtype.kind != "f":
            return f"{image}: expected float in [0, 1] scale, got {x.dtype}"
        if x.shape != shape:
            return f"{image}: expected shape {shape}, got {x.shape}"
        if not np.isfinite(x).all():
            return f"{image}: values that are not finite"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="rerg.guard")
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    parser.add_argument("observations", type=Path)
    parser.add_argument("restorations", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `run` ends the program too
    given.restorations.unlink(missing_ok=True)
    reason = run(given.command, given.timeout) or fault(given.restorations, given.observations)
    if reason:
        print(f"{given.restorations}: {reason}", file=sys.stderr)
        with given.restorations.open("wb") as file:
            np.savez(file, failed=np.array(reason))


if __name__ == "__main__":
    main()
