"""What every script of the workflow does around its one call: a log, and faults in one line."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rerg.config import InputError


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
    """Write the log to a file, warnings to stderr as well; end with status 1 and a line on a fault.

    An InputError is its own line. Any other error is a fault of ours: its traceback goes to the
    log, and the line says so.
    """
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    Path(path).write_text("", encoding="utf-8")
    file = logging.FileHandler(
        path, encoding="utf-8"
    )  # appends, as the processes of a training write to it too
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s",
        level=logging.INFO,
        handlers=[file, screen],
    )
    log = logging.getLogger(__name__)
    try:
        yield
    except InputError as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception as error:
        file.stream.write(traceback.format_exc())
        reason = (str(error).strip().splitlines() or [""])[0]
        log.error("%s: %s (traceback in %s)", type(error).__name__, reason, path)
        sys.exit(1)
