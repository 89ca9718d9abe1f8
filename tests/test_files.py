"""Files of observations and restorations: any image's name, the same bytes, whole or refused."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from rerg.config import InputError
from rerg.files import (
    Observed,
    Restored,
    fault,
    read_observed,
    read_restored,
    restorations_of,
    write_observed,
    write_restored,
)

NAMES = [
    "stats",
    "failed",
    "file",
    "a.x0",
    "with blank",
    "problem",
    "kernel",
    "allow_pickle",
    "a/x",
    "a/b/y",
    "ähnlich",
    "a",
]


def observed(names=NAMES):
    rng = np.random.default_rng(0)
    images = {}
    for i, name in enumerate(names):
        y = rng.standard_normal((3, 4 + i, 5), dtype=np.float32)
        images[name] = {"y": y, "x0": y + 1, "mask": (y[0] > 0).astype(np.uint8)}
    return Observed({"name": "com80", "operator": "mask"}, rng.random((5, 5)), images)


def restored(names=NAMES):
    rng = np.random.default_rng(1)
    return Restored(
        images={name: rng.random((3, 4, 5 + i), dtype=np.float32) for i, name in enumerate(names)},
        stats={name: {"iterations": i, "bound": None} for i, name in enumerate(names)},
        traces={name: rng.random((i + 1, 3)) for i, name in enumerate(names)},
    )


def test_observations_survive_their_file_under_any_name(tmp_path):
    there = observed()
    write_observed(tmp_path / "o.npz", there)
    read = read_observed(tmp_path / "o.npz")
    assert read.problem == there.problem and list(read.images) == NAMES
    np.testing.assert_array_equal(read.kernel, there.kernel.astype(np.float32))
    for name, parts in there.images.items():
        assert list(read.images[name]) == ["y", "x0", "mask"]
        for part, array in parts.items():
            np.testing.assert_array_equal(read.images[name][part], array)
            assert read.images[name][part].dtype == array.dtype


def test_restorations_survive_their_file_under_any_name(tmp_path):
    there = restored()
    write_restored(tmp_path / "r.npz", there)
    read = read_restored(tmp_path / "r.npz")
    assert read.stats == there.stats and not read.failed
    assert list(read.images) == list(read.traces) == NAMES
    for name in NAMES:
        np.testing.assert_array_equal(read.images[name], there.images[name])
        np.testing.assert_array_equal(read.traces[name], there.traces[name])


def test_a_failure_survives_its_file_alone(tmp_path):
    write_restored(tmp_path / "r.npz", Restored(restored().images, failed="it crashed"))
    assert read_restored(tmp_path / "r.npz") == Restored(failed="it crashed")


def test_the_same_content_gives_the_same_bytes(tmp_path, monkeypatch):
    writers = {"o": (write_observed, observed), "r": (write_restored, restored)}
    for name, (write, content) in writers.items():
        for clock in (10**9, 1.7 * 10**9):
            monkeypatch.setattr(time, "time", lambda clock=clock: clock)
            write(tmp_path / f"{name}{clock:g}.npz", content())
        first, second = sorted(tmp_path.glob(f"{name}*.npz"))
        assert first.read_bytes() == second.read_bytes()


def test_a_program_without_this_package_reads_and_writes_them(tmp_path):
    """With the keys of docs/add-a-baseline.md, by numpy alone."""
    write_observed(tmp_path / "o.npz", observed(["a", "b"]))
    with np.load(tmp_path / "o.npz", allow_pickle=False) as file:
        assert {"problem", "kernel", "a/y", "a/x0", "a/mask", "b/y"} <= set(file.files)
        np.savez(tmp_path / "r.npz", **{"a/x": file["a/x0"]})
        np.savez_compressed(tmp_path / "s.npz", **{"a/x": file["a/x0"], "stats": np.array("{}")})
    for name in ("r.npz", "s.npz"):
        read = read_restored(tmp_path / name)
        assert list(read.images) == ["a"] and read.stats == read.traces == {}
        np.testing.assert_array_equal(read.images["a"], observed(["a", "b"]).images["a"]["x0"])


WRITER = """
import itertools, sys
import numpy as np
from rerg.files import Restored, write_restored
for i in itertools.count():
    write_restored(sys.argv[1], Restored({"a": np.full((3, 600, 600), i, np.float32)}))
"""


def test_a_kill_leaves_no_half_file(tmp_path):
    path, partial = tmp_path / "r.npz", tmp_path / "r.npz.partial"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT)
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)  # a look at it must not race with it
        if path.exists() and partial.exists() and 0 < partial.stat().st_size < 4 * 10**6:
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    image = read_restored(path).images["a"]
    assert image.shape == (3, 600, 600) and len(np.unique(image)) == 1
    assert partial.exists()  # it was killed in mid-write


def test_what_is_no_such_file_is_one_line(tmp_path):
    path = tmp_path / "o.npz"
    np.savez(path, **{"a/y": np.zeros(3), "problem": np.array("{}")})
    whole = path.read_bytes()
    cases = {
        "no array 'a/x0'": whole,
        "expected an npz file without pickles": whole[:50],
        "expected an npz file": b"",
    }
    for reason, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason) as error:
            read_observed(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match="found a single array"):
        read_observed(tmp_path / "one.npy")
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="without pickles"):
        read_restored(path)
    np.savez(path, **{"a/x": np.zeros(3), "stats": np.array("{")})
    with pytest.raises(InputError, match="'stats' is not JSON"):
        read_restored(path)
    with pytest.raises(InputError, match="no such file"):
        read_restored(tmp_path / "none.npz")
    np.savez(path, **{"a/y": np.zeros(3), "a/x0": np.zeros(3)})
    with pytest.raises(InputError, match="no array 'problem'"):
        read_observed(path)


def test_restorations_of_a_problem_are_found_among_folders_and_files(tmp_path):
    folders = [tmp_path / "rerg" / "0" / "b", tmp_path / "rerg" / "1" / "b", tmp_path / "tv/all/b"]
    for folder in folders:
        write_restored(folder / "den15.npz", restored(["a"]))
    write_restored(tmp_path / "tv" / "all" / "c" / "sr2.npz", restored(["a"]))
    own = [tmp_path / problem / "lee.npz" for problem in ("den15", "sr2")]
    found = restorations_of("den15", [*folders, tmp_path / "tv" / "all" / "c", *own])
    assert found == {
        ("rerg", 0): folders[0] / "den15.npz",
        ("rerg", 1): folders[1] / "den15.npz",
        ("tv", None): folders[2] / "den15.npz",
        ("lee", None): own[0],
    }


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.zeros((3, 4, 5), np.float32), ""),
        (np.zeros((3, 4, 5)), ""),
        (None, "no such array"),
        (np.zeros((3, 4, 5), np.uint8), "expected float in [0, 1] scale, got uint8"),
        (np.zeros((3, 5, 4)), "expected shape (3, 4, 5), got (3, 5, 4)"),
        (np.full((3, 4, 5), np.nan), "values that are not finite"),
        (np.full((3, 4, 5), np.inf), "values that are not finite"),
    ],
)
def test_a_fault_of_a_restoration_is_a_line(x, reason):
    assert fault(x, (3, 4, 5)) == reason
