"""Photographs as a user has them: read upright as floats, written with their depth and alpha."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rerg.atomic import whole
from rerg.config import InputError
from rerg.kernels import normalized
from rerg.pictures import opened

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp")
DEEP = (".png", ".tif", ".tiff")  # that hold 16 bits a channel
ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Photo:
    """x: float32 (C, H, W) in [0, 1], C of 1 or 3; alpha: (1, H, W) or None; bits: 8 or 16.

    profile: the ICC profile of its colours, b"" for none.
    """

    x: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    profile: bytes = b""

    def restored(self, x: Tensor) -> "Photo":
        """The photograph with other pixels (C, H, W), and the alpha resized to them."""
        alpha = self.alpha
        if alpha is not None and alpha.shape[-2:] != x.shape[-2:]:
            alpha = F.interpolate(alpha[None], x.shape[-2:], mode="bicubic", antialias=True)[0]
        return replace(self, x=x, alpha=alpha)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, ...) turned and mirrored as an EXIF orientation of 1 to 8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def _pixels(path: Path) -> tuple[np.ndarray, int, bytes]:
    """Pixels (H, W, channels) as they are stored but upright, bits and ICC profile."""
    with opened(path) as (image, deep):
        profile = image.info.get("icc_profile") or b""
        if deep:
            orientation = image.getexif().get(ORIENTATION, 1)
            return _upright(_deep_pixels(path), orientation), 16, profile
        if image.mode in ("I", "F"):
            raise InputError(f"{path}: expected 8 or 16 bits a channel, found mode {image.mode}")
        grey = image.mode in ("1", "L", "LA", "La")
        mode = ("L" if grey else "RGB") + "A" * image.has_transparency_data
        return np.atleast_3d(np.array(ImageOps.exif_transpose(image).convert(mode))), 8, profile


def _deep_pixels(path: Path) -> np.ndarray:
    """uint16 (H, W, channels), which Pillow cannot read in colour."""
    if path.suffix.lower() in (".tif", ".tiff"):
        from tifffile import imread  # here, as it is slow to import and seldom needed

        return np.atleast_3d(imread(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # until torchvision gives it up
        try:
            from torchvision.io import ImageReadMode, read_image
        except ImportError:
            raise InputError(f"{path}: 16 bits in colour; give it as a TIFF") from None
        return read_image(str(path), ImageReadMode.UNCHANGED).movedim(0, -1).numpy()


def read_photo(path: Path) -> Photo:
    """The photograph of a file, upright.

    Raises InputError where the file is missing, no picture, damaged, more than one picture, or has
    other than 8 or 16 bits a channel.
    """
    try:
        pixels, bits, profile = _pixels(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: expected a picture ({', '.join(SUFFIXES)}), found none"
        ) from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read: {reason}") from None
    x = torch.from_numpy(np.ascontiguousarray(pixels)).movedim(-1, 0).float() / (2**bits - 1)
    colours = 3 if len(x) > 2 else 1
    alpha = x[colours:] if len(x) > colours else None
    return Photo(x[:colours].contiguous(), alpha, bits, profile)


def check_suffix(path: Path, photo: Photo) -> None:
    """Hold the name of an output against what it has to keep.

    Raises InputError for a format that is not known, or that would lose the alpha.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in one of {', '.join(SUFFIXES)}")
    if photo.alpha is not None and suffix in WITHOUT_ALPHA:
        raise InputError(f"{path}: {suffix} holds no transparency; expected .png, .tif or .webp")
    grey = photo.x.shape[0] == 1
    if photo.alpha is not None and grey and photo.bits == 16 and suffix in (".tif", ".tiff"):
        raise InputError(f"{path}: grey of 16 bits with transparency: expected .png")


def write_photo(path: Path, photo: Photo) -> None:
    """Write a photograph, clipped to [0, 1], whole or not at all.

    Depth is kept in PNG and TIFF, 8 bits elsewhere. Raises InputError as `check_suffix` does, and
    where the format does not hold so large a picture, or the file cannot be written.
    """
    check_suffix(path, photo)
    try:
        content = _encoded(path.suffix.lower(), photo)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written: {error}") from None
    with whole(path) as unfinished:
        unfinished.write_bytes(content)


def _encoded(suffix: str, photo: Photo) -> bytes:
    """The content of a photograph's file."""
    deep = photo.bits == 16 and suffix in DEEP
    x = torch.cat([photo.x, *([] if photo.alpha is None else [photo.alpha])]).cpu().clamp(0, 1)
    levels = (x * (65535 if deep else 255)).round().movedim(0, -1)
    pixels = levels.numpy().astype(np.uint16 if deep else np.uint8)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    if deep and suffix == ".png":
        return _deep_png(pixels, photo.profile)
    file = io.BytesIO()
    if deep:
        from tifffile import imwrite

        # Said, as it takes two channels for pages where it has to guess.
        layout = {"photometric": "minisblack" if x.shape[0] < 3 else "rgb"}
        layout |= {"planarconfig": "contig"} if pixels.ndim == 3 else {}
        imwrite(file, pixels, iccprofile=photo.profile or None, **layout)
    else:
        options = {"quality": 95} if suffix in (".jpg", ".jpeg", ".webp") else {}
        options |= {"icc_profile": photo.profile} if photo.profile else {}
        kind = Image.registered_extensions()[suffix]
        Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _deep_png(pixels: np.ndarray, profile: bytes) -> bytes:
    """A PNG file of uint16 (H, W) or (H, W, 2 to 4), which Pillow writes in grey only."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    height, width, *channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels[0] if channels else 1]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    colours = [chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile))] if profile else []
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
            *colours,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def read_kernel(path: Path) -> np.ndarray:
    """The kernel of a blur, float64 (k, l), summing to 1, of an .npy or .txt file or a picture.

    Raises InputError where the file is missing, or holds no matrix of finite values of a positive
    sum.
    """
    try:
        if path.suffix.lower() == ".npy":
            h = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
        elif path.suffix.lower() in SUFFIXES:
            h = read_photo(path).x.double().mean(0).numpy()
        else:
            h = np.loadtxt(path, ndmin=2)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: expected a kernel: {str(error).splitlines()[0]}") from None
    if h.dtype.kind not in "fiu":
        raise InputError(f"{path}: expected a matrix of real numbers, found {h.dtype}")
    return normalized(h.astype(np.float64), str(path))


def read_mask(path: Path) -> np.ndarray:
    """A mask of known pixels, bool (H, W): white ones of a picture.

    Raises InputError where the file is missing, is no picture, or knows no pixel.
    """
    known = read_photo(path).x.mean(0).numpy() > 0.5
    if not known.any():
        raise InputError(f"{path}: expected white where pixels are known, found none")
    return known
