"""Restoring observations: batches, statistics, traces, the bound, and failures."""

import math

import numpy as np
import pytest
import torch
from conftest import clean_images, observe, problem_of, spec_of
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

import rerg.restoration
from rerg.bound import rms
from rerg.maps import ProximalGradient
from rerg.models import Model, build, start_from
from rerg.problems import batches, generator
from rerg.registry import load
from rerg.restoration import Trace, measure_bound, psnr, restore, trace_grid

FAST = {"iterations": 60, "tolerance": 1e-4}


def three(problem="sr2"):
    """Three observations, of which the last has another size, and their clean images."""
    described, observations, truth = problem_of(problem), {}, {}
    for i, size in enumerate([(28, 32), (28, 32), (36, 28)]):
        name = f"image{i}"
        truth[name] = clean_images(1, *size, seed=i)[0]
        observations[name] = described.observe(
            truth[name][None], [generator("test", problem, name)]
        )
    return observations, truth


def restored(networks, observations, truth=None, variant="rg1", **settings):
    settings = {"solver": "fast", "options": FAST, "batch_size": 8, "bound_iterates": 5} | settings
    model = Model(networks, spec_of(variant, 10), {})
    return restore(model, observations, truth=truth, **settings)


def test_images_statistics_and_traces(trained):
    observations, truth = three()
    found = restored(trained, observations, truth)
    assert list(found.images) == list(found.stats) == list(found.traces) == list(truth)
    for name, x in truth.items():
        image, entry, trace = found.images[name], found.stats[name], found.traces[name]
        assert image.shape == x.shape and image.dtype == np.float32
        assert entry["converged"] is True and 0 < entry["residual"] <= 1e-4
        assert entry["network_evaluations"] == entry["iterations"] < 60
        quality = peak_signal_noise_ratio(x.numpy(), image, data_range=1)
        assert trace[-1, 0] == entry["iterations"] and trace[0, 0] == 0
        assert trace[-1, 2] == pytest.approx(quality, abs=1e-3)
        assert trace[0, 2] == pytest.approx(psnr(observations[name].x0, x[None]).item(), abs=1e-3)
        assert np.all(np.diff(trace[:, 0]) > 0)
        assert entry["bound_violations"] == 0 and entry["error"] <= entry["bound"]
        error = math.sqrt(np.mean((image - x.numpy()) ** 2))
        assert entry["error"] == pytest.approx(error, rel=1e-4)


def test_the_ground_truth_changes_no_restoration(trained):
    observations, truth = three()
    informed, blind = restored(trained, observations, truth), restored(trained, observations)
    for name in truth:
        assert np.array_equal(informed.images[name], blind.images[name])
        assert "bound" in informed.stats[name] and "bound" not in blind.stats[name]
    assert not blind.traces


@pytest.mark.parametrize("problem", ["sr2", "com80"])
def test_a_batch_restores_as_its_images_alone(problem, trained):
    """Each image stops on its own: the batch's size changes rounding, not the restoration."""
    observations, truth = three(problem)
    together = restored(trained, observations, truth)
    alone = restored(trained, observations, truth, batch_size=1)
    for name in truth:
        np.testing.assert_allclose(together.images[name], alone.images[name], atol=2e-4)
        iterations = (found.stats[name]["iterations"] for found in (together, alone))
        assert abs(next(iterations) - next(iterations)) <= 1


def test_batches_hold_equal_sizes():
    observations, _ = three()
    assert batches(observations, 8) == [["image0", "image1"], ["image2"]]
    assert batches(observations, 1) == [["image0"], ["image1"], ["image2"]]


def test_a_killed_job_goes_on_with_the_images_left(trained, tmp_path, monkeypatch):
    described, observations, truth = problem_of("com80"), {}, {}
    for i in range(5):
        truth[f"{i}"] = clean_images(1, 24, 28, seed=i)[0]
        observations[f"{i}"] = described.observe(
            truth[f"{i}"][None], [generator("test", "com80", f"{i}")]
        )
    settings = {"partial": tmp_path / "partial", "batch_size": 2}
    expected = restored(trained, observations, truth, batch_size=2)
    done, real = [], rerg.restoration.restore_batch

    def counted(*arguments):
        if sum(done) >= 2:
            raise KeyboardInterrupt
        done.append(len(arguments[1].y))
        return real(*arguments)

    monkeypatch.setattr(rerg.restoration, "restore_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        restored(trained, observations, truth, key="a", **settings)
    assert done == [2] and len(list((tmp_path / "partial").glob("*.npz"))) == 2

    done.clear()
    with pytest.raises(KeyboardInterrupt):  # goes on with one batch, of other images
        restored(trained, observations, truth, key="a", **settings)
    assert done == [2] and len(list((tmp_path / "partial").glob("*.npz"))) == 4
    done.clear()
    found = restored(trained, observations, truth, key="a", **settings)
    assert done == [1] and list(found.stats) == list(truth)
    for name in truth:
        np.testing.assert_array_equal(found.images[name], expected.images[name])
        np.testing.assert_array_equal(found.traces[name], expected.traces[name])
    done.clear()
    with pytest.raises(KeyboardInterrupt):  # another key starts anew
        restored(trained, observations, truth, key="b", **settings)
    assert done == [2]
    # killed between two files of a batch: it is restored as a whole, as before
    next((tmp_path / "partial").glob("*.npz")).unlink()
    monkeypatch.setattr(rerg.restoration, "restore_batch", real)
    again = restored(trained, observations, truth, key="a", **settings)
    for name in truth:
        np.testing.assert_array_equal(again.images[name], expected.images[name])


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("fast", {"iterations": 60, "tolerance": 1e-4}),
        ("turns", {"iterations": 480, "tolerance": 1e-4}),
        ("gd", {"iterations": 60, "tolerance": 1e-6}),
        ("adam", {"iterations": 20, "learning_rate": 0.01}),
    ],
)
def test_solvers_differ_and_keep_their_fields(solver, options, trained):
    observations, truth = three()
    found = restored(trained, observations, truth, solver=solver, options=options)
    entry = found.stats["image0"]
    converges = solver in ("fast", "turns")
    assert entry["converged"] is (None if solver == "adam" else converges)
    assert (entry["iterations"] < options["iterations"]) == converges
    assert ("bound" in entry) == converges  # of the map of the field, not of descent
    assert found.traces["image0"][-1, 0] == entry["network_evaluations"]
    assert len(found.traces["image0"]) > 3
    assert psnr(torch.from_numpy(found.images["image0"])[None], truth["image0"][None]) > 20


def test_mtdeq_restores_and_has_no_bound(trained):
    networks = build(spec_of("mtdeq", 10))
    start_from(networks, trained)
    networks.requires_grad_(False)
    observations, truth = three()
    found = restored(networks, observations, truth, variant="mtdeq")
    assert not any(key.startswith("bound") for key in found.stats["image0"])
    observation = observations["image2"]
    x = torch.from_numpy(found.images["image2"])[None]
    z = x + observation.gradient(x) / (400 * observation.weight)  # x = prox(z)
    u = 2 * x - z
    denoised = u - networks["denoiser"](u, observation.sigma)
    assert (denoised - x).norm() < 1e-3 * x.norm()  # D(2x - z) = x at the fixed point


class Repelling(nn.Module):
    """N(x) = -9x - 1: no solver converges."""

    evaluations = 0

    def forward(self, x, level=None):
        return -9 * x - 1


@pytest.mark.parametrize("gain", ["repelling", "nan"])
@pytest.mark.parametrize("solver", ["fast", "turns", "gd", "adam"])
def test_a_diverging_rg_is_seen_and_leaves_finite_scores(solver, gain):
    networks = nn.ModuleDict({"rg": Repelling()})
    if gain == "nan":
        networks["rg"].forward = lambda x: x * math.nan
    observations, truth = three("den50")
    options = {"iterations": 100, "tolerance": 1e-4}
    if solver == "adam":
        options = {"iterations": 30, "learning_rate": 0.01}
    found = restored(networks, observations, truth, solver=solver, options=options)
    for name, x in truth.items():
        image, entry = found.images[name], found.stats[name]
        assert np.isfinite(image).all()
        assert math.isfinite(psnr(torch.from_numpy(image)[None], x[None]).item())
        assert entry["converged"] is (None if solver == "adam" else False)
        assert entry.get("bound") is None
        assert np.isfinite(found.traces[name][:, 2]).all()


def test_an_image_that_diverged_takes_no_further_precision():
    networks, (observations, _) = nn.ModuleDict({"rg": Repelling()}), three("den50")
    precisions = ["tf32", "float32"]
    found = restored(networks, observations, solver="gd", options=FAST, precisions=precisions)
    for entry in found.stats.values():
        assert entry["stopped"] == "diverged" and entry["precision"] == "tf32"


def test_bound_is_empty_where_the_map_does_not_contract():
    truth, observation = observe("den50", 24, 24)
    T = ProximalGradient(Repelling(), observation, 400)
    (row,) = measure_bound(T, observation.x0, truth, 5)
    assert row["bound_q"] >= 1 and row["bound"] is None
    assert row["bound_iterates"] == 0 and row["bound_violations"] == 0
    assert row["error"] == pytest.approx(rms(observation.x0 - truth).item())


def test_trace_grid_is_logarithmic_and_ends_with_the_last():
    grid = sorted(trace_grid(1500))
    assert grid[0] == 1 and grid[-1] == 1500 and 18 <= len(grid) <= 26
    assert trace_grid(1) == {1}


def test_trace_of_an_image_ends_where_it_stopped(trained):
    truth, observation = observe("den15", 28, 32, 2)
    T = ProximalGradient(trained["rg"], observation, 400)
    trace = Trace(T, truth, 60)
    solution = load("solvers", "fast").solve(T, watch=trace, **FAST)
    for i in range(2):
        rows = trace.traces(solution)[i]
        assert rows[-1, 0] == solution.evaluations[i]
        assert rows[-1, 2] == pytest.approx(psnr(solution.x, truth)[i].item())
