"""What every script of the workflow does around its one call: a log, and faults in one line."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rerg.config import InputError


@contextmanager
def logged(path: str) -> Iterator[None]:
    """Write the log to a file, warnings to stderr as well; end with status 1 on an InputError."""
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s",
        level=logging.INFO,
        handlers=[logging.FileHandler(path, mode="w"), screen],
    )
    try:
        yield
    except InputError as error:
        logging.getLogger(__name__).error(error)
        sys.exit(1)
