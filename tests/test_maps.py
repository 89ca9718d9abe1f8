"""The maps and the procedures have the same fixed points: closed forms, on every problem."""

import math

import numpy as np
import pytest
import torch
from closed_forms import ACCELERATIONS, SCALE, TYPES, Linear, tiny_observation
from conftest import observe, white

from rerg.dihedral import dihedral, dihedral_inverse
from rerg.iteration import Momentum, fixed_point
from rerg.maps import ADMM, GradientDescent, ProximalGradient
from rerg.solvers.adam import solve as adam
from rerg.solvers.turns import solve as turns


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
@pytest.mark.parametrize("kind", [GradientDescent, ProximalGradient, ADMM])
@pytest.mark.parametrize("problem", TYPES)
def test_linear_equilibrium_in_closed_form(problem, kind, acceleration):
    """Every map and every acceleration reaches the solution of (AᵀA + λM) x = Aᵀy."""
    linear = Linear(problem)
    T = linear.map(kind)
    with torch.no_grad():
        solution = fixed_point(
            T, T.start(), iterations=2000, tolerance=1e-9, acceleration=acceleration
        )
    expected, _ = linear.closed_form()
    assert solution.converged.all()
    assert (T.restoration(solution.x) - expected).abs().max() <= 1e-6


def test_the_fast_map_reaches_the_closed_form_on_every_problem(name):
    linear = Linear(name, count=1)
    T = linear.map(ProximalGradient)
    with torch.no_grad():
        solution = fixed_point(T, T.start(), iterations=500, tolerance=1e-10, acceleration=Momentum)
    assert (solution.x - linear.closed_form()[0]).abs().max() <= 1e-6
    assert T.restoration(solution.x) is solution.x


def test_gradient_descent_follows_its_field():
    """At an equilibrium g(x*) = 0, and g is the gradient field of the data term plus λR."""
    linear = Linear("den25", count=1, size=(27, 28))
    T = linear.map(GradientDescent)
    x = T.start()
    M = linear.M.detach()
    expected = x - linear.observation.y + linear.observation.weight * (x.flatten(2) @ M).view_as(x)
    with torch.no_grad():
        torch.testing.assert_close(T.field(x), expected)
        root, _ = linear.closed_form()
        assert T.field(root).abs().max() <= 1e-12


def test_gradient_descent_steps_by_the_inverse_of_its_lipschitz_constant():
    """For A = I and N(x) = 2x the field is (1 + 2λ/c) x - y: one step leads to its zero."""
    _, observation = tiny_observation("den25")
    T = GradientDescent(lambda x: 2 * x, observation, SCALE)
    assert T.field(T.start()).abs().max() > 0.1
    assert T.field(T(T.start())).abs().max() <= 1e-12


def test_adam_follows_the_gradient_field():
    """Against torch.optim.Adam on the energy ½‖Ax - y‖² + ½λxᵀMx, whose N(x) = mx turns with x."""
    _, observation = tiny_observation()
    observation = observation.with_sigma(25 / 255)
    T = GradientDescent(lambda x: 0.8 * x, observation, SCALE)
    ours = adam(T, iterations=30, learning_rate=0.01)
    x = observation.x0.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        energy = 0.5 * (observation.physics.A(x) - observation.y).square().sum()
        (energy + 0.5 * observation.weight * SCALE * 0.8 * x.square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(ours.x, x.detach(), rtol=0, atol=1e-10)
    assert not ours.converged.any() and ours.evaluations.tolist() == [30, 30]


def test_flips_and_rotations_are_eight_and_inverted():
    x = white((1, 3, 5, 7))
    turned = [dihedral(x, k) for k in range(8)]
    for k, image in enumerate(turned):
        assert torch.equal(dihedral_inverse(image, k), x)
        assert not any(image.shape == o.shape and torch.equal(image, o) for o in turned[:k])


@pytest.mark.parametrize("name", ["den25", "com80"])
def test_turns_finds_the_equilibrium_of_the_averaged_field(name, trained):
    _, observation = observe(name, 28, 32)
    T = ProximalGradient(trained["rg"], observation, SCALE)
    options = {"iterations": 8 * 60, "tolerance": 1e-5}
    with torch.no_grad():
        solution = turns(T, **options)
        N = [dihedral_inverse(T.N(dihedral(solution.x, k)), k) for k in range(8)]
    assert solution.converged.all() and (solution.evaluations % 8 == 0).all()
    gradient = observation.gradient(solution.x) + observation.weight * SCALE * sum(N) / 8
    alone = observation.gradient(solution.x) + observation.weight * SCALE * N[0]
    assert gradient.norm() < 0.1 * alone.norm()  # of the average, not of the network
    seen = []
    with torch.no_grad():
        short = turns(T, iterations=8 * 3, tolerance=1e-5, watch=lambda k, *_: seen.append(k))
    assert short.evaluations.tolist() == [24] and not short.converged.any()
    assert seen == [8, 16, 24]


def test_adam_freezes_an_image_without_a_gradient():
    _, observation = tiny_observation()
    poison = lambda x: torch.where(x.new_tensor([1, 0]).view(2, 1, 1, 1) > 0, x * math.nan, x)  # noqa: E731
    T = GradientDescent(poison, observation, SCALE)
    solution = adam(T, iterations=5, learning_rate=0.01)
    assert solution.x.isfinite().all() and torch.equal(solution.x[0], observation.x0[0])
    assert np.isfinite(solution.residual).tolist() == [False, True]
    assert not torch.equal(solution.x[1], observation.x0[1])


def test_adam_moves_on_where_the_gradient_is_finite_again():
    _, observation = tiny_observation()
    upright = lambda x: x * (math.nan if x.shape[-2] > x.shape[-1] else 0.8)  # noqa: E731
    T = GradientDescent(upright, observation, SCALE)
    seen = []
    watch = lambda k, x, residual: seen.append(np.isfinite(residual).tolist())  # noqa: E731
    solution = adam(T, iterations=8, learning_rate=0.01, watch=watch)
    assert solution.x.isfinite().all() and not torch.equal(solution.x, observation.x0)
    assert seen == 4 * [[False, False], [True, True]]  # every second turn is a rotation by 90°


def test_the_equilibrium_does_not_depend_on_the_solver(name, trained):
    """Gradient descent and the fast solver restore the same image with a trained RG.

    Nesterov's momentum shortens gradient descent where the plain one needs thousands of steps.
    """
    _, observation = observe(name, 28, 32)
    fast = ProximalGradient(trained["rg"], observation, SCALE)
    descent = GradientDescent(trained["rg"], observation, SCALE)
    x = fixed_point(fast, fast.start(), iterations=300, tolerance=1e-5, acceleration=Momentum)
    y = fixed_point(
        descent, descent.start(), iterations=2000, tolerance=1e-7, acceleration=Momentum
    )
    assert x.converged.all() and y.residual.max() <= 1e-6
    assert (x.x - y.x).norm() <= 1e-3 * x.x.norm()
    assert x.evaluations < y.evaluations


@pytest.mark.parametrize("problem", ["den25", "sr2", "blur16"])
def test_plain_gradient_descent_reaches_the_fast_equilibrium(problem, trained):
    _, observation = observe(problem, 28, 32)
    fast = ProximalGradient(trained["rg"], observation, SCALE)
    descent = GradientDescent(trained["rg"], observation, SCALE)
    x = fixed_point(fast, fast.start(), iterations=300, tolerance=1e-5, acceleration=Momentum)
    y = fixed_point(descent, descent.start(), iterations=1500, tolerance=1e-6)
    assert x.converged.all() and y.converged.all()
    assert (x.x - y.x).norm() <= 1e-3 * x.x.norm()
