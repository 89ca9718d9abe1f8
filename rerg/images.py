"""Images: from the registry's entry to one HDF5 file per dataset, and random crops of it.

Every file that is read was checked against a digest: of the registry, or of the run's lock.
"""

import hashlib
import importlib.util
import io
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import h5py
import numpy as np
import scipy.io
from PIL import ImageOps, UnidentifiedImageError
from tqdm import tqdm

from rerg.atomic import whole
from rerg.config import InputError
from rerg.datasets import image_ids, read_digests
from rerg.downloads import cache_folder, download, expand, sha256_of, unpack
from rerg.kernels import check_holds, normalized
from rerg.pictures import opened
from rerg.specs import ProblemSpec

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECTIONS = 8
HIDDEN = re.compile(r"\..*|thumbs\.db|ehthumbs\.db|desktop\.ini|@eadir", re.IGNORECASE)


def _line(error: Exception) -> str:
    """What a library says, in one line; HDF5 takes several."""
    return " ".join(str(error).split())


def fetch(dataset: str, entry: Mapping, lock: Path, *, backoff: float = 1.0) -> None:
    """Bring the files of a registry entry to this machine, and write their digests to `lock`.

    The digests that the files must have are the registry's; where it has none, those of a `lock`
    that an earlier run left, else the files are trusted on first sight.
    Raises InputError where a file is missing, cannot be downloaded or read, or has other bytes.
    """
    expected, origin = _expected(entry, lock)
    folder = _folder(entry)
    if entry["source"] == "http":
        if "archive" not in entry:
            _download_files(dataset, entry, expected, backoff)
        elif not folder and not (cache_folder() / dataset).exists():
            _download_archive(dataset, entry, backoff)
    names = sorted(expected) if expected and origin != str(lock) else _list(dataset, entry)
    digests = {}
    for name in tqdm(names, f"{dataset}: checking", disable=None):
        digests[name] = sha256_of(_existing(dataset, entry, name))
        _check(name, _locate(dataset, entry, name), digests[name], expected, origin)
    if lost := sorted(set(expected) - set(digests)):
        raise InputError(f"{dataset}: {lost[0]}: no such file, but {origin} lists it")
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    with whole(lock) as partial:
        partial.write_text(lines, encoding="utf-8")
    if not expected:
        log.info("%s: %d files trusted on first sight, locked in %s", dataset, len(names), lock)
    log.info("%s: %d files", dataset, len(names))


def _expected(entry: Mapping, lock: Path) -> tuple[dict[str, str], str]:
    """The digests to hold the files against (empty: none known) and where they come from."""
    if "sha256" in entry:
        return dict(entry["sha256"]), "config/datasets.yaml"
    if "manifest" in entry:
        return read_digests(Path(entry["manifest"])), entry["manifest"]
    return (read_digests(lock) if Path(lock).exists() else {}), str(lock)


def _check(name: str, path: Path, found: str, expected: Mapping, origin: str) -> None:
    if expected and found != expected.get(name):
        wanted = f"sha256 {expected[name]}" if name in expected else "no such file"
        raise InputError(f"{path}: {origin} expects {wanted}, found sha256 {found}")


def _folder(entry: Mapping) -> Path | None:
    """The user's folder of an entry, where there is one."""
    folder = expand(entry["folder"]) if "folder" in entry else None
    return folder if folder and folder.is_dir() else None


def _locate(dataset: str, entry: Mapping, name: str) -> Path:
    """Where a file of an entry lies, or would lie once fetched."""
    if entry["source"] == "embedded":
        # The path alone: importing scikit-image is slow and not needed.
        return Path(importlib.util.find_spec("skimage").origin).parent / "data" / name
    if folder := _folder(entry):
        for path in (folder / name, folder / Path(name).name):
            if path.exists() or path.is_symlink():  # a broken link is named, not passed over
                return path
    return cache_folder() / dataset / (name if "archive" in entry else Path(name).name)


def _existing(dataset: str, entry: Mapping, name: str) -> Path:
    path = _locate(dataset, entry, name)
    if not path.is_file():
        found = f"a broken link to {path.readlink()}" if path.is_symlink() else "no such file"
        raise InputError(f"{dataset}: {path}: {found}")
    return path


def _list(dataset: str, entry: Mapping) -> list[str]:
    """The files of an archive or a folder that the entry's pattern chooses.

    Folders, and what systems hide among the files, are passed over.
    """
    folder = _folder(entry)
    if entry["source"] == "folder" and folder is None:
        raise InputError(f"{dataset}: {entry['folder']}: no such folder; put the images there")
    folder = folder or cache_folder() / dataset
    found = [path.relative_to(folder) for path in folder.glob(entry["pattern"])]
    names = sorted(
        path.as_posix()
        for path in found
        if not any(map(HIDDEN.fullmatch, path.parts)) and not (folder / path).is_dir()
    )
    if not names:
        raise InputError(f"{dataset}: {folder}: expected files like {entry['pattern']}, found none")
    for name in names:
        if re.search("[\0-\x1f\x7f\ud800-\udfff]", name):  # a line of the lock, a key of HDF5
            raise InputError(
                f"{dataset}: {folder}: {name!r}: expected a file name in UTF-8 without line breaks"
            )
    return names


def _download_files(dataset: str, entry: Mapping, expected: Mapping, backoff: float) -> None:
    def get(name: str) -> None:
        path = _locate(dataset, entry, name)
        if path.is_relative_to(cache_folder()):  # else it lies in the user's folder
            urls = [url.format(file=name) for url in entry["urls"]]
            download(urls, path, expected[name], backoff=backoff)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            jobs = pool.map(get, expected)
            list(tqdm(jobs, f"{dataset}: fetching", total=len(expected), disable=None))
        except InputError:
            pool.shutdown(cancel_futures=True)  # without a connection the others would fail too
            raise


def _download_archive(dataset: str, entry: Mapping, backoff: float) -> None:
    folder = cache_folder() / dataset
    archive = cache_folder() / f"{dataset}.archive"
    download(entry["archive"], archive, backoff=backoff, progress=True)
    try:
        unpack(archive, folder)
    finally:
        archive.unlink(missing_ok=True)  # a damaged one must not be met again


def read_rgb(path: Path) -> np.ndarray:
    """The pixels of an image file, uint8 (H, W, 3), upright: turned as its EXIF orientation says.

    Raises InputError where the file is missing, no image, damaged, not RGB with 8 bits, where it
    has several pictures or more than 2³⁰ pixels.
    """
    try:
        with opened(path) as (image, deep):
            if image.mode != "RGB" or deep:
                found = "16 bits" if deep else f"mode {image.mode}"
                raise InputError(f"{path}: expected an RGB image of 8 bits, found {found}")
            ImageOps.exif_transpose(image, in_place=True)
            return np.array(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: expected an image (PNG, JPEG, BMP, TIFF), found none") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory") from None
    except Exception as error:  # a decoder raises what it likes
        raise InputError(f"{path}: damaged image: {_line(error)}") from None


def _cut(entry: Mapping, name: str, pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Image ids and pixels that a photograph gives: itself, or its tiles."""
    images = image_ids(entry, name)
    if "tiles" not in entry:
        yield images[0], pixels
        return
    size = entry["tiles"]["size"]
    corners = entry["tiles"]["corners"].get(name, [])
    for image, (row, column) in zip(images, corners, strict=True):
        tile = pixels[row : row + size, column : column + size]
        if tile.shape[:2] != (size, size):
            raise InputError(
                f"config/datasets.yaml: tiles: {name} [{row}, {column}]: a tile of {size} pixels "
                f"leaves the image of {pixels.shape[0]} x {pixels.shape[1]}"
            )
        yield image, tile


class _Disk(io.FileIO):
    """A new file for HDF5 to write to: what the disk refuses is kept in `error`, and not raised.

    HDF5 swallows such an error at best, and breaks the process where it cannot close the file.
    """

    error: OSError | None = None

    def write(self, data) -> None:
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error

    def truncate(self, size=None) -> None:
        try:
            super().truncate(size)
        except OSError as error:
            self.error = error


@contextmanager
def _new_images(target: Path) -> Iterator[tuple[h5py.File, _Disk]]:
    """A file for images at `target`, which appears there once it is whole."""
    with whole(target) as partial, _Disk(partial, "w+") as disk:
        # low bounds of the format's versions: the same layout with every later library
        with h5py.File(disk, "w", track_order=True, libver=("earliest", "v110")) as file:
            yield file, disk
        if disk.error:
            raise disk.error


def prepare(dataset: str, entry: Mapping, lock: Path, target: Path, smallest: int) -> None:
    """Write the images of a fetched entry to one HDF5 file, the same bytes at every time.

    One contiguous uint8 dataset (H, W, 3) per image, its key the image id; its attributes are
    `sha256` of the file it comes from and `pixels`, sha256 of shape and pixels.
    Raises InputError where a file is missing or is not the one that `lock` has, where tiles are cut
    from a file that `lock` has not, where an image is damaged, not RGB with 8 bits, or has a side
    under `smallest` pixels, where ids collide, where there is no image, and where `target` cannot
    be written.
    """
    digests = read_digests(lock)
    if unknown := set(entry.get("tiles", {}).get("corners", {})) - set(digests):
        raise InputError(
            f"config/datasets.yaml: {dataset}.tiles: {min(unknown)}: no such file in {lock}"
        )
    with _new_images(target) as (file, disk):
        for name, digest in tqdm(digests.items(), f"{dataset}: preparing", disable=None):
            path = _existing(dataset, entry, name)
            _check(name, path, sha256_of(path), digests, str(lock))
            for image, pixels in _cut(entry, name, read_rgb(path)):
                if min(pixels.shape[:2]) < smallest:
                    raise InputError(
                        f"{path}: {image}: expected at least {smallest} x {smallest} pixels, for "
                        "a crop of training (training.crop) or for the kernels and scores of a "
                        f"restoration; found {pixels.shape[0]} x {pixels.shape[1]}"
                    )
                if image in file:
                    raise InputError(f"{path}: {dataset} has another image named {image}")
                stored = file.create_dataset(image, data=pixels, track_times=False)
                stored.attrs["sha256"] = digest
                stored.attrs["pixels"] = _pixel_digest(pixels)
            if disk.error:
                raise disk.error
        if not len(file):  # an open file is true, whatever it holds
            raise InputError(f"{dataset}: no image; expected at least one")
        log.info("%s: %d images", dataset, len(file))


def open_images(path: Path) -> h5py.File:
    """A prepared file, for reading.

    No lock is asked for: the rules write a file before others read it, and NFS or Lustre may be
    without locks. Raises InputError where the file is missing or not whole.
    """
    try:
        return h5py.File(path, locking=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened as HDF5: {_line(error)}") from None


def _pixel_digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def prepare_kernels(dataset: str, entry: Mapping, lock: Path, target: Path) -> None:
    """Write the kernels of a fetched MATLAB file to an .npz: keys "0", "1", ..., float64 (k, k).

    Raises InputError where `lock` has another number of files than one, where the file is missing,
    is not the one that `lock` has, has no cell array `kernels`, or a kernel that is not finite or
    has no positive sum.
    """
    digests = read_digests(lock)
    if len(digests) != 1:
        raise InputError(f"{dataset}: expected one file of kernels, found {len(digests)}")
    [name] = digests
    path = _existing(dataset, entry, name)
    _check(name, path, sha256_of(path), digests, str(lock))
    try:
        if h5py.is_hdf5(path):  # MATLAB 7.3, which holds its arrays transposed
            with h5py.File(path, locking=False) as file:
                kernels = [file[reference][()].T for reference in file["kernels"][()].ravel()]
        else:
            kernels = list(scipy.io.loadmat(path)["kernels"].ravel())
        kernels = {str(i): np.asarray(h, np.float64) for i, h in enumerate(kernels)}
    except Exception as error:  # a reader raises what it likes
        raise InputError(f"{path}: expected a MATLAB file with `kernels`: {_line(error)}") from None
    for i, kernel in kernels.items():
        normalized(kernel, f"{path}: kernel {i}")
    with whole(target) as partial, partial.open("wb") as file:
        np.savez(file, **kernels)


def check_disjoint(splits: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, list[str]]]:
    """Hold the prepared files of train, validation and test disjoint; the image ids of each.

    Two images are the same where their pixels are, or where both were cut from one file.
    Raises InputError that names both images.
    """
    seen: dict[str, tuple[str, str]] = {}
    found: dict[str, dict[str, list[str]]] = {}
    for split, paths in splits.items():
        found[split] = {}
        for path in map(Path, paths):
            with open_images(path) as file:
                found[split][path.stem] = list(file)
                for image, stored in file.items():
                    name = f"{path.stem}/{image}"
                    for digest in stored.attrs.values():
                        other_split, other = seen.setdefault(digest, (split, name))
                        if other_split != split:
                            raise InputError(
                                f"datasets.{split}: {name} is the same image as {other} of "
                                f"datasets.{other_split}; expected disjoint splits"
                            )
    return found


def check_kernels(
    kernels: Mapping[str, str],
    trained: Sequence[ProblemSpec],
    crop: int,
    restored: Sequence[ProblemSpec],
    paths: Sequence[Path],
) -> None:
    """Hold prepared kernel files, by name, against the problems with a kernel of one.

    trained: those that crops (pixels) are drawn for; restored: those that the images of the
    prepared files are restored from.
    Raises InputError for an index that a file lacks, and where a crop or an image cannot hold a
    kernel.
    """
    for spec in trained:
        check_holds(crop, spec, "training.crop", kernels)
    for path in map(Path, paths):
        with open_images(path) as file:
            side, image = min((min(stored.shape[:2]), image) for image, stored in file.items())
        for spec in restored:
            check_holds(side, spec, f"{path.stem}/{image}", kernels)


def as_tensor(pixels: np.ndarray) -> "torch.Tensor":
    """uint8 (..., H, W, 3) as float32 (..., 3, H, W) in [0, 1]."""
    import torch  # here, as fetching and preparing images have no use for its seconds

    return torch.from_numpy(pixels).movedim(-1, -3).contiguous().float() / 255


def read_images(path: Path) -> "dict[str, torch.Tensor]":
    """All images of a prepared file, float32 (3, H, W) in [0, 1]."""
    with open_images(path) as file:
        return {image: as_tensor(stored[()]) for image, stored in file.items()}


class Crops:
    """Random crops of prepared images, which are mapped and not read: threads take crops at once.

    `Crops(paths, size, batch)(generator)` is a float32 tensor (batch, 3, size, size) in [0, 1]:
    image, position, flip and rotation are drawn uniformly from the numpy generator alone, so a
    batch depends on nothing but its state: `numpy.random.default_rng([seed, step])`.
    Raises InputError where an image is smaller than the crop.
    """

    def __init__(self, paths: Path | str | Sequence[Path | str], size: int, batch: int):
        paths = [paths] if isinstance(paths, (str, Path)) else paths
        self.size, self.batch = size, batch
        self._images, self._pixels = [], []
        for path in paths:
            with open_images(path) as file:
                mapped = np.asarray(np.memmap(path, mode="r"))
                for name, image in file.items():
                    if min(image.shape[:2]) < size:
                        raise InputError(
                            f"{path}: {name}: expected at least {size} x {size} pixels "
                            f"(training.crop), found {image.shape[0]} x {image.shape[1]}"
                        )
                    start = image.id.get_offset()  # of the contiguous bytes that `prepare` wrote
                    stored = mapped[start : start + image.nbytes]
                    self._images.append(stored.reshape(image.shape))
                    self._pixels.append(str(image.attrs["pixels"]))

    @property
    def digest(self) -> str:
        """sha256 that stands for the pixels of all images, in their order."""
        return hashlib.sha256("\n".join(self._pixels).encode()).hexdigest()

    def __call__(self, generator: np.random.Generator) -> "torch.Tensor":
        return as_tensor(np.stack([self._crop(generator) for _ in range(self.batch)]))

    def _crop(self, generator: np.random.Generator) -> np.ndarray:
        image = self._images[generator.integers(len(self._images))]
        row = generator.integers(image.shape[0] - self.size + 1)
        column = generator.integers(image.shape[1] - self.size + 1)
        crop = image[row : row + self.size, column : column + self.size]
        quarters, mirrored = divmod(int(generator.integers(8)), 2)
        return np.rot90(crop[:, ::-1] if mirrored else crop, quarters)


def prefetch(load: Callable[[int], T], keys: Iterable[int], threads: int = 1) -> Iterator[T]:
    """load(key) for each key, in order, up to two ahead for each of the background threads.

    An error of `load` is raised where its item is asked for.
    """
    keys = iter(keys)
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque(pool.submit(load, key) for key in islice(keys, 2 * threads))
        while ahead:
            item = ahead.popleft().result()
            ahead.extend(pool.submit(load, key) for key in islice(keys, 1))
            yield item
