"""The table of scores: metrics, rows of what is missing, reading back."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from skimage import metrics
from synthetic import synthetic_scores

from rerg.config import InputError
from rerg.scores import (
    COLUMNS,
    bootstrap_interval,
    collect,
    images_of,
    psnr,
    read_scores,
    read_trace,
    score,
    ssim,
    write_scores,
)

GENERATOR = np.random.default_rng(0)
TRUTH = {name: GENERATOR.integers(0, 256, (40, 33, 3), dtype=np.uint8) for name in ("a", "b")}
CLEAN = {name: image.transpose(2, 0, 1)[:, :39] / 255 for name, image in TRUTH.items()}


def noisy(name, std, seed=0):
    noise = np.random.default_rng(seed).normal(0, std, CLEAN[name].shape)
    return (CLEAN[name] + noise).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    """Observations of two images, of a size that a factor of 3 divides, and one restoration."""
    np.savez(tmp_path / "y.npz", **{f"{name}.x0": noisy(name, 0.2) for name in TRUTH})
    stats = {
        "a": {"iterations": 7, "converged": True, "residual": 1e-5, "bound": 0.2, "loss": 1},
        "b": {"iterations": 9, "converged": None, "bound": None, "bound_violations": 0},
    }
    np.savez(
        tmp_path / "rerg.npz",
        a=noisy("a", 0.05),
        b=noisy("b", 0.05),
        stats=json.dumps(stats),
        **{"a.trace": np.array([[1, 0.1, 20.123456], [7, 1e-5, np.nan]])},
    )
    return tmp_path


def scored(folder, restorations, lpips=None, **overrides):
    arguments = {
        "run": "test",
        "dataset": "photos",
        "problem": "sr3",
        "truth": TRUTH,
        "observations": folder / "y.npz",
        "restorations": {name: folder / f"{name}.npz" for name in restorations},
        "lpips": lpips,
        "seed": 3,
        "commit": "abc",
    }
    return score(**arguments | overrides)


def cell(table, method, image, column):
    row = table[(table["method"] == method) & (table["image"] == image)]
    assert len(row) == 1
    return row[column].iloc[0]


def test_psnr_equals_scikit_image():
    x, truth = noisy("a", 0.1), CLEAN["a"]
    expected = metrics.peak_signal_noise_ratio(truth, x.astype(float), data_range=1)
    assert psnr(x, truth) == pytest.approx(expected, rel=1e-12)


def test_psnr_of_a_constant_offset_is_closed_form_and_neither_clips_nor_crops():
    truth = np.ones((3, 16, 16))
    assert psnr(truth + 0.1, truth) == pytest.approx(20)
    border = truth.copy()
    border[:, 0] += 1
    assert psnr(border, truth) == pytest.approx(10 * np.log10(16))


def test_ssim_is_that_of_wang_et_al_on_every_channel():
    x, truth = noisy("a", 0.1).astype(float), CLEAN["a"]
    channels = [
        metrics.structural_similarity(
            x[c],
            truth[c],
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        for c in range(3)
    ]
    assert ssim(x, truth) == pytest.approx(np.mean(channels), abs=1e-12)


def test_rows_hold_metrics_of_the_cropped_truth_and_the_stats(files):
    table = scored(files, ["rerg"])
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 3 * 2
    x = noisy("a", 0.05)
    assert cell(table, "rerg", "a", "psnr") == psnr(x, CLEAN["a"])
    rms = np.sqrt(np.mean((x - CLEAN["a"]) ** 2))
    assert cell(table, "rerg", "a", "error") == pytest.approx(rms, rel=1e-6)
    assert cell(table, "rerg", "a", "iterations") == 7
    assert bool(cell(table, "rerg", "a", "converged"))
    assert pd.isna(cell(table, "rerg", "b", "converged"))
    assert cell(table, "rerg", "b", "bound_violations") == 0
    assert pd.isna(cell(table, "rerg", "b", "bound"))
    assert json.loads(cell(table, "rerg", "a", "trace")) == [[1, 20.1235], [7, None]]
    assert np.isnan(read_trace(cell(table, "rerg", "a", "trace"))[1, 1])
    assert set(table["seed"]) == {3}
    assert set(table["lpips"].isna()) == {True}


def test_controls_are_the_floor_and_the_ceiling(files):
    table = scored(files, ["rerg"], lpips=lambda x, y: float(np.abs(x - y).mean()))
    for image in TRUTH:
        assert cell(table, "truth", image, "psnr") == np.inf
        assert cell(table, "truth", image, "ssim") == pytest.approx(1)
        assert cell(table, "truth", image, "lpips") == 0
        for metric, sign in (("psnr", 1), ("ssim", 1), ("lpips", -1)):
            initial, restored = (cell(table, m, image, metric) for m in ("initial", "rerg"))
            assert sign * initial < sign * restored


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (None, "no such array"),
        (np.full((3, 39, 33), np.nan, np.float32), "not finite"),
        (np.zeros((3, 40, 33), np.float32), "expected shape (3, 39, 33), found (3, 40, 33)"),
        (np.zeros((3, 39, 33), np.uint8), "found uint8"),
    ],
)
def test_a_broken_restoration_is_an_empty_row_and_a_line(files, caplog, broken, reason):
    arrays = {"a": noisy("a", 0.1)} | ({} if broken is None else {"b": broken})
    np.savez(files / "tv.npz", **arrays)
    with caplog.at_level(logging.WARNING):
        table = scored(files, ["tv"])
    assert np.isfinite(cell(table, "tv", "a", "psnr"))
    for column in ("psnr", "ssim", "lpips", "error"):
        assert pd.isna(cell(table, "tv", "b", column))
    assert reason in caplog.text
    assert "tv.npz: b" in caplog.text
    shown = images_of("b", TRUTH["b"], files / "y.npz", {"tv": files / "tv.npz"})
    assert list(shown) == ["initial", "truth"]


def test_a_failed_baseline_is_empty_rows_and_its_reason(files, caplog):
    np.savez(files / "bm3d.npz", failed="no license")
    table = scored(files, ["bm3d"])
    rows = table[table["method"] == "bm3d"]
    assert len(rows) == 2
    assert rows[["psnr", "ssim", "lpips", "error"]].isna().all(axis=None)
    assert "no license" in caplog.text


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("y", lambda path: np.savez(path, **{"a.x0": noisy("a", 0.2)}), "no array 'b.x0'"),
        ("y", lambda path: path.write_text("not an npz"), "expected an npz file"),
        ("y", lambda path: path.unlink(), "no such file"),
        (
            "y",
            lambda path: np.savez(path, **{f"{n}.x0": np.zeros((3, 99, 33)) for n in TRUTH}),
            "'a.x0' is 99x33, larger than the image, 40x33",
        ),
        ("rerg", lambda path: np.savez(path, a=noisy("a", 0.1), stats="{"), "'stats' is not JSON"),
    ],
)
def test_bad_files_are_one_line_that_names_the_file(files, name, write, message):
    write(files / f"{name}.npz")
    with pytest.raises(InputError) as error:
        scored(files, ["rerg"])
    assert f"{name}.npz" in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_scores_survive_the_file_with_their_types(files):
    table = scored(files, ["rerg"])
    write_scores(table, files / "scores.csv")
    again = read_scores(files / "scores.csv")
    pd.testing.assert_frame_equal(table, again, rtol=1e-6)
    write_scores(again, files / "again.csv")
    assert (files / "scores.csv").read_bytes() == (files / "again.csv").read_bytes()


def test_collected_scores_do_not_hang_on_the_order_of_the_parts(files):
    methods = {"rerg": {"label": "RERG", "variant": "rerg", "solver": "fast"}}
    paths = []
    for problem in ("sr2", "den15"):
        paths.append(files / f"{problem}.csv")
        write_scores(synthetic_scores(methods, [problem]), paths[-1])
    table = collect(paths)
    pd.testing.assert_frame_equal(table, collect(reversed(paths)))
    assert list(table["problem"].unique()) == ["den15", "sr2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="ssim"), "column 'ssim' is missing"),
        (lambda t: t.iloc[:0], "the table has no rows"),
        (lambda t: pd.concat([t, t.iloc[[1]]]), "two rows for photos, sr3, initial, b"),
        (lambda t: t.assign(image=None), "column 'image' has an empty cell"),
        (
            lambda t: t.assign(psnr=["1", "high", *["2"] * 4]),
            "column 'psnr', line 3: 'high' is not",
        ),
        (lambda t: t.assign(iterations="1.5"), "column 'iterations', line 2: '1.5' is not Int64"),
        (lambda t: t.assign(converged="yes"), "column 'converged', line 2: 'yes' is not boolean"),
    ],
)
def test_a_bad_table_is_one_line_that_names_the_column(files, change, message):
    change(scored(files, ["rerg"])).to_csv(files / "scores.csv", index=False)
    with pytest.raises(InputError) as error:
        read_scores(files / "scores.csv")
    assert str(error.value).startswith(f"{files / 'scores.csv'}: {message}")
    assert "\n" not in str(error.value)


def test_the_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(30, 2, 400)
    low, high = bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert (low, high) == bootstrap_interval(values, seed=0)
    assert (low, high) != bootstrap_interval(values, seed=1)


@pytest.mark.parametrize("values", [[30.0], [30.0, np.nan, 31.0], [np.inf, 30.0]])
def test_there_is_no_interval_without_finite_images(values):
    assert np.isnan(bootstrap_interval(values, seed=0)).all()
