"""The registry, prepared images and random crops."""

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from threading import get_ident
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import scipy.io
import skimage
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rerg import images
from rerg.config import InputError, check, read_yaml
from rerg.downloads import sha256_of
from rerg.images import (
    Crops,
    check_disjoint,
    check_kernels,
    fetch,
    open_images,
    prefetch,
    prepare,
    prepare_kernels,
    read_images,
    read_rgb,
)
from rerg.specs import ProblemSpec

ROOT = Path(__file__).parents[1]
REGISTRY = read_yaml(ROOT / "config" / "datasets.yaml")
EMBEDDED = [name for name, entry in REGISTRY.items() if entry["source"] == "embedded"]
READ_ONCE = cache(read_yaml)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def project(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)  # manifests are named relative to the project
    monkeypatch.setenv("RERG_CACHE", str(tmp_path / "cache"))


def prepared(name, entry, folder, smallest=8):
    lock, target = folder / f"{name}.lock", folder / f"{name}.h5"
    fetch(name, entry, lock)
    prepare(name, entry, lock, target, smallest)
    return target


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    return {name: prepared(name, REGISTRY[name], folder, 48) for name in EMBEDDED}


def folder_of(path, **pictures):
    """A folder dataset of RGB noise or of given arrays."""
    path.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(path / f"{name}.png")
    return {"source": "folder", "folder": str(path), "pattern": "*"}


def noise(height, width, *channels):
    return RNG.integers(0, 256, (height, width, *channels), dtype=np.uint8)


# The registry


def test_registry_follows_its_schema():
    check(REGISTRY, ROOT / "workflow/schemas/datasets.schema.yaml", "config/datasets.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use": ["tuning"]}, "set5.use.0: expected one of"),
        ({"source": "ftp"}, "set5.source: expected one of embedded, http, folder"),
        ({"size": 3}, "set5.size: unknown key"),
        ({"urls": None}, "set5.urls: missing"),
        ({"manifest": None}, "set5.manifest: missing"),
        ({"licence": None}, "set5.licence: missing"),
        ({"pattern": ""}, "set5.pattern: expected"),
        ({"pattern": "/data/*.png"}, "set5.pattern: expected"),
        ({"pattern": "."}, "set5.pattern: expected"),
        ({"pattern": "../other/*.png"}, "set5.pattern: expected"),
        ({"pattern": "all**.png"}, "set5.pattern: expected"),
        ({"pattern": None, "archive": ["https://a/b.zip"]}, "set5.pattern: missing"),
        ({"folder": ""}, "set5.folder: expected"),
        ({"folder": "data\nset5"}, "set5.folder: expected"),
        ({"urls": ["https://a/{name}"]}, "set5.urls.0: expected"),
        ({"sha256": {7: "0" * 64}}, "set5.sha256: expected a name"),
    ],
)
def test_a_fault_of_the_registry_is_one_line(change, message):
    entry = {k: v for k, v in {**REGISTRY["set5"], **change}.items() if v is not None}
    with pytest.raises(InputError, match=message) as error:
        check({"set5": entry}, ROOT / "workflow/schemas/datasets.schema.yaml", "datasets.yaml")
    assert "\n" not in str(error.value)


def test_manifests_hold_the_images_of_the_field():
    digests = {
        name: images.read_digests(Path(entry["manifest"]))
        for name, entry in REGISTRY.items()
        if "manifest" in entry and "tiles" not in entry
    }
    sizes = {name: len(files) for name, files in digests.items()}
    assert sizes == {
        "bsds500-train-test": 400,
        "bsds500-validation": 32,
        "cbsd68": 68,
        "set5": 5,
    }
    for a, b in combinations(digests.values(), 2):
        assert not set(a.values()) & set(b.values())
    assert {name.split("/")[0] for name in digests["bsds500-train-test"]} == {"train", "test"}
    assert {name.split("/")[0] for name in digests["bsds500-validation"]} == {"val"}


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("*./[]?!~a\0\n\u2028-{}") | st.characters(), max_size=6))
def test_every_pattern_finds_images_or_is_one_line(pattern):
    entry = {**REGISTRY["waterloo"], "pattern": pattern, "folder": str(ROOT / "config")}
    try:
        with patch("rerg.config.read_yaml", READ_ONCE):
            check({"a": entry}, ROOT / "workflow/schemas/datasets.schema.yaml", "datasets.yaml")
        assert images._list("a", entry)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "pattern", ["*", "**/*", "./*.bmp", "x", "a/..b/*.png", "Größe/*.png", "[ab]?.png"]
)
def test_patterns_of_files_below_the_folder_are_accepted(pattern):
    entry = {**REGISTRY["waterloo"], "pattern": pattern}
    check({"a": entry}, ROOT / "workflow/schemas/datasets.schema.yaml", "datasets.yaml")


def test_a_bad_line_of_a_manifest_is_named(tmp_path):
    (tmp_path / "m.sha256").write_text("0" * 64 + "  a.png\nno digest\n")
    with pytest.raises(InputError, match=r"m\.sha256: line 2: expected '<sha256>  <file name>'"):
        images.read_digests(tmp_path / "m.sha256")
    for content in (b"\xff\xfe", "é".encode("latin-1") * 80):
        (tmp_path / "m.sha256").write_bytes(content)
        with pytest.raises(InputError, match=r"m\.sha256: cannot be read: 'utf-8'"):
            images.read_digests(tmp_path / "m.sha256")
    with pytest.raises(InputError, match=r"cannot be read: .*directory"):
        images.read_digests(tmp_path)


def test_digests_are_read_whatever_the_locale(tmp_path):
    lines = "".join(f"{'0' * 64}  {name}.png\r\n" for name in ("ä b", "日本\u2028語", "\x85"))
    (tmp_path / "m.sha256").write_bytes(lines.encode())
    code = (
        "import sys; from pathlib import Path; from rerg.images import read_digests; "
        "print(ascii(list(read_digests(Path(sys.argv[1])))))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.sha256")],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == ascii(["ä b.png", "日本\u2028語.png", "\x85.png"]), found.stderr


# Embedded photographs


def test_embedded_images_are_the_photographs_of_scikit_image(embedded):
    data = Path(skimage.__file__).parent / "data"
    with h5py.File(embedded["embedded-train"]) as file:
        assert list(file) == ["astronaut", "motorcycle_left", "motorcycle_right"]
        np.testing.assert_array_equal(file["astronaut"], Image.open(data / "astronaut.png"))
    chelsea = np.array(Image.open(data / "chelsea.png"))
    with h5py.File(embedded["embedded-test"]) as file:
        assert len(file) == 8
        corners = REGISTRY["embedded-test"]["tiles"]["corners"]["chelsea.png"]
        for number, (row, column) in enumerate(corners, 1):
            tile = chelsea[row : row + 96, column : column + 96]
            np.testing.assert_array_equal(file[f"chelsea-{number}"], tile)
    with h5py.File(embedded["embedded-validation"]) as file:
        assert list(file) == ["rocket-1", "rocket-2", "rocket-3"]


def test_prepared_datasets_are_contiguous_bytes_of_the_contract(embedded):
    for path in embedded.values():
        with h5py.File(path) as file:
            for stored in file.values():
                assert stored.dtype == np.uint8
                assert stored.ndim == 3 and stored.shape[2] == 3
                assert stored.chunks is None and stored.compression is None


@pytest.mark.parametrize("name", [name for name in EMBEDDED if "tiles" in REGISTRY[name]])
def test_tiles_do_not_overlap(name):
    tiles = REGISTRY[name]["tiles"]
    for corners in tiles["corners"].values():
        for (row, column), (other_row, other_column) in combinations(corners, 2):
            apart = max(abs(row - other_row), abs(column - other_column))
            assert apart >= tiles["size"]


def test_embedded_splits_are_disjoint(embedded):
    splits = {name.removeprefix("embedded-"): [path] for name, path in embedded.items()}
    found = check_disjoint(splits)
    assert set(found) == {"train", "validation", "test"}
    assert found["train"] == {
        "embedded-train": ["astronaut", "motorcycle_left", "motorcycle_right"]
    }


def test_other_bytes_in_the_wheel_are_an_error(tmp_path, monkeypatch):
    entry = {"source": "embedded", "sha256": {"astronaut.png": "0" * 64}}
    with pytest.raises(InputError, match=r"astronaut\.png: config/datasets\.yaml expects sha256 0"):
        fetch("set", entry, tmp_path / "set.lock")
    entry = {"source": "embedded", "sha256": {"dog.png": "0" * 64}}
    with pytest.raises(InputError, match=r"set: .*dog\.png: no such file"):
        fetch("set", entry, tmp_path / "set.lock")


# Preparing


def test_prepared_bytes_are_the_same_at_every_time(tmp_path, embedded):
    time.sleep(1.1)  # HDF5 counts times in seconds
    again = prepared("embedded-train", REGISTRY["embedded-train"], tmp_path)
    assert sha256_of(again) == sha256_of(embedded["embedded-train"])


def test_many_images_are_all_stored(tmp_path):
    pictures = {f"i{n:03}": noise(9, 8 + n % 3, 3) for n in range(150)}
    path = prepared("many", folder_of(tmp_path / "in", **pictures), tmp_path)
    with h5py.File(path) as file:
        assert list(file) == sorted(pictures)
        for name, picture in pictures.items():
            np.testing.assert_array_equal(file[name], picture)


def png_of(path, width, height, bits, rows):
    """An RGB PNG with that header, whatever its rows."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("grey", "expected an RGB image of 8 bits, found mode L"),
        ("rgba", "expected an RGB image of 8 bits, found mode RGBA"),
        ("palette", "expected an RGB image of 8 bits, found mode P"),
        ("grey16", "expected an RGB image of 8 bits, found 16 bits"),
        ("rgb16", "expected an RGB image of 8 bits, found 16 bits"),
        ("small", "zbad: expected at least 32 x 32 pixels, for a .*crop.*; found 40 x 31"),
        ("frames-png", "expected one picture, found 3"),
        ("frames-tiff", "expected one picture, found 3"),
        ("frames-webp", "expected one picture, found 3"),
        ("frames-mpo", "expected one picture, found 3"),
        ("huge", "expected at most 1073741824 pixels, found 30000 x 60000"),
        ("link", "a broken link to nowhere.png"),
        ("loop", "a broken link to zbad.png"),
        ("truncated-png", "damaged image"),
        ("truncated-jpeg", "damaged image"),
        ("text", "expected an image"),
    ],
)
def test_an_unfit_image_is_named(tmp_path, kind, message):
    entry = folder_of(tmp_path / "in", fine=noise(40, 40, 3))
    bad = tmp_path / "in" / "zbad.png"
    rgb = Image.fromarray(noise(40, 40, 3))
    match kind:
        case "grey" | "rgba" | "palette":
            rgb.convert({"grey": "L", "rgba": "RGBA", "palette": "P"}[kind]).save(bad)
        case "grey16":
            Image.fromarray(RNG.integers(0, 65536, (40, 40), dtype=np.uint16)).save(bad)
        case "rgb16":
            png_of(bad, 40, 40, 16, b"".join(b"\0" + os.urandom(40 * 6) for _ in range(40)))
        case "small":
            Image.fromarray(noise(40, 31, 3)).save(bad)
        case "truncated-png" | "truncated-jpeg":
            rgb.save(bad, format=kind.split("-")[1])
            bad.write_bytes(bad.read_bytes()[:-600])
        case "frames-png" | "frames-tiff" | "frames-webp" | "frames-mpo":
            more = [Image.fromarray(noise(40, 40, 3)) for _ in range(2)]
            rgb.save(bad, format=kind.split("-")[1], save_all=True, append_images=more)
        case "huge":
            png_of(bad, 60000, 30000, 8, b"")
        case "link":
            bad.symlink_to("nowhere.png")
        case "loop":
            bad.symlink_to("zbad.png")
        case "text":
            bad.write_text("no image")
    with pytest.raises(InputError, match=message) as error:
        prepared("set", entry, tmp_path, 32)
    assert str(error.value).removeprefix("set: ").startswith(f"{bad}: ")
    assert not (tmp_path / "set.h5").exists()
    assert "\n" not in str(error.value)


def test_an_image_of_any_width_is_read(tmp_path):
    # 16 in a row's stride is not a depth of 16 bits
    for width in (16, 116, 216, 538):
        path = tmp_path / f"{width}.bmp"
        picture = noise(16, width, 3)
        Image.fromarray(picture).save(path)
        np.testing.assert_array_equal(read_rgb(path), picture)


def test_an_image_is_not_too_large_for_pillow(tmp_path):
    """182 megapixels are damaged here, as their rows are missing, and no attack."""
    for width, height in ((14000, 13000), (100, 10**6)):
        png_of(tmp_path / "a.png", width, height, 8, b"")
        with pytest.raises(InputError, match=r"a\.png: damaged image: (?!.*attack)"):
            read_rgb(tmp_path / "a.png")


def test_a_decoder_that_fails_in_its_own_way_is_one_line(tmp_path, monkeypatch):
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "a.png")
    for error, message in (
        (struct.error("too\nshort"), "damaged image: too short"),
        (IndexError("tag"), "damaged image: tag"),
        (MemoryError(), "does not fit into memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                "PIL.ImageFile.ImageFile.load", lambda *_, error=error: (_ for _ in ()).throw(error)
            )
            with pytest.raises(InputError, match=rf"a\.png: {message}"):
                read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
def test_an_image_is_upright(tmp_path, kind):
    """All eight orientations of EXIF give the same picture."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16], upright[16:, 32:] = (250, 0, 0), (0, 0, 250)
    stored = {  # how a camera stores the upright picture under each orientation
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}.{kind}"
        settings = {"webp": {"lossless": True}, "jpeg": {"subsampling": 0}}.get(kind, {})
        Image.fromarray(pixels).save(path, exif=exif, **settings)
        read = read_rgb(path)
        assert read.shape == upright.shape
        assert np.abs(read.astype(int) - upright).max() <= (20 if kind == "jpeg" else 0)


def test_what_systems_hide_among_the_images_is_passed_over(tmp_path):
    folder = tmp_path / "in"
    entry = folder_of(folder / "sub", a=noise(9, 9, 3), b=noise(9, 9, 3)) | {
        "folder": str(folder),
        "pattern": "**/*",
    }
    for name in (
        *("._a.png", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", ".nfs0001"),
        *("__MACOSX/._b.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/a.png"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    with h5py.File(prepared("set", entry, tmp_path)) as file:
        assert list(file) == ["a", "b"]


@pytest.mark.parametrize("name", ["line\nbreak.png", "tab\t.png", b"latin-\xe9.png"])
def test_a_file_name_that_no_lock_can_hold_is_named(tmp_path, name):
    entry = folder_of(tmp_path / "in", a=noise(9, 9, 3))
    (tmp_path / "in" / os.fsdecode(name)).write_bytes(b"x")
    with pytest.raises(InputError, match=r"set: .*\\.*: expected a file name") as error:
        fetch("set", entry, tmp_path / "set.lock")
    assert str(error.value).isprintable()


def test_ids_may_be_any_name_of_a_file(tmp_path):
    names = ["stats", "failed", "file", "a.x0", "a.y", "a", "kernel", "problem", "50", "1e3", "NA"]
    names += [
        "two  blanks ",
        "ü日本語",
        "e\u0301",
        "#refs#",
        "~",
        "a:b*?",
        "..a",
        "'\"\\",
        "\u2028",
    ]
    pictures = {name: noise(9, 10, 3) for name in sorted(names)}
    entry = folder_of(tmp_path / "in", **{k: v for k, v in pictures.items() if k != "..a"})
    pictures.pop("..a")  # hidden
    path = prepared("set", entry, tmp_path)
    read = read_images(path)
    assert list(read) == sorted(pictures)
    for name, picture in pictures.items():
        stored = (read[name] * 255).round().to(torch.uint8).permute(1, 2, 0)
        np.testing.assert_array_equal(stored, picture)
    assert Crops(path, 9, 4)(np.random.default_rng(0)).shape == (4, 3, 9, 9)
    assert check_disjoint({"test": [path]}) == {"test": {"set": sorted(pictures)}}
    with pytest.raises(InputError, match=rf"{path}: .*: expected at least 10 x 10"):
        Crops(path, 10, 1)


def test_a_missing_or_changed_image_is_named(tmp_path):
    entry = folder_of(tmp_path / "in", a=noise(9, 9, 3), b=noise(9, 9, 3))
    lock = tmp_path / "set.lock"
    fetch("set", entry, lock)
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "in" / "a.png")
    with pytest.raises(InputError, match=rf"a\.png: {lock} expects sha256"):
        prepare("set", entry, lock, tmp_path / "set.h5", 8)
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(InputError, match=r"set: .*a\.png: no such file"):
        prepare("set", entry, lock, tmp_path / "set.h5", 8)


def test_images_of_one_name_collide(tmp_path):
    entry = folder_of(tmp_path / "in" / "x", a=noise(9, 9, 3))
    shutil.copytree(tmp_path / "in" / "x", tmp_path / "in" / "y")
    entry |= {"folder": str(tmp_path / "in"), "pattern": "*/*.png"}
    with pytest.raises(InputError, match=r"y/a\.png: set has another image named a"):
        prepared("set", entry, tmp_path)


def test_a_tile_that_leaves_its_image_is_named(tmp_path):
    entry = folder_of(tmp_path / "in", a=noise(20, 20, 3))
    entry |= {"tiles": {"size": 16, "corners": {"a.png": [[0, 0], [4, 5]]}}}
    with pytest.raises(InputError, match=r"tiles: a\.png \[4, 5\]: a tile of 16 pixels leaves"):
        prepared("set", entry, tmp_path)


def test_tiles_of_a_file_that_is_not_there_are_named(tmp_path):
    entry = folder_of(tmp_path / "in", a=noise(20, 20, 3))
    entry |= {"tiles": {"size": 16, "corners": {"b.png": [[0, 0]]}}}
    with pytest.raises(InputError, match=r"set\.tiles: b\.png: no such file in .*set\.lock"):
        prepared("set", entry, tmp_path)


def test_a_dataset_without_an_image_is_an_error(tmp_path):
    entry = folder_of(tmp_path / "in", a=noise(20, 20, 3))
    (tmp_path / "set.lock").write_text("")
    with pytest.raises(InputError, match="set: no image; expected at least one"):
        prepare("set", entry, tmp_path / "set.lock", tmp_path / "set.h5", 8)


@pytest.mark.parametrize("way", ["same pixels", "same file"])
def test_overlapping_splits_are_an_error(tmp_path, way):
    shared = noise(32, 32, 3)
    train = folder_of(tmp_path / "train", a=shared, b=noise(32, 32, 3))
    test = folder_of(tmp_path / "test", c=noise(32, 32, 3))
    if way == "same pixels":
        Image.fromarray(shared).save(tmp_path / "test" / "d.bmp")
    else:
        shutil.copy(tmp_path / "train" / "a.png", tmp_path / "test" / "d.png")
        test |= {"tiles": {"size": 16, "corners": {"d.png": [[0, 0]]}}}
    paths = {
        "train": [prepared("one", train, tmp_path)],
        "test": [prepared("two", test, tmp_path)],
    }
    with pytest.raises(InputError, match=r"two/d\S* is the same image as one/a of datasets\.train"):
        check_disjoint(paths)
    assert check_disjoint({"train": paths["train"] * 2})  # one split may repeat itself


# Sites


LOCKLESS = """
#include <errno.h>
#include <stdlib.h>
int flock(int file, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""


def in_another_process(code, folder, **environment):
    return subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\nfrom rerg.images import *\n{code}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for a flock that fails")
def test_a_file_system_without_locks(tmp_path):
    (tmp_path / "flock.c").write_text(LOCKLESS)
    library = tmp_path / "flock.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "flock.c")], check=True
    )
    folder_of(tmp_path / "in", a=noise(9, 9, 3))
    code = """
import os
entry, lock = {'source': 'folder', 'folder': 'in', 'pattern': '*'}, Path('set.lock')
fetch('set', entry, lock)
for number in (37, 38, 95, 524):  # ENOLCK, ENOSYS, EOPNOTSUPP, ENOTSUPP
    os.environ['FLOCK_ERRNO'] = str(number)
    try:
        h5py.File('other.h5', 'w', locking=True)
        print('locks')
    except OSError as error:
        assert error.errno == number
    prepare('set', entry, lock, Path('set.h5'), 8)
    assert check_disjoint({'train': ['set.h5']}) == {'train': {'set': list(open_images('set.h5'))}}
"""
    done = in_another_process(code, tmp_path, LD_PRELOAD=str(library))
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


def test_a_lock_of_another_process_does_not_keep_readers_out(tmp_path):
    path = prepared("set", folder_of(tmp_path / "in", a=noise(9, 9, 3)), tmp_path)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert list(read_images(path)) == ["a"]
        assert Crops(path, 9, 1)(np.random.default_rng(0)).shape == (1, 3, 9, 9)


@pytest.mark.parametrize("content", [None, b"", b"text", "cut", "folder"])
def test_a_prepared_file_that_is_none_is_named(tmp_path, content):
    path = prepared("set", folder_of(tmp_path / "in", a=noise(99, 99, 3)), tmp_path)
    if content in (None, "folder"):
        path.unlink()
        if content == "folder":
            path.mkdir()
    else:
        path.write_bytes(path.read_bytes()[:3000] if content == "cut" else content)
    for read in (open_images, read_images, lambda p: Crops(p, 8, 1)):
        with pytest.raises(InputError, match=rf"{path}: cannot be opened as HDF5: ") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [30, 100, 300])  # within HDF5's buffers, and beyond
def test_a_full_disk_leaves_no_file(tmp_path, size):
    """In a process of its own, which HDF5 would break where it cannot close a file."""
    folder_of(tmp_path / "in", **{str(i): noise(size, size, 3) for i in range(4)})
    code = """
import os, resource
entry, lock, target = {'source': 'folder', 'folder': 'in', 'pattern': '*'}, Path('l'), Path('h5')
fetch('set', entry, lock)
prepare('set', entry, lock, target, 8)
whole, size = target.read_bytes(), target.stat().st_size
for limit in (0, 1, 100, 3000, size // 3, size // 2, size - 3000, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        prepare('set', entry, lock, target, 8)
    except InputError as error:
        assert str(error) == 'h5: cannot be written: [Errno 27] File too large', error
    else:
        raise AssertionError(limit)
    assert target.read_bytes() == whole and sorted(os.listdir()) == ['h5', 'in', 'l']
"""
    done = in_another_process(code, tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("what", ["lock", "prepare", "kernels"])
def test_a_failure_keeps_the_file_that_was_there(tmp_path, monkeypatch, what):
    cell = np.empty((1, 1), object)
    cell[0, 0] = np.ones((3, 3))
    (tmp_path / "k").mkdir()
    scipy.io.savemat(tmp_path / "k" / "k.mat", {"kernels": cell})
    entry = folder_of(tmp_path / "in", a=noise(9, 9, 3))
    lock, target = tmp_path / "set.lock", tmp_path / "set.out"
    if what == "kernels":
        entry |= {"folder": str(tmp_path / "k")}
    make = {
        "lock": lambda: fetch("set", entry, target),
        "prepare": lambda: prepare("set", entry, lock, target, 8),
        "kernels": lambda: prepare_kernels("set", entry, lock, target),
    }[what]
    fetch("set", entry, lock)
    make()
    before = target.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(122, "quota")))
    with pytest.raises(InputError, match=rf"{target}: cannot be written: .*quota"):
        make()
    assert target.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


# Kernels


def test_kernels_keep_their_orientation(tmp_path):
    kernels = [RNG.random((3, 5)), RNG.random((5, 5))]
    cell = np.empty((1, 2), object)
    cell[0, :] = kernels
    scipy.io.savemat(tmp_path / "old.mat", {"kernels": cell})
    with h5py.File(tmp_path / "new.mat", "w") as file:  # the layout of MATLAB 7.3
        references = file.create_dataset("kernels", (2, 1), dtype=h5py.ref_dtype)
        for i, kernel in enumerate(kernels):
            references[i, 0] = file.create_dataset(f"#refs#/{i}", data=kernel.T).ref
    for name in ("old", "new"):
        entry = {"source": "folder", "folder": str(tmp_path), "pattern": f"{name}.mat"}
        fetch(name, entry, tmp_path / "k.lock")
        prepare_kernels(name, entry, tmp_path / "k.lock", tmp_path / "k.npz")
        with np.load(tmp_path / "k.npz", allow_pickle=False) as stored:
            assert list(stored) == ["0", "1"]
            for i, kernel in enumerate(kernels):
                np.testing.assert_array_equal(stored[str(i)], kernel)
        (tmp_path / "k.lock").unlink()


def cells(*kernels):
    cell = np.empty((1, len(kernels)), object)
    cell[0, :] = kernels
    return {"kernels": cell}


@pytest.mark.parametrize(
    ("index", "factor", "crop", "message"),
    [
        (2, 1, 99, "config/problems.yaml: p.kernel.index: set has 2 kernels, expected an index"),
        (1, 1, 24, "training.crop: expected at least 25 pixels, as p has a kernel of 25 x 25, got"),
        (0, 4, 11, "training.crop: expected at least 12 pixels, as p has a kernel of 9 x 9, got"),
        (1, 1, 99, "images/b: expected at least 25 pixels, as p has a kernel of 25 x 25, got 20"),
    ],
)
def test_kernels_of_files_are_held_against_crops_and_images(tmp_path, index, factor, crop, message):
    kernels = {"set": str(tmp_path / "set.npz")}
    np.savez(kernels["set"], **{"0": np.ones((9, 9)), "1": np.ones((25, 3))})
    pictures = folder_of(tmp_path / "in", a=noise(40, 40, 3), b=noise(31, 20, 3))
    paths = [prepared("images", pictures, tmp_path)]
    spec = ProblemSpec("p", "downsampling", 0.0, 3.0, factor, {"file": "set", "index": index})
    with pytest.raises(InputError, match=f"^{message}"):
        check_kernels(kernels, [spec], crop, [spec], paths)
    fitting = replace(spec, factor=12, kernel={"file": "set", "index": 0})
    check_kernels(kernels, [fitting], 12, [fitting], paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": np.ones(3)}, r"k\.mat: expected a MATLAB file with `kernels`"),
        ({"kernels": np.ones((5, 5, 3))}, r"k\.mat: kernel 0: expected a matrix"),
        (cells(np.ones((3, 3)), np.zeros((5, 5))), r"k\.mat: kernel 1: .* positive sum"),
        (cells(np.full((3, 3), np.nan), np.ones((3, 3))), r"k\.mat: kernel 0: .* finite values"),
        (cells("text", np.ones((3, 3))), r"k\.mat: expected a MATLAB file with `kernels`"),
        (b"no MATLAB file" * 20, r"k\.mat: expected a MATLAB file with `kernels`"),
        (b"", r"k\.mat: expected a MATLAB file with `kernels`"),
    ],
)
def test_a_file_without_kernels_is_named(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "k.mat").write_bytes(content)
    else:
        scipy.io.savemat(tmp_path / "k.mat", content)
    entry = {"source": "folder", "folder": str(tmp_path), "pattern": "*.mat"}
    fetch("k", entry, tmp_path / "k.lock")
    with pytest.raises(InputError, match=message) as error:
        prepare_kernels("k", entry, tmp_path / "k.lock", tmp_path / "k.npz")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "k.npz").exists()


@pytest.mark.parametrize("count", [2, 5])
def test_one_file_of_kernels_is_expected(tmp_path, count):
    for number in range(count):
        scipy.io.savemat(tmp_path / f"{number}.mat", cells(np.ones((3, 3))))
    entry = {"source": "folder", "folder": str(tmp_path), "pattern": "*.mat"}
    fetch("k", entry, tmp_path / "k.lock")
    with pytest.raises(InputError, match=f"k: expected one file of kernels, found {count}"):
        prepare_kernels("k", entry, tmp_path / "k.lock", tmp_path / "k.npz")


# The rules


def test_locked_digests_outlive_fetching_again_and_its_failure(tmp_path):
    for name in ("Snakefile", "rerg", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    entry = folder_of(tmp_path / "in", a=noise(40, 40, 3))
    entry |= {"use": ["train", "validation", "test"], "licence": "none", "citation": "none"}
    with (tmp_path / "config/datasets.yaml").open("a", encoding="utf-8") as file:
        file.write(yaml.safe_dump({"mine": entry}))
    config = {
        "run": "test",
        "datasets": {split: ["mine"] for split in ("train", "validation", "test")},
        "problems": ["den25"],
        "methods": ["red"],
        "comparisons": [],
        "examples": [],
    }
    config["training"] = {"crop": 32}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def run():
        command = "-m snakemake --cores 1 --quiet all --configfile mine.yaml --forcerun fetch --"
        return subprocess.run(
            [sys.executable, *command.split(), "results/test/images/mine.h5"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    done = run()
    assert done.returncode == 0, done.stderr
    lock = tmp_path / "results/test/images/mine.lock"
    digests = lock.read_text()
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "in" / "a.png")
    for _ in range(2):
        failed = run()
        assert failed.returncode != 0
        assert "a.png: results/test/images/mine.lock expects sha256" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert lock.read_text() == digests


# Crops


def test_a_batch_depends_on_the_generator_alone(embedded):
    crops = Crops(embedded["embedded-train"], 48, 8)
    batch = crops(np.random.default_rng([0, 7]))
    assert batch.shape == (8, 3, 48, 48) and batch.dtype == torch.float32
    assert batch.is_contiguous()
    assert batch.min() >= 0 and batch.max() <= 1 and batch.max() > 0.5
    crops(np.random.default_rng([0, 8]))
    assert torch.equal(batch, crops(np.random.default_rng([0, 7])))
    assert torch.equal(
        batch, Crops([embedded["embedded-train"]], 48, 8)(np.random.default_rng([0, 7]))
    )
    assert not torch.equal(batch, crops(np.random.default_rng([1, 7])))


def test_crops_cover_all_positions_and_orientations(tmp_path):
    pictures = {"a": noise(5, 6, 3), "b": noise(4, 4, 3)}
    path = prepared("set", folder_of(tmp_path / "in", **pictures), tmp_path, 4)
    expected = {
        oriented.tobytes(): name
        for name, picture in pictures.items()
        for row in range(picture.shape[0] - 3)
        for column in range(picture.shape[1] - 3)
        for crop in [picture[row : row + 4, column : column + 4]]
        for turns in range(4)
        for oriented in (np.rot90(crop, turns), np.rot90(crop[:, ::-1], turns))
    }
    assert len(expected) == (2 * 3 + 1) * 8
    batch = Crops(path, 4, 2000)(np.random.default_rng(0))
    bytes_of = (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    drawn = [picture.tobytes() for picture in bytes_of]
    assert set(drawn) == set(expected)
    share = np.mean([expected[crop] == "a" for crop in drawn])
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(drawn))  # images are drawn evenly


def test_a_crop_that_does_not_fit_is_an_error(embedded):
    with pytest.raises(
        InputError, match=r"embedded-test\.h5: chelsea-1: expected at least 97 x 97"
    ):
        Crops(embedded["embedded-test"], 97, 1)


def test_prefetch_keeps_the_order_and_works_in_one_other_thread():
    threads = set()

    def load(key):
        threads.add(get_ident())
        return key**2

    assert list(prefetch(load, range(50))) == [key**2 for key in range(50)]
    assert len(threads) == 1 and threads != {get_ident()}


def test_prefetch_is_bounded_and_raises_where_the_item_is_asked_for():
    loaded = []

    def load(key):
        loaded.append(key)
        if key == 3:
            raise InputError("image 3")
        return key

    items = prefetch(load, range(100))
    assert next(items) == 0
    time.sleep(0.1)
    assert loaded == [0, 1, 2]
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(InputError, match="image 3"):
        next(items)
    assert len(loaded) <= 6


# The sets of the field, where the user has them


@pytest.mark.skipif(
    "RERG_DATA" not in os.environ, reason="RERG_DATA is not set: no folder with BSDS500 and set5"
)
def test_the_splits_of_the_field_are_disjoint_by_pixel_content(tmp_path):
    names = {
        "train": "bsds500-train-test",
        "validation": "bsds500-validation",
        "test": "cbsd68 set5",
    }
    paths = {
        split: [prepared(name, REGISTRY[name], tmp_path, 48) for name in sets.split()]
        for split, sets in names.items()
    }
    found = check_disjoint(paths)
    sizes = {split: sum(map(len, sets.values())) for split, sets in found.items()}
    assert sizes == {"train": 400, "validation": 32, "test": 73}
