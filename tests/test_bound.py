"""The bound: tight where it must be, true on a trained RG, and its surrogate's gradient."""

import numpy as np
import pytest
import torch
from conftest import clean_images, observe, white

from rerg.bound import (
    LEVEL,
    error_bound,
    iteration_bound,
    probes,
    radial_factor,
    rms,
    surrogate,
)
from rerg.iteration import Momentum, fixed_point
from rerg.maps import GradientDescent, ProximalGradient
from rerg.restoration import measure_bound

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
    assert error_bound(r, one).isinf().all() and iteration_bound(r, one, r, 3).isinf().all()


def test_violations_are_counted(trained, monkeypatch):
    """Half the bound is violated: the measured one is not that far from the error."""
    truth, observation = observe("sr2", 28, 32, 2)
    T = ProximalGradient(trained["rg"], observation, 400)
    x = fixed_point(T, T.start(), iterations=50, tolerance=1e-4).x
    assert [row["bound_violations"] for row in measure_bound(T, x, truth, 5)] == [0, 0]
    monkeypatch.setattr("rerg.restoration.iteration_bound", lambda *a: iteration_bound(*a) / 4)
    assert all(row["bound_violations"] > 0 for row in measure_bound(T, x, truth, 5))


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


def test_a_zero_probe_leaves_the_gradient_finite():
    """A flat image without noise has x0 = x̂, hence no radial probe."""
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    surrogate(lambda x: w * x, TRUTH, torch.zeros_like(TRUTH)).backward()
    assert w.grad.isfinite() and w.grad != 0


def test_probes_are_of_their_kinds():
    truth, x0, x = TRUTH, TRUTH + 0.3 * DIRECTION, TRUTH - 0.1
    drawn = [probes(truth, x0, np.random.default_rng(i), x) for i in range(60)]
    without = [probes(truth, x0, np.random.default_rng(i)) for i in range(60)]

    def radial(e):
        ratio = e / (0.3 * DIRECTION)
        return torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio))

    at_x = [torch.allclose(e, x - truth) for e in drawn]
    assert 5 <= sum(at_x) <= 30 and not any(torch.allclose(e, x - truth) for e in without)
    assert 10 <= sum(map(radial, without)) <= 30
    white_only = [e for e in without if not radial(e) and rms(e).max() <= 1.3 * LEVEL]
    assert white_only and len({tuple(e.flatten().tolist()) for e in drawn if not radial(e)}) > 20
    assert torch.equal(
        probes(truth, x0, np.random.default_rng(3)), probes(truth, x0, np.random.default_rng(3))
    )


def test_probes_change_the_surrogate(trained):
    truth, observation = observe("sr2", 32, 32, 2)
    T = ProximalGradient(trained["rg"], observation, 400)
    solution = fixed_point(T, T.start(), iterations=50, tolerance=1e-4)
    kinds = [observation.x0 - truth, 0.1 * white(truth.shape, 1), solution.x - truth]
    values = [surrogate(T, truth, e).item() for e in kinds]
    assert len({round(value, 4) for value in values}) == 3
