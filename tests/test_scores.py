"""The table of scores: metrics, rows of what is missing, reading back."""

import hashlib
import json
import logging

import numpy as np
import pandas as pd
import pytest
from skimage import metrics
from synthetic import expected_of, synthetic_scores

from rerg.config import InputError
from rerg.files import Observed, Restored, write_observed, write_restored
from rerg.metrics import psnr
from rerg.scores import (
    COLUMNS,
    LATER,
    collect,
    compare,
    complete,
    images_of,
    load_scores,
    of_dataset,
    read_scores,
    read_trace,
    score,
    ssim,
    write_scores,
)
from rerg.statistics import POOLED

GENERATOR = np.random.default_rng(0)
TRUTH = {name: GENERATOR.integers(0, 256, (40, 33, 3), dtype=np.uint8) for name in ("a", "b")}
CLEAN = {name: image.transpose(2, 0, 1)[:, :39] / 255 for name, image in TRUTH.items()}


def noisy(name, std, seed=0):
    noise = np.random.default_rng(seed).normal(0, std, CLEAN[name].shape)
    return (CLEAN[name] + noise).astype(np.float32)


def observed(**initial):
    images = {name: {"y": x, "x0": x} for name, x in initial.items()}
    return Observed({"name": "sr3"}, None, images)


STATS = {
    "a": {"iterations": 7, "converged": True, "residual": 1e-5, "bound": 0.2, "loss": 1},
    "b": {"iterations": 9, "converged": None, "bound": None, "bound_violations": 0},
}


@pytest.fixture
def files(tmp_path):
    """Observations of two images, of a size that a factor of 3 divides, and one restoration."""
    write_observed(tmp_path / "y.npz", observed(**{name: noisy(name, 0.2) for name in TRUTH}))
    traces = {"a": np.array([[1, 0.1, 20.123456], [7, 1e-5, np.nan]])}
    images = {name: noisy(name, 0.05) for name in TRUTH}
    write_restored(tmp_path / "rerg.npz", Restored(images, STATS, traces))
    return tmp_path


def scored(folder, restorations, lpips=None, **overrides):
    arguments = {
        "run": "test",
        "dataset": "photos",
        "problem": "sr3",
        "truth": TRUTH,
        "observations": folder / "y.npz",
        "restorations": {
            (name, 3 if name == "rerg" else None): folder / f"{name}.npz" for name in restorations
        },
        "lpips": lpips,
        "commit": "abc",
    }
    return score(**arguments | overrides)


def cell(table, method, image, column):
    row = table[(table["method"] == method) & (table["image"] == image)]
    assert len(row) == 1
    return row[column].iloc[0]


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
    assert set(table.loc[table["method"] == "rerg", "seed"]) == {3}
    assert table.loc[table["method"] != "rerg", "seed"].isna().all()
    assert table["destroyed"].isna().all()
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
        (np.zeros((3, 40, 33), np.float32), "expected shape (3, 39, 33), got (3, 40, 33)"),
        (np.zeros((3, 39, 33), np.uint8), "got uint8"),
    ],
)
def test_a_broken_restoration_is_an_empty_row_and_a_line(files, caplog, broken, reason):
    arrays = {"a": noisy("a", 0.1)} | ({} if broken is None else {"b": broken})
    write_restored(files / "tv.npz", Restored(arrays))
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
    write_restored(files / "bm3d.npz", Restored(failed="no license"))
    table = scored(files, ["bm3d"])
    rows = table[table["method"] == "bm3d"]
    assert len(rows) == 2
    assert rows[["psnr", "ssim", "lpips", "error"]].isna().all(axis=None)
    assert "no license" in caplog.text


def test_what_a_training_lost_and_how_a_solver_ended_are_columns(files):
    stats = {name: dict(STATS[name]) for name in TRUTH}
    stats["a"] |= {"stopped": "stalled", "destroyed": "half of its images lost"}
    stats["b"] |= {"stopped": "limit", "destroyed": ""}
    write_restored(files / "rerg.npz", Restored({n: noisy(n, 0.05) for n in TRUTH}, stats))
    table = scored(files, ["rerg"])
    assert [cell(table, "rerg", n, "stopped") for n in "ab"] == ["stalled", "limit"]
    assert cell(table, "rerg", "a", "destroyed") == "half of its images lost"
    assert pd.isna(cell(table, "rerg", "b", "destroyed"))
    assert table.loc[table["method"] != "rerg", ["stopped", "destroyed"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "y",
            lambda path: write_observed(path, observed(a=noisy("a", 0.2))),
            "no observation of the image 'b'",
        ),
        ("y", lambda path: path.write_text("not an npz"), "expected an npz file"),
        ("y", lambda path: path.unlink(), "no such file"),
        (
            "y",
            lambda path: write_observed(path, observed(**{n: np.zeros((3, 99, 33)) for n in "ab"})),
            "the initial image of 'a' is 99x33, larger than the image, 40x33",
        ),
        (
            "rerg",
            lambda path: write_restored(path, Restored({}, {"a": {"iterations": "seven"}})),
            "stats of 'a': iterations: 'seven' is not Int64",
        ),
        (
            "rerg",
            lambda path: write_restored(path, Restored({}, {"b": {"converged": 1}})),
            "stats of 'b': converged: 1 is not boolean",
        ),
        (
            "rerg",
            lambda path: write_restored(path, Restored({}, {"b": {"stopped": "bored"}})),
            "stats of 'b': stopped: expected one of converged, stalled, limit, diverged, got bored",
        ),
        (
            "rerg",
            lambda path: write_restored(path, Restored({}, [1])),
            "'stats' is not a mapping of images to mappings",
        ),
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


def text_of(table):
    return table.to_csv(index=False, lineterminator="\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: text_of(t.drop(columns="ssim")), "column 'ssim' is missing"),
        (lambda t: text_of(t.iloc[:0]), "the table has no rows"),
        (lambda t: "", "not a CSV table (it is empty)"),
        (lambda t: text_of(pd.concat([t, t.iloc[[1]]])), "two rows for photos, sr3, initial, b"),
        (
            lambda t: text_of(pd.concat([t, t.iloc[[4]]])),
            "two rows for photos, sr3, rerg, seed 3, a",
        ),
        (lambda t: text_of(t.assign(image=None)), "column 'image' has an empty cell"),
        (
            lambda t: text_of(t.assign(psnr=["1", "high", *["2"] * 4])),
            "column 'psnr', line 3: 'high' is not",
        ),
        (
            lambda t: text_of(t.assign(iterations="1.5")),
            "column 'iterations', line 2: '1.5' is not Int64",
        ),
        (
            lambda t: text_of(t.assign(network_evaluations="-5")),
            "column 'network_evaluations', line 2: '-5' is not Int64",
        ),
        (lambda t: text_of(t.assign(seed="-1")), "column 'seed', line 2: '-1' is not Int64"),
        (lambda t: text_of(t.assign(psnr="-inf")), "column 'psnr', line 2: '-inf' is not float64"),
        (lambda t: text_of(t.assign(error="-inf")), "column 'error', line 2: '-inf' is not"),
        (
            lambda t: t.to_csv(index=False, sep="|"),
            "expected cells separated by commas, got 'run|dataset|problem|",
        ),
        (
            lambda t: "version https://git-lfs.github.com/spec/v1\nsize 3\n",
            "expected cells separated by commas, got 'version https://git-lfs",
        ),
        (
            lambda t: text_of(t.assign(converged="yes")),
            "column 'converged', line 2: 'yes' is not boolean",
        ),
        (
            lambda t: text_of(t.assign(stopped="bored")),
            "column 'stopped', line 2: 'bored' is not one of converged, stalled,",
        ),
        (
            lambda t: text_of(t.assign(trace="[[1,")),
            "column 'trace', line 2: '[[1,' is not a trace",
        ),
        (lambda t: text_of(t.assign(trace="[]")), "column 'trace', line 2: '[]' is not a trace"),
        (
            lambda t: text_of(t.assign(trace="[[2,20.0],[1,21.0]]")),
            "column 'trace', line 2: '[[2,20.0],[1,21.0]]' is not a trace",
        ),
        (
            lambda t: t.to_csv(index=False, sep=";"),
            "the cells are separated by semicolons; expected commas",
        ),
        (
            lambda t: t.to_csv(index=False, sep="\t"),
            "the cells are separated by tabs; expected commas",
        ),
        (
            lambda t: text_of(t) + "test,photos\n",
            "line 8: expected 27 cells, as in the head, got 2",
        ),
        (lambda t: text_of(t)[:-1], "the last line has no end; the file seems to have broken off"),
        (lambda t: text_of(t) + '"', "not a CSV table (unexpected end of data)"),
        (
            lambda t: text_of(t).replace("psnr", "ssim", 1),
            "column 'psnr' is missing",
        ),
        (
            lambda t: text_of(t).replace("run,", "psnr,", 1),
            "column 'run' is missing",
        ),
    ],
)
def test_a_bad_table_is_one_line_that_names_the_fault(files, change, message):
    (files / "scores.csv").write_text(change(scored(files, ["rerg"])))
    with pytest.raises(InputError) as error:
        read_scores(files / "scores.csv")
    assert str(error.value).startswith(f"{files / 'scores.csv'}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["50", "1e3", "NA", "null", "007", "a,b", 'a"b', "a\u2028b", "x;y"]
)
def test_ids_are_text_whatever_they_look_like(tmp_path, name):
    table = synthetic_scores({name: {"label": name}}, [name], images=1, dataset=name)
    write_scores(table, tmp_path / "scores.csv")
    again = read_scores(tmp_path / "scores.csv")
    assert set(again["problem"]) == set(again["dataset"]) == {name}
    assert set(again["method"]) == {"initial", name, "truth"}
    whole = complete(again, expected_of({name: {}}, [name], [name]))
    assert not whole["absent"].any()


METHODS = {
    "rg": {"label": "RG", "variant": "rg", "solver": "fast"},
    "rerg": {"label": "RERG", "variant": "rerg", "solver": "fast"},
    "tv": {"label": "TV"},
}
EXPECTED = expected_of(METHODS, ["den15", "sr2"], seeds=(0, 1))


@pytest.fixture
def whole():
    return synthetic_scores(METHODS, ["den15", "sr2"], images=3, seeds=(0, 1))


def test_an_older_table_is_read(whole, tmp_path):
    # Before seeds were an axis every row had that of the run, and two columns were not there.
    old = (
        whole[whole["seed"].isna() | (whole["seed"] == 1)].assign(seed=1).astype({"seed": "Int64"})
    )
    old.drop(columns=list(LATER)).to_csv(tmp_path / "scores.csv", index=False)
    table = load_scores(tmp_path / "scores.csv", EXPECTED | {"seeds": [1]})
    assert not table["absent"].any()
    assert table["destroyed"].isna().all() and table["stopped"].isna().all()
    assert len(table) == len(old)
    assert table.loc[table["method"].isin(["initial", "tv", "truth"]), "seed"].isna().all()
    assert set(table.loc[table["method"] == "rg", "seed"]) == {1}


def test_a_whole_table_is_complete_as_it_is(whole):
    assert compare(whole, EXPECTED) == []
    table = complete(whole.sample(frac=1, random_state=0), EXPECTED)
    assert not table.pop("absent").any()
    order = ["dataset", "problem", "method", "seed", "image"]
    pd.testing.assert_frame_equal(
        table.sort_values(order, ignore_index=True), whole.sort_values(order, ignore_index=True)
    )


def test_missing_rows_are_said_and_empty(whole):
    gone = (whole["method"] == "rerg") & (whole["problem"] == "sr2") & (whole["seed"] == 1)
    assert compare(whole[~gone], EXPECTED) == [
        "3 rows missing, their cells are empty: rerg on sr2 of photos, seed 1 (3)"
    ]
    table = complete(whole[~gone], EXPECTED)
    added = table[table["absent"]]
    assert len(added) == 3 and set(added["method"]) == {"rerg"} and set(added["seed"]) == {1}
    assert added["psnr"].isna().all()
    many = whole[whole["image"] != "image0"].iloc[:-20]
    (line,) = compare(many, EXPECTED)
    assert line.endswith("more")


def test_what_the_config_does_not_know_is_said_and_left_out(whole):
    pairs = zip(("dataset", "problem", "method", "seed"), ("moon", "den16", "mine", 7), strict=True)
    for column, value in pairs:
        row = whole[whole["method"] == "rg"].iloc[[0]].assign(**{column: value})
        more = pd.concat([whole, row.astype(COLUMNS)])
        assert compare(more, EXPECTED) == [f"{column}s that the config lacks, left out: {value}"]
        assert len(complete(more, EXPECTED)) == len(whole)
    partial = {**EXPECTED["methods"], "rg": {"problems": ["sr2"], "seeded": True}}
    (line,) = compare(whole, EXPECTED | {"methods": partial})
    assert line.startswith("6 rows that the config does not expect: rg on den15 of photos, seed 0")


def test_rows_of_two_runs_are_said(whole):
    assert compare(whole.assign(run=["a", *["b"] * (len(whole) - 1)]), EXPECTED) == [
        f"rows of several runs: b ({len(whole) - 1}), a (1)"
    ]
    assert compare(whole.assign(run=[None, *["b"] * (len(whole) - 1)]), EXPECTED) == [
        f"rows of several runs: b ({len(whole) - 1}), without a name (1)"
    ]


def test_a_table_of_other_datasets_is_one_line(whole, tmp_path):
    write_scores(whole, tmp_path / "scores.csv")
    with pytest.raises(InputError) as error:
        load_scores(tmp_path / "scores.csv", EXPECTED | {"datasets": ["set5"]})
    assert str(error.value) == (
        f"{tmp_path / 'scores.csv'}: the scores have no row of this run: they are of photos on"
        " den15, sr2, the config is of set5; name the config that made them by --configfile"
    )


@pytest.mark.parametrize("gone", ["photos", "set5"])
def test_a_table_without_one_of_the_datasets_is_one_line(whole, tmp_path, gone):
    """What is pooled of those that survived would pass as the whole."""
    both = pd.concat([whole, whole.assign(dataset="set5")])
    assert of_dataset(both, POOLED) is both and len(of_dataset(both, "set5")) == len(whole)
    expected = EXPECTED | {"datasets": ["photos", "set5"]}
    assert not complete(both, expected)["absent"].any()
    write_scores(both[both["dataset"] != gone], tmp_path / "scores.csv")
    with pytest.raises(
        InputError, match=rf"^\S*scores.csv: no row of {gone}; expected all test sets"
    ):
        load_scores(tmp_path / "scores.csv", expected)


IMAGES = {"photos": ["image0", "image1", "image2"]}


def test_an_image_that_no_method_has_is_one_line(whole, tmp_path, caplog):
    """What every method lacks alike would pass as a smaller dataset."""
    path, about = tmp_path / "scores.csv", tmp_path / "provenance.json"
    known = {**EXPECTED, "images": IMAGES}
    assert compare(whole, known) == [] and not complete(whole, known)["absent"].any()
    write_scores(whole[whole["image"] != "image1"], path)
    line = r"^\S*scores.csv: no row of image1 of photos, on any problem; expected all images"
    with pytest.raises(InputError, match=line):
        load_scores(path, known)
    about.write_text(json.dumps({"data": {"photos": {f"a/{i}.png": "" for i in IMAGES["photos"]}}}))
    with pytest.raises(InputError, match=line):
        load_scores(path, EXPECTED, about)
    assert caplog.text == ""
    assert not load_scores(path, EXPECTED)["absent"].any()  # nothing knows the image


def test_an_image_that_a_problem_lacks_is_named_and_empty(whole):
    gone = (whole["image"] == "image1") & (whole["problem"] == "sr2")
    (line,) = compare(whole[~gone], {**EXPECTED, "images": IMAGES})
    assert line.startswith(
        "7 rows missing, their cells are empty: initial on sr2 of photos (image1);"
    )


def test_an_image_that_the_registry_does_not_have_is_said_and_left_out(whole):
    known = {**EXPECTED, "images": {"photos": ["image0", "image1"]}}
    (line,) = compare(whole, known)
    assert line.startswith(
        "14 rows that the config does not expect: initial on den15 of photos (im"
    )
    assert set(complete(whole, known)["image"]) == {"image0", "image1"}


def test_a_table_that_its_provenance_does_not_describe_is_said(whole, tmp_path, caplog):
    path, about = tmp_path / "scores.csv", tmp_path / "provenance.json"
    write_scores(whole, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    about.write_text(json.dumps({"scores": {"rows": len(whole), "sha256": sha256}}))
    load_scores(path, EXPECTED, about)
    assert caplog.text == ""
    path.write_text(path.read_text().replace("0.9", "0.8", 1))
    load_scores(path, EXPECTED, about)
    assert "not the file that the provenance describes" in caplog.text
    write_scores(whole.iloc[:-1], path)
    load_scores(path, EXPECTED, about)
    assert f"{len(whole) - 1} rows, where the provenance says {len(whole)}" in caplog.text
    about.write_text("{")
    with pytest.raises(InputError, match="not a provenance"):
        load_scores(path, EXPECTED, about)


def test_a_run_without_parts_is_one_line():
    with pytest.raises(InputError, match="no part of the table"):
        collect([])
