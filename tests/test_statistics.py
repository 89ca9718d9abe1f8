"""Statistics, against closed forms and planted tables."""

import numpy as np
import pandas as pd
import pytest
from skimage import metrics
from synthetic import synthetic_scores

from rerg.metrics import psnr
from rerg.scores import COLUMNS
from rerg.statistics import CAP, RESAMPLES, Evidence, interval, resampled, spread, stretch

METHODS = {
    "rg": {"label": "RG", "variant": "rg", "solver": "fast"},
    "deqgd": {"label": "DEQGD", "variant": "deqgd", "solver": "fast"},
    "rerg": {"label": "RERG", "variant": "rerg", "solver": "fast"},
    "rg-adam": {"label": "RG, Adam-GD", "variant": "rg", "solver": "adam"},
    "rerg-adam": {"label": "RERG, Adam-GD", "variant": "rerg", "solver": "adam"},
    "mtdeq": {"label": "MTDEQ", "variant": "mtdeq", "solver": "fast"},
    "tv": {"label": "TV"},
}


def table_of(cells, dataset="d", **columns):
    """Rows of {(method, problem): array (seeds, images), or (images,) for one without seeds}."""
    rows = [
        {"method": m, "problem": p, "seed": seed, "image": f"i{i}", "psnr": value}
        for (m, p), values in cells.items()
        for seed, line in (
            enumerate(values) if np.ndim(values) == 2 else [(None, np.asarray(values))]
        )
        for i, value in enumerate(line)
    ]
    table = pd.DataFrame(rows).assign(dataset=dataset, run="r", **columns)
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def test_psnr_equals_scikit_image():
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 1, (3, 20, 24))
    x = (truth + generator.normal(0, 0.1, truth.shape)).astype(np.float32)
    expected = metrics.peak_signal_noise_ratio(truth, x.astype(float), data_range=1)
    assert psnr(x, truth) == pytest.approx(expected, rel=1e-12)


def test_psnr_of_a_constant_offset_is_closed_form_and_neither_clips_nor_crops():
    truth = np.ones((3, 16, 16))
    assert psnr(truth + 0.1, truth) == pytest.approx(20)
    border = truth.copy()
    border[:, 0] += 1
    assert psnr(border, truth) == pytest.approx(10 * np.log10(16))
    assert psnr(truth, truth) == np.inf


def test_a_perfect_image_counts_as_the_cap_but_for_the_truth():
    table = table_of({("tv", "p"): [np.inf, 30.0], ("truth", "p"): [np.inf, np.inf]})
    evidence = Evidence(table, METHODS, ["p"])
    assert evidence.mean("tv", "p")[0] == pytest.approx((CAP + 30) / 2)
    assert np.isfinite(evidence.mean("tv", "p")).all()
    assert evidence.mean("truth", "p")[0] == np.inf


def test_a_mean_is_over_seeds_and_images():
    values = np.array([[30.0, 31, 32], [33, 34, 38]])
    table = table_of({("rg", "p"): values, ("tv", "p"): [29.0, 30, 34]})
    evidence = Evidence(table.sample(frac=1, random_state=0), METHODS, ["p"])
    np.testing.assert_array_equal(evidence.cells("rg", "p", "psnr"), values)
    assert evidence.mean("rg", "p")[0] == pytest.approx(33)
    assert evidence.mean("tv", "p")[0] == pytest.approx(31)
    assert [e.mean("rg", "p")[0] for e in evidence.by_seed().values()] == pytest.approx([31, 35])
    assert [e.mean("tv", "p")[0] for e in evidence.by_seed().values()] == pytest.approx([31, 31])


def test_images_of_several_datasets_are_pooled():
    one, two = table_of({("tv", "p"): [20.0]}), table_of({("tv", "p"): [30.0, 40.0]}, dataset="e")
    evidence = Evidence(pd.concat([one, two]), METHODS, ["p"])
    assert evidence.mean("tv", "p")[0] == pytest.approx(30)
    assert evidence.images == [("d", "i0"), ("e", "i0"), ("e", "i1")]


def test_a_gap_makes_the_mean_empty():
    cells = {("rg", "p"): np.ones((2, 3)), ("tv", "p"): [1.0, 2, np.nan], ("red", "p"): [1.0, 2, 3]}
    table = table_of(cells)
    evidence = Evidence(table.drop(index=1), METHODS, ["p"])  # rg of seed 0 lacks an image
    assert np.isnan(evidence.mean("rg", "p")).all()
    assert np.isnan(evidence.mean("tv", "p")).all()
    assert evidence.mean("red", "p")[0] == pytest.approx(2)
    assert evidence.missing == {("rg", "p")}  # the row of tv is there, its value is not
    mixed = table.assign(seed=table["seed"].mask(table.index == 0))
    assert np.isnan(Evidence(mixed, METHODS, ["p"]).mean("rg", "p")).all()


def test_the_regret_compares_the_rgs_of_one_solver():
    means = {"rg": 30, "deqgd": 32, "rerg": 31, "rg-adam": 35, "rerg-adam": 33, "mtdeq": 36}
    cells = {(m, "p"): [[v, v + 1]] for m, v in means.items()}
    cells |= {(m, "q"): [[v, v - 1]] for m, v in means.items() if m != "rg-adam"}
    cells |= {("rerg", "q"): [[25, 25]]}
    evidence = Evidence(table_of(cells), METHODS, ["p", "q"])
    assert evidence.procedures == {
        "fast": ["rg", "deqgd", "rerg"],
        "adam": ["rg-adam", "rerg-adam"],
    }
    assert evidence.regret("rerg", "p")[0] == pytest.approx(1)
    assert evidence.regret("mtdeq", "p")[0] == pytest.approx(-4)
    assert evidence.regret("rerg-adam", "p")[0] == pytest.approx(2)
    assert evidence.compared("rerg-adam") == ["p"]
    assert evidence.worst_regret("rerg")[0] == pytest.approx(31.5 - 25)
    assert evidence.mean_regret("rerg")[0] == pytest.approx((1 + 6.5) / 2)
    assert evidence.worst_regret("rerg-adam")[0] == pytest.approx(2)


def test_the_best_is_taken_anew_in_every_resample():
    table = synthetic_scores(METHODS, ["p", "q"], images=6, seeds=(0, 1, 2))
    evidence = Evidence(table, METHODS, ["p", "q"])
    best = np.max([evidence.mean(m, "p") for m in ("rg", "deqgd", "rerg")], axis=0)
    np.testing.assert_allclose(evidence.regret("rg", "p"), best - evidence.mean("rg", "p"))
    assert (evidence.worst_regret("rerg") >= 0).all()


def test_a_destroyed_training_is_not_the_best_rg():
    cells = {("rg", "p"): [[40.0, 40]], ("rerg", "p"): [[30.0, 30]], ("deqgd", "p"): [[29.0, 29]]}
    table = table_of(cells)
    table.loc[table["method"] == "rg", "destroyed"] = "lost"
    evidence = Evidence(table, METHODS, ["p"])
    assert evidence.destroyed == {"rg": "seed 0: lost"}
    assert evidence.regret("rerg", "p")[0] == pytest.approx(0)
    assert evidence.regret("rg", "p")[0] == pytest.approx(-10)
    everything = Evidence(table.assign(destroyed="lost"), METHODS, ["p"])
    assert np.isnan(everything.regret("rerg", "p")).all()


def test_what_one_seed_destroyed_is_compared_in_no_seed():
    cells = {("rg", "p"): [[40.0, 40], [40, 40]], ("rerg", "p"): [[30.0, 30], [30, 30]]}
    table = table_of(cells | {("deqgd", "p"): [[31.0, 31], [31, 31]]})
    table.loc[(table["method"] == "rg") & (table["seed"] == 1), "destroyed"] = "lost"
    evidence = Evidence(table, METHODS, ["p"])
    for part in (evidence, *evidence.by_seed().values()):
        assert part.regret("rerg", "p")[0] == pytest.approx(1)


def test_resamples_are_means_whose_deviations_are_stretched():
    weights = resampled(5, RESAMPLES, np.random.default_rng(0))
    assert weights.shape == (1 + RESAMPLES, 5)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights[0], 0.2)
    drawn = 5 * ((weights[1:] - 0.2) / stretch(5) + 0.2)
    np.testing.assert_allclose(drawn, drawn.round(), atol=1e-9)
    assert drawn.min() > -1e-9
    np.testing.assert_array_equal(resampled(1, 3, np.random.default_rng(0)), 1)


def test_the_stretch_is_that_of_students_distribution():
    # t of 2 degrees of freedom at 97.5 % is 4.3027, the normal's quantile 1.9600.
    assert stretch(3) == pytest.approx(np.sqrt(1.5) * 4.302653 / 1.959964, rel=1e-6)
    assert stretch(10_000) == pytest.approx(1, abs=1e-3)


def test_the_interval_of_many_images_is_that_of_the_normal_mean():
    values = np.random.default_rng(1).normal(30, 2, 400)
    evidence = Evidence(table_of({("tv", "p"): values}), METHODS, ["p"])
    low, high = evidence.interval(evidence.mean("tv", "p"))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    other = Evidence(table_of({("tv", "p"): values}), METHODS, ["p"], seed=1)
    assert (low, high) != other.interval(other.mean("tv", "p"))


def test_the_comparison_is_paired_over_seeds_and_images():
    generator = np.random.default_rng(0)
    values = generator.normal(30, 3, (3, 8)) + generator.normal(0, 1, (3, 1))
    cells = {("rg", "p"): values, ("rerg", "p"): values + 0.5, ("tv", "p"): values[0] - 1}
    evidence = Evidence(table_of(cells), METHODS, ["p"])
    low, high = evidence.interval(evidence.mean("rerg", "p") - evidence.mean("rg", "p"))
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5)
    # A method without seeds is the same in every resample of the seeds.
    alone = Evidence(table_of({("tv", "p"): values[0] - 1}), METHODS, ["p"])
    widths = [np.ptp(e.interval(e.mean("tv", "p"))) for e in (alone, evidence)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)


@pytest.mark.parametrize(
    ("seeds", "images", "of_seeds", "of_images", "noise", "lower", "upper"),
    [
        (3, 8, 1.0, 0.0, 0.1, 0.91, 0.99),  # the seeds alone: plain resampling covers 75 %
        (3, 40, 1.0, 0.5, 0.3, 0.92, 0.99),
        (1, 8, 0.0, 1.0, 0.0, 0.92, 0.98),  # one seed: the images alone
        (10, 40, 0.3, 1.0, 0.5, 0.92, 0.99),
        (3, 8, 0.5, 1.0, 0.3, 0.94, 1.0),  # both at once: on the safe side
    ],
)
def test_intervals_cover_the_planted_truth(seeds, images, of_seeds, of_images, noise, lower, upper):
    """PSNR = 30 + seed + image + noise: how often the 95 % interval of the mean holds 30."""
    generator, tables, held = np.random.default_rng(0), 600, 0
    planted = Evidence(table_of({("rg", "p"): np.zeros((seeds, images))}), METHODS, ["p"])
    for _ in range(tables):
        values = 30 + generator.normal(0, of_seeds, (seeds, 1)) + np.zeros((seeds, images))
        values += generator.normal(0, of_images, images) + generator.normal(0, noise, values.shape)
        low, high = planted.interval(planted.average(values))
        held += low <= 30 <= high
    assert lower <= held / tables <= upper


def planted_worst_regrets(means, images, tables=300):
    """Samples of the worst regret of the second RG on tables of these means (RGs, problems)."""
    generator = np.random.default_rng(0)
    planted = Evidence(table_of({("rg", "p"): np.zeros((1, images))}), METHODS, ["p"])
    for _ in range(tables):
        cells = means[..., None] + generator.normal(0, 0.3, (*means.shape, images))
        samples = np.array([[planted.average(c[None]) for c in of_rg] for of_rg in cells])
        yield planted, (samples.max(axis=0) - samples[1]).max(axis=0)


def test_intervals_of_a_worst_regret_cover_the_planted_one():
    means = 30 + np.array([[0.0, 0.5, 0.2, 0.4], [-0.6, -0.4, 0.1, -0.2], [-0.1, 0.5, 0.0, 0.3]])
    truth = (means.max(axis=0) - means[1]).max()
    held = []
    for planted, samples in planted_worst_regrets(means, images=12):
        low, high = planted.interval(samples)
        held.append(low <= truth <= high)
    assert np.mean(held) > 0.92


def test_equal_rgs_are_seldom_said_to_differ():
    """All RGs alike: that the worst regret exceeds 0.1 dB is chance. Quantiles say so often."""
    symmetric, quantiles = [], []
    for planted, samples in planted_worst_regrets(np.full((3, 6), 30.0), images=12):
        symmetric.append(planted.interval(samples)[0] > 0.1)
        quantiles.append(np.quantile(samples[1:], 0.025) > 0.1)
    assert np.mean(symmetric) < 0.05
    assert np.mean(quantiles) > 0.2


def test_an_interval_needs_finite_samples_and_two_images():
    assert np.isnan(interval(np.array([30.0, np.nan, 31.0]))).all()
    assert np.isnan(interval(np.array([np.inf, np.inf]))).all()
    one = Evidence(table_of({("rg", "p"): [[30.0], [31.0]]}), METHODS, ["p"])
    assert np.isnan(one.interval(one.mean("rg", "p"))).all()


def test_the_spread_is_the_standard_deviation_over_seeds():
    assert spread([1.0, 3.0]) == pytest.approx(np.sqrt(2))
    assert np.isnan(spread([1.0]))
