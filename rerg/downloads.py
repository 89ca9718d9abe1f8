"""Files from the internet: checked to the byte, whole or not there at all, kept in one cache.

The cache is the folder that the environment variable RERG_CACHE names, else the platform's cache
folder; every run and every clone shares it.
"""

import hashlib
import logging
import lzma
import os
import stat
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pooch
import requests

from rerg.config import InputError

log = logging.getLogger(__name__)
pooch.get_logger().setLevel(logging.ERROR)  # the lines of this module say the same and more

ATTEMPTS = 4  # per address
TIMEOUT = (10, 60)  # seconds without a connection, without a byte
_DAMAGES = (  # of an archive, or of the disk that it is unpacked to
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    RuntimeError,  # of zipfile, for encryption and for ways of compression that it lacks
)
TRANSIENT = {408, 425, 429}  # states of the client's kind that a later attempt may not meet


class DownloadError(InputError):
    """A file that could not be had from any address: one line with the way out."""


class _WrongBytes(Exception):
    """The address gave a whole file with another content."""


def expand(path: str) -> Path:
    """A path with its variables and its ~ replaced.

    Raises InputError where ~ stands for no folder.
    """
    try:
        return Path(os.path.expandvars(path)).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: expected a path, ~ is no folder here") from None


def cache_folder() -> Path:
    """The folder that keeps downloads: RERG_CACHE, else the platform's cache folder.

    Raises InputError without RERG_CACHE for a user who has no home folder.
    """
    return expand(os.environ.get("RERG_CACHE") or str(pooch.os_cache("rerg")))


def _unwritable(path: Path, error: OSError) -> DownloadError:
    reason = error.__cause__ or error  # pooch writes a page around it
    return DownloadError(
        f"{path}: cannot be written: {reason}; the environment variable RERG_CACHE names the "
        f"folder of downloads, now {cache_folder()}"
    )


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Raises InputError where it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def is_pointer(path: Path) -> bool:
    """Whether a file is the pointer that Git LFS leaves in the place of a large one."""
    with Path(path).open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs.github.com/spec/")


def download(
    urls: Sequence[str],
    target: Path,
    sha256: str | None = None,
    *,
    backoff: float = 1.0,
    timeout: tuple[float, float] = TIMEOUT,
    progress: bool = False,
) -> Path:
    """Bring the file of the first address that gives it to `target`; a good one there is kept.

    `sha256` is the digest of the file or the first digits of it; None trusts what arrives, whole.
    Addresses are tried in order, each up to four times with waits of `backoff` (1, 2, 4) seconds;
    an address that answers that it lacks the file, or gives other bytes, is not asked again.
    The bytes go to a temporary file beside `target`, renamed once they are checked.

    Raises DownloadError: what each address answered, and where to put the file by hand; or why it
    cannot be written.
    """
    try:
        if target.exists():
            if sha256 is None or sha256_of(target).startswith(sha256):
                return target
            log.warning("%s: not the bytes of sha256 %s, downloading it anew", target, sha256)
            target.unlink()
    except OSError as error:
        raise _unwritable(target, error) from None

    http = pooch.HTTPDownloader(
        progressbar=progress and sys.stderr.isatty(), chunk_size=1 << 16, timeout=timeout
    )

    def checked(url: str, output: str, registry) -> None:
        http(url, output, registry)
        found = sha256_of(Path(output))
        if sha256 is not None and not found.startswith(sha256):
            pointer = ", a Git LFS pointer" if is_pointer(Path(output)) else ""
            raise _WrongBytes(f"expected sha256 {sha256}, found {found}{pointer}")
        Path(output).chmod(0o644)  # a temporary file is for its owner alone, the cache is shared

    answers = []
    for url in urls:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(backoff * 2 ** (attempt - 1))
            try:
                pooch.retrieve(url, None, fname=target.name, path=target.parent, downloader=checked)
                log.info("%s: downloaded from %s", target, url)
                return target
            except (_WrongBytes, requests.RequestException) as error:
                reason, final = _reason(error)
                log.warning("%s: %s: %s", target.name, url, reason)
                if final:
                    break
            except OSError as error:
                raise _unwritable(target, error) from None
        answers.append(f"{url}: {reason}")
    digest = f" (sha256 {sha256})" if sha256 else ""
    raise DownloadError(
        f"{target.name}: could not be downloaded: {'; '.join(answers)}; "
        f"to go on without, put the file at {target}{digest}"
    )


def _reason(error: Exception) -> tuple[str, bool]:
    """An error in a few words, and whether another attempt is pointless."""
    if isinstance(error, _WrongBytes):
        return str(error), True
    if isinstance(error, requests.HTTPError):
        state = error.response.status_code
        return f"HTTP {state} {error.response.reason}", state < 500 and state not in TRANSIENT
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "timed out", False
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut", False
    if isinstance(error, requests.ConnectionError):
        return "no connection", False
    return str(error) or type(error).__name__, True


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive into `folder`, which appears whole or not at all.

    Raises InputError where the archive is damaged, of another kind, or has a member or a link
    that would lie outside of `folder`.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as error:
        raise _unwritable(folder, error) from None
    with scratch:
        inside = Path(scratch.name) / "files"
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as file:
                    for member in file.infolist():
                        _refuse_unsafe(member)
                    file.extractall(inside)
            elif tarfile.is_tarfile(archive):
                with tarfile.open(archive) as file:
                    file.extractall(inside, filter="data")
                    _refuse_cut(file)
            else:
                raise InputError(f"{archive}: expected a tar or zip archive")
        except _DAMAGES as error:
            raise InputError(f"{archive}: cannot be unpacked: {error}") from None
        if not folder.exists():  # else another run was faster
            inside.rename(folder)


def _refuse_cut(file: tarfile.TarFile) -> None:
    # tarfile takes an archive that was cut between two members for a whole one.
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")


def _refuse_unsafe(member: zipfile.ZipInfo) -> None:
    # zipfile would quietly put such a member elsewhere; an archive that has one is not ours.
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
        raise zipfile.BadZipFile(f"{member.filename!r} would be outside the destination")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise zipfile.BadZipFile(f"{member.filename!r} is a link")
