"""The real download code against a server on this machine that misbehaves as servers do."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rerg.atomic import whole
from rerg.config import InputError
from rerg.downloads import DownloadError, cache_folder, download, sha256_of, unpack
from rerg.images import fetch, read_digests

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Every path is a way to answer; `hits` counts the requests."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.hits.append(self.path)
        getattr(self, self.path.strip("/").split("/")[0].replace("-", "_"))()

    def _send(self, content=CONTENT, length=None, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def good(self):
        self._send()

    def other(self):
        self._send(CONTENT[::-1])

    def truncated(self):
        self._send(CONTENT[:1000], length=len(CONTENT))

    def shortened(self):  # without a length, so that nothing but the digest can tell
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT[:1000])

    def missing(self):
        self.send_error(404)

    def busy(self):
        if self.server.hits.count(self.path) == 1:
            self.send_error(500)
        else:
            self._send()

    def cut(self):
        if self.server.hits.count(self.path) == 1:
            self.truncated()
        else:
            self._send()

    def broken(self):
        self.send_error(503)

    def moved(self):
        self.send_response(302)
        self.send_header("Location", "/good")
        self.end_headers()

    def slow(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for start in range(0, len(CONTENT), len(CONTENT) // 4):
            self.wfile.write(CONTENT[start : start + len(CONTENT) // 4])
            self.wfile.flush()
            time.sleep(0.05)

    def hanging(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:90000])
        self.wfile.flush()
        self.server.stop.append(True)
        time.sleep(2)

    def archive(self):
        self._send(self.server.archive)


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hits, server.stop, server.archive = [], [], b""
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RERG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RERG_DATA", raising=False)
    return tmp_path / "cache"


def get(site, *names, target, **settings):
    settings = {"backoff": 0.01, "timeout": (2, 0.4), **settings}
    return download([f"{site.url}/{name}" for name in names], target, **settings)


@pytest.mark.parametrize(
    ("name", "requests"), [("good", 1), ("busy", 2), ("cut", 2), ("moved", 2), ("slow", 1)]
)
def test_a_file_that_arrives_in_the_end(site, tmp_path, name, requests):
    path = get(site, name, target=tmp_path / "new" / "file.bin", sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert len(site.hits) == requests
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize(
    ("name", "requests", "reason"),
    [
        ("missing", 1, "HTTP 404"),
        ("broken", 4, "HTTP 503"),
        ("truncated", 4, "the connection was cut"),
        ("shortened", 1, f"expected sha256 {DIGEST}, found"),
        (
            "other",
            1,
            f"expected sha256 {DIGEST}, found {hashlib.sha256(CONTENT[::-1]).hexdigest()}",
        ),
        ("hanging", 4, "timed out"),
    ],
)
def test_a_file_that_does_not_arrive(site, tmp_path, name, requests, reason):
    target = tmp_path / "file.bin"
    with pytest.raises(DownloadError) as error:
        get(site, name, target=target, sha256=DIGEST)
    message = str(error.value)
    for part in ("file.bin", f"{site.url}/{name}", reason, str(target), DIGEST):
        assert part in message
    assert "\n" not in message
    assert len(site.hits) == requests
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


def test_offline_says_which_file_from_where_and_where_to_put_it(tmp_path):
    target = tmp_path / "file.bin"
    with pytest.raises(DownloadError) as error:
        download(["http://127.0.0.1:9/file.bin"], target, DIGEST, backoff=0.01)
    message = str(error.value)
    assert "http://127.0.0.1:9/file.bin: no connection" in message
    assert f"put the file at {target} (sha256 {DIGEST})" in message
    target.write_bytes(CONTENT)
    assert download(["http://127.0.0.1:9/file.bin"], target, DIGEST) == target


def test_mirrors_are_asked_in_order(site, tmp_path):
    get(site, "missing", "other", "good", "busy", target=tmp_path / "file.bin", sha256=DIGEST)
    assert site.hits == ["/missing", "/other", "/good"]


def test_a_good_file_is_kept_and_a_damaged_one_replaced(site, tmp_path):
    target = get(site, "good", target=tmp_path / "file.bin", sha256=DIGEST)
    get(site, "good", target=target, sha256=DIGEST)
    assert len(site.hits) == 1
    target.write_bytes(b"damaged")
    get(site, "good", target=target, sha256=DIGEST)
    assert target.read_bytes() == CONTENT


def test_truncation_is_seen_without_a_digest(site, tmp_path):
    with pytest.raises(DownloadError, match="the connection was cut"):
        get(site, "truncated", target=tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


def test_a_killed_download_leaves_nothing_that_looks_whole(site, tmp_path):
    target = tmp_path / "file.bin"
    code = (
        "from pathlib import Path; from rerg.downloads import download; "
        f"download(['{site.url}/hanging'], Path('{target}'), '{DIGEST}', timeout=(9, 9))"
    )
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    deadline = time.monotonic() + 30
    while not site.stop and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert site.stop
    assert [p for p in tmp_path.iterdir() if 0 < p.stat().st_size < len(CONTENT)]
    assert not target.exists()
    assert get(site, "good", target=target, sha256=DIGEST).read_bytes() == CONTENT


def entry_of(site, files, **changes):
    return {"source": "http", "urls": [f"{site.url}/{{file}}"], "sha256": files, **changes}


def test_fetch_brings_all_files_and_writes_their_digests(site, tmp_path, cache):
    names = [f"good/{i}.bin" for i in range(20)]
    lock = tmp_path / "run" / "set.lock"
    fetch("set", entry_of(site, dict.fromkeys(names, DIGEST)), lock)
    assert read_digests(lock) == dict.fromkeys(sorted(names), DIGEST)
    assert sorted(site.hits) == sorted(f"/{name}" for name in names)
    assert {sha256_of(cache / "set" / f"{i}.bin") for i in range(20)} == {DIGEST}
    fetch("set", entry_of(site, dict.fromkeys(names, DIGEST)), lock)
    assert len(site.hits) == 20


def test_fetch_names_the_file_that_fails_and_writes_no_lock(site, tmp_path):
    lock = tmp_path / "set.lock"
    files = {"good/a.bin": DIGEST, "missing/b.bin": DIGEST}
    with pytest.raises(InputError, match=r"b\.bin: could not be downloaded: .*HTTP 404"):
        fetch("set", entry_of(site, files), lock, backoff=0.01)
    assert not lock.exists()


def test_the_users_folder_comes_before_the_internet(site, tmp_path, cache):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    entry = entry_of(site, {"missing/a.bin": DIGEST, "good/b.bin": DIGEST}, folder=str(folder))
    fetch("set", entry, tmp_path / "set.lock")
    assert site.hits == ["/good/b.bin"]
    (folder / "a.bin").write_bytes(b"changed")
    with pytest.raises(InputError, match=rf"a\.bin: .* expects sha256 {DIGEST}, found"):
        fetch("set", entry, tmp_path / "set.lock")
    assert (folder / "a.bin").read_bytes() == b"changed"


def tar_of(members, kind="w:gz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=kind) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def zip_of(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if isinstance(content, str) else 0o100644) << 16
            file.writestr(info, content)
    return stream.getvalue()


def encrypted(archive):
    """The archive with the mark of an encrypted member."""
    start = archive.index(b"PK\x01\x02") + 8
    return archive[:start] + b"\x01" + archive[start + 1 :]


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_archive_digests_are_locked_on_first_sight(site, tmp_path, cache, pack):
    entry = {"source": "http", "archive": [f"{site.url}/archive"], "pattern": "set/*.png"}
    lock = tmp_path / "run" / "set.lock"
    site.archive = pack({"set/a.png": b"a", "set/b.png": b"b", "set/notes.txt": b"no image"})
    fetch("set", entry, lock)
    locked = {f"set/{c}.png": hashlib.sha256(c.encode()).hexdigest() for c in "ab"}
    assert read_digests(lock) == locked
    assert [p.name for p in cache.iterdir()] == ["set"]
    fetch("set", entry, lock)
    assert site.hits == ["/archive"]

    (cache / "set" / "set" / "b.png").write_bytes(b"changed")
    with pytest.raises(InputError, match=rf"b\.png: {lock} expects sha256 {locked['set/b.png']}"):
        fetch("set", entry, lock)
    (cache / "set" / "set" / "b.png").unlink()
    with pytest.raises(InputError, match=rf"set/b\.png: no such file, but {lock} lists it"):
        fetch("set", entry, lock)
    assert read_digests(lock) == locked


def test_a_folder_of_the_user_is_locked_on_first_sight(tmp_path, monkeypatch):
    entry = {"source": "folder", "folder": "$RERG_DATA/set", "pattern": "*.png"}
    lock = tmp_path / "set.lock"
    with pytest.raises(InputError, match=r"set: \$RERG_DATA/set: no such folder"):
        fetch("set", entry, lock)
    monkeypatch.setenv("RERG_DATA", str(tmp_path))
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=r"expected files like \*\.png, found none"):
        fetch("set", entry, lock)
    (tmp_path / "set" / "a.png").write_bytes(CONTENT)
    fetch("set", entry, lock)
    assert read_digests(lock) == {"a.png": DIGEST}
    (tmp_path / "set" / "b.png").write_bytes(CONTENT)
    with pytest.raises(InputError, match=r"b\.png: .* expects no such file"):
        fetch("set", entry, lock)


ARCHIVES = {  # named, as their bytes hold the time at which they were made, and ids may not vary
    "tar, above its root": tar_of({"../evil": b"x"}),
    "tar, link above its root": tar_of({"fine": b"x", "link": "../../evil"}),
    "tar, through a link": tar_of({"link": "/etc", "link/evil": b"x"}),
    "zip, above its root": zip_of({"../evil": b"x"}),
    "zip, above its root by a folder": zip_of({"a/../../evil": b"x"}),
    "zip, absolute": zip_of({"/evil": b"x"}),
    "zip, backslash": zip_of({"..\\evil": b"x"}),
    "zip, link": zip_of({"link": "/etc"}),
    "gz, cut": tar_of({"fine": b"x" * 100000})[:-40],
    "xz, cut": tar_of({"fine": b"x" * 100000}, "w:xz")[:-40],
    "bz2, cut": tar_of({"fine": b"x" * 100000}, "w:bz2")[:-40],
    "tar, cut": tar_of({"fine": b"x" * 100000}, "w")[:90000],
    "tar, cut between two members": tar_of({"fine": b"x", "more": b"y"}, "w")[:1024],
    "tar, cut in a header": tar_of({"fine": b"x", "more": b"y"}, "w")[:1300],
    "zip, cut": zip_of({"fine": b"x"})[:-30],
    "zip, wrong checksum": zip_of({"fine": b"x" * 100}).replace(b"x" * 100, b"y" * 100),
    "zip, encrypted": encrypted(zip_of({"fine": b"x"})),
    "text": b"no archive",
    "empty": b"",
}


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES)
def test_unsafe_and_damaged_archives_leave_nothing(site, tmp_path, cache, archive):
    site.archive = archive
    entry = {"source": "http", "archive": [f"{site.url}/archive"], "pattern": "*"}
    with pytest.raises(InputError, match=r"set\.archive: (cannot be unpacked|expected a tar)"):
        fetch("set", entry, tmp_path / "set.lock")
    assert not list(cache.iterdir())
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.rglob("fine"))
    assert not (tmp_path / "set.lock").exists()


def test_unpack_keeps_the_tree(tmp_path):
    files = {"x/y.png": b"y", "z.png": b"z"}
    archives = [tar_of(files, kind) for kind in ("w", "w:gz", "w:bz2", "w:xz")]
    for number, content in enumerate([*archives, zip_of({"./": b"", **files})]):
        (tmp_path / "a.archive").write_bytes(content)
        out = tmp_path / str(number)
        unpack(tmp_path / "a.archive", out)
        assert (out / "x/y.png").read_bytes() == b"y" and (out / "z.png").read_bytes() == b"z"
    assert sorted(p.name for p in tmp_path.iterdir()) == [*"01234", "a.archive"]


# A cache that cannot be written


@pytest.fixture(params=["a file is there", "no such place", "read-only", "denied", "full"])
def unwritable(request, tmp_path, monkeypatch):
    """A cache folder that the system refuses to make or to fill."""
    cache = tmp_path / "cache"
    match request.param:
        case "a file is there":
            cache.write_text("a file")
        case "no such place":
            cache = Path("/proc/rerg/cache")
            monkeypatch.setenv("RERG_CACHE", str(cache))
        case "read-only" | "denied":
            number = errno.EROFS if request.param == "read-only" else errno.EACCES
            refused = OSError(number, os.strerror(number))
            for name in ("os.makedirs", "os.mkdir"):
                monkeypatch.setattr(name, lambda *_, **__: (_ for _ in ()).throw(refused))
        case "full":
            full = OSError(errno.ENOSPC, "No space left on device")
            for name in ("tempfile.NamedTemporaryFile", "tempfile.mkdtemp"):
                monkeypatch.setattr(name, lambda *_, **__: (_ for _ in ()).throw(full))
    return cache


@pytest.mark.parametrize("what", ["file", "archive"])
def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(site, tmp_path, unwritable, what):
    entry = entry_of(site, {"good/a.bin": DIGEST})
    if what == "archive":
        site.archive = tar_of({"a.png": b"a"})
        entry = {"source": "http", "archive": [f"{site.url}/archive"], "pattern": "*"}
    with pytest.raises(DownloadError) as error:
        fetch("set", entry, tmp_path / "set.lock")
    message = str(error.value)
    assert message.startswith(str(unwritable)) and "cannot be written: " in message
    assert "RERG_CACHE" in message and "\n" not in message and "Pooch" not in message
    assert not (tmp_path / "set.lock").exists()


def test_unpacking_where_nothing_can_be_written_is_one_line(tmp_path, unwritable):
    archive = tmp_path / "a.archive"
    archive.write_bytes(tar_of({"a.png": b"a"}))
    with pytest.raises(DownloadError, match=r"cannot be written: .*RERG_CACHE"):
        unpack(archive, unwritable / "set")


def test_a_home_that_does_not_exist_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RERG_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(InputError, match="~nobody-of-this-name/cache: expected a path"):
        cache_folder()
    entry = {"source": "folder", "folder": "~nobody-of-this-name/images", "pattern": "*"}
    with pytest.raises(InputError, match="~nobody-of-this-name/images: expected a path"):
        fetch("set", entry, tmp_path / "set.lock")
    monkeypatch.delenv("RERG_CACHE")
    monkeypatch.setattr("pooch.os_cache", lambda name: Path("~") / ".cache" / name)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home
    with pytest.raises(InputError, match=r"~/\.cache/rerg: expected a path, ~ is no folder"):
        cache_folder()


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with whole(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
    for error in (KeyboardInterrupt, InputError):
        with pytest.raises(error), whole(target) as partial:
            partial.write_text("part")
            raise error
    assert target.read_text() == "whole" and list(target.parent.iterdir()) == [target]
    for impossible in (target / "b.txt", Path("/proc/rerg.txt")):
        with (
            pytest.raises(InputError, match=rf"{impossible}: cannot be written: "),
            whole(impossible) as partial,
        ):
            partial.write_text("part")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "a\n.png"):
        with pytest.raises(InputError, match="cannot be read: "):
            sha256_of(path)


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RERG_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("RERG_CACHE")
    assert cache_folder().is_absolute()
    assert cache_folder().name == "rerg"
