"""Files that are whole or not there: whoever is killed leaves the old one or the new one."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rerg.config import InputError


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to: it replaces `target` at the end, and no sooner.

    Raises InputError where it cannot be written, as on a full disk. One process at a time.
    """
    partial = Path(target).with_name(f"{Path(target).name}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
