"""Opening files of pictures by Pillow: one picture, of a size that fits, and its true depth."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from rerg.config import InputError

LARGEST = 2**30  # pixels of a picture, each of which takes 7 bytes of memory while it is read
Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is for uploads by strangers; LARGEST is ours


@contextmanager
def opened(path: Path) -> Iterator[tuple[Image.Image, bool]]:
    """A picture that is not decoded yet, and whether it has 16 bits a channel.

    Raises InputError for several pictures in a file and for more than 2³⁰ pixels, and whatever
    Pillow raises.
    """
    with Image.open(path) as image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise InputError(f"{path}: expected one picture, found {frames}")
        if image.width * image.height > LARGEST:
            raise InputError(
                f"{path}: expected at most {LARGEST} pixels, found {image.height} x {image.width}"
            )
        # Pillow calls a colour image of 16 bits "RGB" as well; its decoder's arguments tell.
        yield image, "16" in image.mode or any(";16" in str(tile.args) for tile in image.tile)
