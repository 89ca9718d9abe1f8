"""What the registry says of a dataset's files and images, before any of them is there.

Parsed by every Snakemake process: no torch.
"""

from collections.abc import Mapping
from pathlib import Path

from rerg.config import InputError


def read_digests(path: Path) -> dict[str, str]:
    """File name to sha256, of a manifest or a lock: lines `<sha256>  <name>` as of sha256sum.

    Raises InputError where the file is missing or a line has another form.
    """
    digests = {}
    try:
        with Path(path).open(encoding="utf-8") as file:
            lines = list(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        digest, _, name = line.removesuffix("\n").partition("  ")
        if len(digest) != 64 or not name:
            raise InputError(f"{path}: line {number}: expected '<sha256>  <file name>'")
        digests[name] = digest
    return digests


def image_ids(entry: Mapping, name: str) -> list[str]:
    """The ids of the images that a file of an entry gives: itself, or its tiles."""
    stem = Path(name).stem
    if "tiles" not in entry:
        return [stem]
    corners = entry["tiles"]["corners"].get(name, [])
    return [f"{stem}-{number}" for number in range(1, len(corners) + 1)]


def listed_images(entry: Mapping, root: Path) -> list[str]:
    """The ids of all images of an entry; none where it lists no files.

    root: of the repository. Raises InputError for a manifest that cannot be read.
    """
    if "tiles" in entry:
        files = entry["tiles"]["corners"]
    elif "sha256" in entry:
        files = entry["sha256"]
    else:
        files = read_digests(root / entry["manifest"]) if "manifest" in entry else {}
    return sorted(image for name in files for image in image_ids(entry, name))
