"""What every script of the workflow does around its one call: a log, and faults in one line."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rerg.config import InputError

log = logging.getLogger(__name__)


def checkpoint_of(log: str, suffix: str = "") -> str:
    """Where a job keeps what it has done so far: `<results>/checkpoints/<stage>.<job>`.

    log: of the job, `<results>/logs/<stage>/<job>.log`. It is no output, since Snakemake
    deletes the outputs of a job that was killed.
    """
    path = Path(log)
    folder = path.parents[2] / "checkpoints"
    return str(folder / f"{path.parent.name}.{path.stem}{suffix}")


@contextmanager
def logged(path: str) -> Iterator[None]:
    """Write the log to a new file, warnings to stderr as well; faults as `in_a_line` tells them."""
    Path(path).write_text("", encoding="utf-8")
    log_to(path, logging.INFO)
    with in_a_line(path):
        yield


def log_to(path: str, level: int) -> None:
    """Add the log of this process from a level on to a file, and its warnings to stderr."""
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    file = logging.FileHandler(path, encoding="utf-8")  # appends: others may write to it too
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(format=form, level=level, handlers=[file, screen])


@contextmanager
def in_a_line(path: str) -> Iterator[None]:
    """End with status 1 and a line of the log on a fault.

    An InputError is its own line. Any other error is a fault of ours: its traceback goes to the
    file of the log, and the line says so.
    """
    try:
        yield
    except InputError as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception as error:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
        reason = (str(error).strip().splitlines() or [""])[0]
        log.error("%s: %s (traceback in %s)", type(error).__name__, reason, path)
        sys.exit(1)
