"""The bound: tight where it must be, true on a trained RG, and its surrogate's gradient."""

import math

import numpy as np
import pytest
import torch
from conftest import batch_of, clean_images, observe, spec_of, white

from rerg.bound import (
    Iterate,
    error_bound,
    iteration_bound,
    probes,
    radial_factor,
    rms,
    surrogate,
)
from rerg.iteration import Momentum, fixed_point
from rerg.maps import GradientDescent, ProximalGradient
from rerg.registry import load
from rerg.restoration import measure_bound
from rerg.solvers import fast

TRUTH = clean_images(2, 6, 5).double()
DIRECTION = white(TRUTH.shape, 1, torch.float64)


def contraction(q, r):
    """T(x) = x̂ + q (x - x̂) + r d with ‖d‖ = 1: its equilibrium is x̂ + r/(1 - q) d."""
    d = DIRECTION / rms(DIRECTION).view(-1, 1, 1, 1)
    return lambda x: TRUTH + q * (x - TRUTH) + r * d


@pytest.mark.parametrize("q", [0.0, 0.5, 0.95])
def test_tight_at_the_equilibrium_of_a_contraction(q):
    T, r = contraction(q, 0.03), torch.full((2,), 0.03, dtype=torch.float64)
    solution = fixed_point(T, torch.zeros_like(TRUTH), iterations=800, tolerance=1e-14)
    x = solution.x
    measured = radial_factor(T(x), T(TRUTH), x, TRUTH)
    torch.testing.assert_close(rms(T(TRUTH) - TRUTH), r)
    torch.testing.assert_close(measured, torch.full_like(r, q), atol=1e-9, rtol=0)
    bound = error_bound(r, measured, rms(T(x) - x))
    torch.testing.assert_close(bound, rms(x - TRUTH), atol=1e-6, rtol=0)


def test_tight_along_the_iteration():
    """From a start in the direction of d every iterate's error equals its bound."""
    q, r = 0.8, 0.03
    T = contraction(q, r)
    x = start = TRUTH + 0.4 * DIRECTION / rms(DIRECTION).view(-1, 1, 1, 1)
    factor, residual = torch.full((2,), q), rms(T(TRUTH) - TRUTH)
    for k in range(1, 30):
        x = T(x)
        bound = iteration_bound(residual, factor, rms(start - TRUTH), k)
        torch.testing.assert_close(bound, rms(x - TRUTH), atol=1e-6, rtol=0)


def test_tight_with_a_residual():
    """Beyond the equilibrium the residual counts in full: ‖x - x̂‖ = (r + ρ)/(1 - q)."""
    q, r = 0.5, 0.03
    T = contraction(q, r)
    x = TRUTH + 0.2 * DIRECTION / rms(DIRECTION).view(-1, 1, 1, 1)
    bound = error_bound(rms(T(TRUTH) - TRUTH), torch.full((2,), q), rms(T(x) - x))
    torch.testing.assert_close(bound, rms(x - TRUTH), atol=1e-6, rtol=0)


def test_no_bound_without_a_contraction():
    one, r = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.1])
    assert error_bound(r, one, 0 * r).isinf().all() and iteration_bound(r, one, r, 3).isinf().all()


def test_violations_are_counted(trained, monkeypatch):
    """Half the bound is violated: the measured one is not that far from the error."""
    truth, observation = observe("sr2", 28, 32, 2)
    T = ProximalGradient(trained["rg"], observation, 400)
    x = fixed_point(T, T.start(), iterations=50, tolerance=1e-4).x
    assert [row["bound_violations"] for row in measure_bound(T, x, truth, 5)] == [0, 0]
    monkeypatch.setattr("rerg.restoration.iteration_bound", lambda *a: iteration_bound(*a) / 4)
    assert all(row["bound_violations"] > 0 for row in measure_bound(T, x, truth, 5))


def test_the_bound_along_the_iteration_takes_the_largest_factor_so_far():
    """By 0.9 far from x̂, by 0.1 near it: with 0.1 alone the first iterate near it exceeds it."""
    d = DIRECTION / rms(DIRECTION).view(-1, 1, 1, 1)

    class TwoFactors:
        def start(self):
            return TRUTH + 0.4 * d

        def __call__(self, x):
            e = x - TRUTH
            return TRUTH + torch.where(rms(e).view(-1, 1, 1, 1) > 0.3, 0.9, 0.1) * e

    for row in measure_bound(TwoFactors(), TRUTH + 0.2 * d, TRUTH, 6):
        assert row["bound_q"] == pytest.approx(0.1)
        assert row["bound_iterates"] == 6 and row["bound_violations"] == 0


@pytest.mark.parametrize("kind", [ProximalGradient, GradientDescent])
def test_holds_row_by_row_on_a_trained_rg(name, trained, kind):
    """For every image and every iterate, with q and r measured; and it is not vacuous."""
    truth, observation = observe(name, 28, 32, 2)
    T = kind(trained["rg"], observation, 400)
    solution = fixed_point(T, T.start(), iterations=60, tolerance=1e-5, acceleration=Momentum)
    rows = measure_bound(T, solution.x, truth, 30)
    for row in rows:
        assert row["bound_violations"] == 0
        assert row["bound_q"] < 1 and row["bound_iterates"] == 30
        assert row["error"] <= row["bound"] * (1 + 1e-5)
        assert row["error"] == pytest.approx(
            float(rms(solution.x - truth)[rows.index(row)]), rel=1e-5
        )


def test_surrogate_is_the_logarithm_of_the_bound():
    """log r/(1 - q) where q < 0.98, with its two constants; steeper but finite where q ≥ 1."""
    e = 0.1 * white(TRUTH.shape, 2, torch.float64)
    for q in (0.2, 0.9):
        expected = np.log(0.03 + 1e-3) - np.log(1 - q)
        assert surrogate(contraction(q, 0.03), TRUTH, e).item() == pytest.approx(expected)
    values = [surrogate(contraction(q, 0.03), TRUTH, e).item() for q in (0.97, 0.99, 1.0, 1.5)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(np.log(0.031) - np.log(0.02) + 5 * 0.52)


@pytest.mark.parametrize("gain", [0.3, 1.2])
def test_gradient_of_the_surrogate(gain):
    """gradcheck with respect to the weights, in the contractive regime and beyond."""
    truth, observation = observe("den50", 4, 6, 2)
    truth, y = truth.double(), observation.y.double()

    def value(W):
        N = lambda x: (1 - gain) * x + 0.1 * torch.tanh(x.flatten(2) @ W.T).view_as(x)  # noqa: E731
        T = lambda x: 0.2 * y + x - N(x)  # noqa: E731
        return surrogate(T, truth, e)

    e = 0.1 * white(truth.shape, 2, torch.float64)
    W = (0.1 * white((24, 24), 3, torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(value, W)


def test_a_short_probe_weighs_little_and_a_zero_one_leaves_the_gradient_finite():
    """A flat image without noise has x0 = x̂, hence no radial probe; 1e-5 counts as 1e-4."""
    e = 1e-5 * DIRECTION / rms(DIRECTION).view(-1, 1, 1, 1)
    expected = np.log(0.03 + 1e-3) - np.log(1 - 0.09)
    assert surrogate(contraction(0.9, 0.03), TRUTH, e).item() == pytest.approx(expected)
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    surrogate(lambda x: w * x, TRUTH, torch.zeros_like(TRUTH)).backward()
    assert w.grad.isfinite() and w.grad != 0


def test_probes_are_of_their_kinds():
    """Of 400 images half lead to the iterate, and a sixth each is white, radial and both."""
    truth, direction = torch.full((400, 3, 8, 8), 0.5), white((400, 3, 8, 8), 4)
    x0, x = truth + 0.3 * direction, truth - 0.1
    e = probes(truth, x0, np.random.default_rng(0), x, white(truth.shape))
    at_x = (e == x - truth).flatten(1).all(1)
    rest = e / (0.3 * direction)
    t = rest[:, :1, :1, :1]
    radial = torch.isclose(rest, t.expand_as(rest), rtol=1e-3, atol=1e-5).flatten(1).all(1) & ~at_x
    assert radial.float().mean().item() == pytest.approx(1 / 6, abs=0.06)
    assert at_x.float().mean().item() == pytest.approx(1 / 2, abs=0.08)
    assert 0 < t[radial].min() < 0.1 and 0.9 < t[radial].max() < 1
    # what is left has white noise in it, of 0.3 of its level where x0 - x̂ is there too
    alone = (e[~radial & ~at_x] * direction[~radial & ~at_x]).flatten(1).mean(1).abs() < 0.02
    assert 0.3 < alone.float().mean() < 0.8
    assert torch.equal(e, probes(truth, x0, np.random.default_rng(0), x, white(truth.shape)))


def test_an_iterate_is_one_of_the_maps_own_and_uniform():
    """x_k = k of 5 000 images solved in turn: every k of 1 ... 6 is as likely, the last too."""
    path = Iterate(torch.zeros(5000, 1, 1, 1), np.random.default_rng(0), 20)
    fixed_point(
        lambda x: x + 1,
        torch.zeros(5000, 1, 1, 1),
        iterations=6,
        tolerance=0.0,
        largest=math.inf,
        watch=path,
    )
    counts = torch.bincount(path.x.flatten().long(), minlength=7) / 5000
    assert counts[0] == 0 and torch.allclose(counts[1:], torch.full((6,), 1 / 6), atol=0.02)


def test_an_evaluation_without_an_iterate_changes_no_choice():
    """Image 0 gains at every evaluation, image 1 at the first alone."""
    path = Iterate(torch.zeros(2, 1, 1, 1), np.random.default_rng(0), 2)
    path.drawn[:] = 0.4  # below 1 and below 1/2: both evaluations are taken
    path(1, torch.full((2, 1, 1, 1), 1.0), np.array([0.5, 0.5]))
    path(2, torch.full((2, 1, 1, 1), 2.0), np.array([0.4, 0.5]))
    assert path.x.flatten().tolist() == [2, 1]


def iterates_of(T, iterations, tolerance):
    """The iterates of the fast solver."""
    found = []

    def watch(k, x, residual):
        found.append(x)

    fast.solve(T, iterations=iterations, tolerance=tolerance, watch=watch)
    return found


def test_the_probes_of_rerg_and_rg1_lie_on_the_path_of_the_fast_map(trained, monkeypatch):
    for variant in ("rerg", "rg1"):
        module, seen = load("variants", variant), []

        def recorded(truth, x0, rng, iterate, noise, seen=seen):
            seen.append(iterate)
            return iterate - truth

        monkeypatch.setattr(module, "probes", recorded)
        truth, observation = observe("sr2", 32, 32, 2)
        spec = spec_of(variant, 100)
        module.loss(trained, batch_of(truth, observation), spec)
        T = ProximalGradient(trained["rg"], observation, 400)
        iterates = iterates_of(T, spec.equilibrium.iterations, spec.equilibrium.tolerance)
        for image in range(2):
            assert any(torch.allclose(seen[0][image], x[image], atol=1e-5) for x in iterates)


def test_probes_change_the_surrogate(trained):
    truth, observation = observe("sr2", 32, 32, 2)
    T = ProximalGradient(trained["rg"], observation, 400)
    solution = fixed_point(T, T.start(), iterations=50, tolerance=1e-4)
    kinds = [observation.x0 - truth, 0.1 * white(truth.shape, 1), solution.x - truth]
    values = [surrogate(T, truth, e).item() for e in kinds]
    assert len({round(value, 4) for value in values}) == 3
