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
from pathlib import Path

from rerg.config import TIMEOUT, InputError
from rerg.files import Restored, fault, read_observed, read_restored, write_restored


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


def fault_of(restorations: Path, observations: Path) -> str:
    """What is wrong with a file of restorations, in a line; "" where nothing is."""
    if not restorations.exists():
        return "no restoration was written"
    try:
        restored = read_restored(restorations)
    except InputError as error:
        return str(error).removeprefix(f"{restorations}: ")
    if restored.failed:
        return restored.failed
    for image, parts in read_observed(observations).images.items():
        if reason := fault(restored.images.get(image), parts["x0"].shape):
            return f"{image}: {reason}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="rerg.guard")
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    parser.add_argument("observations", type=Path)
    parser.add_argument("restorations", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `run` ends the program too
    given.restorations.unlink(missing_ok=True)
    reason = run(given.command, given.timeout) or fault_of(given.restorations, given.observations)
    if reason:
        print(f"{given.restorations}: {reason}", file=sys.stderr)
        write_restored(given.restorations, Restored(failed=reason))


if __name__ == "__main__":
    main()
