"""Tuning: the search on a function with a known maximum, and the table of trials."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import clean_images, problem_of, spec_of, write_images

from rerg.baselines import Baseline, restore
from rerg.models import Model
from rerg.problems import generator
from rerg.trials import best, read_trials
from rerg.tuning import (
    GAIN,
    STEPS,
    Validation,
    baseline_trial,
    model_trial,
    on_edge,
    scaled_options,
    search,
    summary,
    tune,
)
from rerg.validation import gains

DEN25, SR2 = problem_of("den25").spec, problem_of("sr2").spec
GRID = {"sigma_factor": [0.5, 1, 2]}


def peak(*at: float):
    """A function of positive parameters with its only maximum there."""
    return lambda parameters: (
        -sum(math.log(value / a) ** 2 for value, a in zip(parameters.values(), at, strict=True))
    )


@pytest.mark.parametrize("at", [0.1, 0.8, 1.3, 6, 900])
def test_search_comes_as_near_as_its_last_step(at):
    trials = search(GRID, 8, peak(at))
    parameters, _ = max(trials, key=lambda trial: trial[1])
    furthest = 2 * 2**STEPS * 2 ** (1 - 2**-7)  # the walk beyond the grid, and all finer steps
    assert abs(math.log2(parameters["sigma_factor"] / min(at, furthest))) < 2**-6


def test_the_walk_beyond_the_grid_ends_where_it_gains_little():
    def flat(parameters: dict) -> float:
        return 0.6 * GAIN * math.log2(parameters["sigma_factor"])

    tried = [parameters["sigma_factor"] for parameters, _ in search(GRID, 1, flat)]
    assert tried == [0.5, 1, 2, 4]
    steep = [p["sigma_factor"] for p, _ in search(GRID, 1, lambda p: -2 * flat(p))]
    assert steep == [0.5, 1, 2, *(0.5 / 2**k for k in range(1, STEPS + 1))]
    both = {"a": [1, 2], "b": [1, 2]}
    assert (8, 0.5) in [tuple(p.values()) for p, _ in search(both, 1, peak(8, 0.6))]


def test_search_of_two_parameters_and_of_values_that_are_not_numbers():
    grid = {"a": [1, 10], "b": [0.1, 1]}
    trials = search(grid, 6, peak(2.0, 0.5))
    parameters, _ = max(trials, key=lambda trial: trial[1])
    assert parameters["a"] == pytest.approx(2.0, rel=0.1)
    assert parameters["b"] == pytest.approx(0.5, rel=0.1)
    assert len(trials) == len({tuple(p.values()) for p, _ in trials})
    half = search(GRID, 2, lambda p: math.nan if p["sigma_factor"] > 1 else p["sigma_factor"])
    assert on_edge(half) == []
    assert on_edge(search(GRID, 1, peak(900.0))) == ["sigma_factor"]
    assert on_edge(search(GRID, 1, peak(9.0))) == []


def test_trials_are_kept_not_repeated_and_the_best_is_read(tmp_path):
    path, called = tmp_path / "m.csv", []

    def trial(spec, parameters):
        called.append((spec.name, parameters["sigma_factor"]))
        if spec.name == "sr2":
            return {"failed": 'crashed, "here"'}
        return {"psnr": 30 + peak(0.8)(parameters), "network_evaluations": 3.0}

    tune(path, [DEN25, SR2], GRID, 2, lambda spec: "abc", trial)
    count, content = len(called), path.read_bytes()
    table = read_trials(path)
    assert len(table) == count == len(set(called))
    assert set(table[table["problem"] == "sr2"]["failed"]) == {'crashed, "here"'}
    assert best(path, "den25") == {"sigma_factor": 0.7071}
    assert best(path, "sr2") == {}
    tune(path, [DEN25, SR2], GRID, 2, lambda spec: "abc", trial)
    assert len(called) == count and path.read_bytes() == content
    tune(path, [DEN25, SR2], GRID, 3, lambda spec: "abc", trial)
    assert best(path, "den25") == {"sigma_factor": 0.8409}
    assert count < len(called) < 2 * count
    count = len(called)
    tune(path, [DEN25], GRID, 2, lambda spec: "another model", trial)
    assert len(called) == count + 5 == count + len(read_trials(path))
    count = len(called)
    tune(path, [replace(DEN25, noise=26.0)], GRID, 2, lambda spec: "another model", trial)
    assert len(called) == count + 5


def test_names_in_a_table_of_trials_are_text(tmp_path):
    """A problem may be called 1e3, nan or NA, and a reason too."""
    path, names = tmp_path / "m.csv", ["1e3", "nan", "NA"]

    def trial(spec, parameters):
        del parameters
        return {"failed": "nan"} if spec.name == "nan" else {"psnr": 20.0}

    tune(path, [replace(DEN25, name=name) for name in names], GRID, 1, lambda spec: "abc", trial)
    table = read_trials(path)
    assert list(dict.fromkeys(table["problem"])) == names
    assert set(table.loc[table["problem"] == "nan", "failed"]) == {"nan"}
    assert best(path, "1e3") == best(path, "NA") == {"sigma_factor": 0.5}
    assert best(path, "nan") == {}


def test_the_factor_multiplies_sigma_and_the_summary_is_the_mean_psnr():
    problem = problem_of("den25")
    truth = {str(i): clean_images(1, 24, 24, i) for i in range(2)}
    observations = {
        i: problem.observe(x, [generator("test", "den25", i)]) for i, x in truth.items()
    }
    seen = []

    def function(y, physics, sigma, x0):
        seen.append(sigma)
        return x0

    baseline = Baseline(function, {"sigma_factor": 2.0}, None)
    restored = restore(baseline, observations, {"sigma_factor": 0.5})
    assert seen == [0.5 * 25 / 255] * 2
    row = summary(restored, {i: x[0] for i, x in truth.items()})
    errors = [torch.mean((observations[i].y - x) ** 2).item() for i, x in truth.items()]
    assert row["psnr"] == pytest.approx(np.mean([-10 * math.log10(e) for e in errors]), rel=1e-5)
    assert row["network_evaluations"] is None
    restore(baseline, observations)
    assert seen[2:] == [2 * 25 / 255] * 2  # as declared


@pytest.fixture
def validation(tmp_path):
    paths = {name: tmp_path / f"{name}.h5" for name in ("a", "b")}
    for seed, path in enumerate(paths.values()):
        write_images(path, clean_images(2, 26, 24, seed))
    return Validation(paths, count=3, kernels={}, device="cpu")


def test_validation_takes_the_first_images_with_the_noise_of_their_names(validation):
    observed, truth = validation.observe(SR2)
    assert list(observed) == list(truth) == ["a/0", "a/1", "b/0"]
    again, _ = replace(validation, count=1).observe(SR2)
    assert torch.equal(again["a/0"].y, observed["a/0"].y)
    noise = observed["b/0"].y - observed["b/0"].physics.A(truth["b/0"][None])
    drawn = generator("b", "sr2", "0").standard_normal(noise.shape[1:], dtype=np.float32)
    torch.testing.assert_close(noise[0], torch.from_numpy(drawn) * 2.55 / 255, rtol=0, atol=1e-6)


def test_a_trial_of_a_model_restores_with_the_factor(validation, trained):
    model = Model(trained, spec_of("rg1", 10), {})
    options = {"den25": {"iterations": 40, "tolerance": 1e-3}}
    trial = model_trial(model, validation, "fast", options, 4)
    rows = {factor: trial(DEN25, {"sigma_factor": factor}) for factor in (0.3, 1)}
    assert rows[1]["psnr"] > rows[0.3]["psnr"] + 1
    assert 0 < rows[1]["network_evaluations"] <= 40


def test_a_trial_of_a_step_takes_the_sigma_that_was_found(validation, trained):
    model = Model(trained, spec_of("rg1", 10), {})
    options = {"den25": {"iterations": 20, "learning_rate": 0.01}}

    def psnr_of(step: float, factor: float | None) -> float:
        found = {} if factor is None else {"den25": {"sigma_factor": factor}}
        trial = model_trial(model, validation, "adam", options, 4, found=found)
        row = trial(DEN25, {"step_factor": step})
        assert row["network_evaluations"] == 20
        return row["psnr"]

    assert psnr_of(1, None) == psnr_of(1, 1.0) != psnr_of(1, 0.3)
    assert psnr_of(1, None) > psnr_of(1e-4, None) + 1  # such a step hardly leaves the noisy image


def test_the_step_factor_multiplies_what_a_solver_tunes():
    adam = {"iterations": 300, "learning_rate": 0.01}
    chosen = {"sigma_factor": 0.7, "step_factor": 2}
    assert scaled_options("adam", adam, chosen) == {"iterations": 300, "learning_rate": 0.02}
    assert scaled_options("adam", adam, {}) == adam
    fast = {"iterations": 300, "tolerance": 1e-4}
    assert scaled_options("fast", fast, chosen) == fast


def test_gains_are_over_images_of_all_sizes(trained, tmp_path):
    """Also where some are smaller than the crop."""
    found = []
    model = Model(trained.requires_grad_(False), spec_of("red", 400), {})
    for name, size in (("a", 24), ("b", 32)):
        write_images(tmp_path / f"{name}.h5", clean_images(1, size, size, 3))
        alone = Validation({name: tmp_path / f"{name}.h5"}, 1, {}, "cpu")
        found.append(gains(model, alone, [DEN25], 40)["den25"])
    paths = {name: tmp_path / f"{name}.h5" for name in "ab"}
    both = gains(model, Validation(paths, 2, {}, "cpu"), [DEN25], 40)["den25"]
    assert both == pytest.approx(np.mean(found), abs=1e-4)


def test_a_trial_of_a_baseline_that_fails_is_a_row(validation):
    def function(y, physics, sigma, x0, shift):
        if shift > 1:
            raise ValueError("too far")
        return x0 + shift

    trial = baseline_trial(lambda: Baseline(function, {"shift": 0}, None), validation, 60, 4)
    assert trial(DEN25, {"shift": 2.0}) == {"failed": "ValueError: too far"}
    near, far = (trial(DEN25, {"shift": shift})["psnr"] for shift in (0.0, 0.5))
    assert near == pytest.approx(-20 * math.log10(25 / 255), abs=0.3) and far < 7
