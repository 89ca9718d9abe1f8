"""Fixed points and their gradients: closed forms, second implementations, options, failures."""

import math
from functools import cache, partial

import numpy as np
import pytest
import torch
from conftest import clean_images, dense, observe, problem_of, white
from torchdeq import get_deq

from rerg.equilibrium import equilibrium
from rerg.iteration import Anderson, Momentum, Plain, Safeguarded, fixed_point
from rerg.maps import ADMM, GradientDescent, ProximalGradient
from rerg.networks import build
from rerg.problems import generator
from rerg.solvers.adam import dihedral, dihedral_inverse
from rerg.solvers.adam import solve as adam

TYPES = ["den25", "sr2", "aniso1", "com80"]  # one problem of every operator
ACCELERATIONS = [Plain, Momentum, Anderson, Safeguarded]
SCALE = 400


@cache
def orthogonal(n):
    return torch.linalg.qr(white((n, n), 7, torch.float64))[0]


class Linear:
    """R(x) = M x on every channel of images (H, W), M symmetric positive definite, float64.

    N = R/scale has its spectrum in [0.6, 1.4]; the denoiser of ADMM that stands for the same R is
    the resolvent D = (I + N)⁻¹.
    """

    def __init__(self, problem, count=2, size=(28, 36), sigma=None):
        self.problem = problem_of(problem)
        self.truth = self.problem.crop(clean_images(count, *size).double())
        rngs = [generator("test", problem, "0") for _ in range(count)]  # the same mask for all
        self.observation = self.problem.observe(self.truth, rngs)
        if sigma is not None:
            self.observation = self.observation.with_sigma(sigma)
        n = self.truth[0, 0].numel()
        Q = orthogonal(n)
        spectrum = SCALE * torch.linspace(0.6, 1.4, n, dtype=torch.float64)
        self.M = ((Q * spectrum) @ Q.T).requires_grad_()

    def N(self, x):
        return (x.flatten(2) @ self.M.T / SCALE).view_as(x)

    def map(self, kind):
        if kind is not ADMM:
            return kind(self.N, self.observation, SCALE)
        inverse = torch.linalg.inv(torch.eye(len(self.M), dtype=torch.float64) + self.M / SCALE)
        return ADMM(lambda u: (u.flatten(2) @ inverse.T).view_as(u), self.observation, SCALE)

    def closed_form(self):
        """x* = (AᵀA + λM)⁻¹Aᵀy, and the gradient of ½‖x* - x̂‖² with respect to M."""
        A, observation = dense(self.observation.physics, self.truth), self.observation
        system = A.T @ A + observation.weight * self.M.detach()
        x = torch.linalg.solve(system, A.T @ observation.y.flatten(2).flatten(0, 1).T).T
        w = torch.linalg.solve(system, (x - self.truth.flatten(2).flatten(0, 1)).T).T
        return x.view_as(self.truth), -observation.weight * w.T @ x


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


@pytest.mark.parametrize("kind", [GradientDescent, ProximalGradient, ADMM])
@pytest.mark.parametrize("problem", TYPES)
def test_implicit_gradient_in_closed_form(problem, kind):
    """dℓ/dM of ℓ = ½‖x* - x̂‖², by implicit differentiation and by hand."""
    linear = Linear(problem, size=(28, 30))
    T = linear.map(kind)
    solves = {"iterations": 2000, "tolerance": 1e-10}
    backward = {"backward_iterations": 500, "backward_tolerance": 1e-10}
    z, solution = equilibrium(T, T.start(), **solves, **backward)
    assert solution.converged.all()
    loss = 0.5 * (T.restoration(z) - linear.truth).square().sum()
    (gradient,) = torch.autograd.grad(loss, linear.M)
    _, expected = linear.closed_form()
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()


def tiny_observation(problem="blur16", size=(4, 6)):
    """Images of a few pixels, for finite differences; a blur has an asymmetric 3 x 3 kernel."""
    tiny = problem_of(problem)
    if tiny.operator == "blur":
        kernel = np.arange(1.0, 10).reshape(3, 3)
        tiny.__dict__["kernel"] = kernel / kernel.sum()
    truth = clean_images(2, *size).double()
    return truth, tiny.observe(truth, [generator("test", problem, str(i)) for i in range(2)])


def nonlinear(W):
    """N(x) = 0.7 x + 0.3 tanh(W x), channel by channel."""
    return lambda x: 0.7 * x + 0.3 * torch.tanh(x.flatten(2) @ W.T).view_as(x)


@pytest.mark.parametrize("kind", [GradientDescent, ProximalGradient, ADMM])
@pytest.mark.parametrize("problem", ["den25", "blur16", "com80"])
def test_implicit_gradient_by_finite_differences(problem, kind):
    """torch.autograd.gradcheck of a nonlinear equilibrium, with respect to every weight."""
    _, observation = tiny_observation(problem)
    observation = observation.with_sigma(25 / 255)

    def restoration(W):
        T = kind(nonlinear(W), observation, SCALE)
        if kind is ADMM:
            T = ADMM(lambda u: u - 0.3 * nonlinear(W)(u), observation, SCALE)
        z, solution = equilibrium(
            T,
            T.start(),
            iterations=3000,
            tolerance=1e-13,
            backward_iterations=200,
            backward_tolerance=1e-13,
        )
        assert solution.converged.all()
        return T.restoration(z)

    W = (0.1 * white((24, 24), 3, torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(
        restoration, W, eps=1e-5, fast_mode=True, check_undefined_grad=False
    )


def test_torchdeq_finds_the_same_equilibrium_and_gradient():
    """A second implementation of the forward and of the backward solve."""
    truth, observation = tiny_observation()
    observation = observation.with_sigma(25 / 255)
    W = (0.1 * white((24, 24), 3, torch.float64)).requires_grad_()
    T = ProximalGradient(nonlinear(W), observation, SCALE)

    ours, _ = equilibrium(
        T,
        T.start(),
        iterations=300,
        tolerance=1e-12,
        backward_iterations=100,
        backward_tolerance=1e-12,
    )
    deq = get_deq(
        ift=True,
        f_solver="fixed_point_iter",
        b_solver="fixed_point_iter",
        f_max_iter=500,
        b_max_iter=500,
        f_tol=1e-12,
        b_tol=1e-12,
    )
    deq.train()
    theirs = deq(T, T.start())[0][-1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    gradients = [
        torch.autograd.grad((x - truth).square().sum(), W, retain_graph=True)[0]
        for x in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


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


def forward(acceleration=Plain, iterations=200, tolerance=1e-8):
    linear = Linear("sr2", count=1, size=(28, 30))
    T = linear.map(ProximalGradient)
    with torch.no_grad():
        return fixed_point(
            T, T.start(), iterations=iterations, tolerance=tolerance, acceleration=acceleration
        )


def test_acceleration_saves_evaluations():
    plain, momentum, anderson, safe = (int(forward(a).evaluations) for a in ACCELERATIONS)
    assert anderson < plain and momentum != plain
    assert safe == anderson  # it refuses nothing on a linear contraction


def test_window_changes_the_iterates():
    few, many = (forward(partial(Anderson, window=w), iterations=8) for w in (2, 6))
    assert many.residual < few.residual


def test_damping_changes_the_iterates():
    full, half = (forward(partial(Anderson, damping=d), iterations=6).x for d in (1.0, 0.5))
    assert (full - half).abs().max() > 1e-8


def test_undamped_window_of_one_is_the_plain_iteration():
    plain, anderson = forward(iterations=9), forward(partial(Anderson, window=1), iterations=9)
    torch.testing.assert_close(anderson.x, plain.x)


def test_tolerance_stops_the_iteration():
    loose, tight = forward(tolerance=1e-2), forward(tolerance=1e-6)
    assert loose.evaluations < tight.evaluations
    assert 1e-6 < loose.residual <= 1e-2 and tight.residual <= 1e-6


def test_momentum_restarts_when_the_residual_grows():
    x = torch.zeros(2, 1, 1, 1)
    momentum = Momentum(x)
    for residual in (1.0, 0.5, 0.4):
        momentum.next(x, x, torch.tensor([residual, residual]))
    momentum.next(x, x, torch.tensor([0.3, 0.9]))  # the second image grows
    assert momentum.t[1] == pytest.approx((1 + math.sqrt(5)) / 2) and momentum.t[0] > 2


def lasso():
    """T(x) = soft(x - Bᵀ(Bx - b), 0.02), nonexpansive, not smooth, on two images of 48 pixels."""
    B = white((20, 48), 5, torch.float64)
    B = B / torch.linalg.matrix_norm(B, 2)
    b = white((2, 20), 6, torch.float64)

    def T(x):
        z = x.flatten(1)
        z = z - (z @ B.T - b) @ B
        return (z.sign() * (z.abs() - 0.02).clamp_min(0)).view_as(x)

    return T, torch.zeros(2, 3, 4, 4, dtype=torch.float64)


def residuals_of(T, x0, acceleration, iterations=1200):
    """The relative residuals after every evaluation (n, B), and the solution."""
    seen = []
    solution = fixed_point(
        T,
        x0,
        iterations=iterations,
        tolerance=1e-9,
        acceleration=acceleration,
        watch=lambda k, x, residual: seen.append(residual.clone()),
    )
    return torch.stack(seen), solution


def test_the_safeguard_keeps_the_residual_monotone_where_anderson_does_not():
    T, x0 = lasso()
    (anderson, lost), (safe, found) = (residuals_of(T, x0, a) for a in (Anderson, Safeguarded))
    assert (anderson.diff(dim=0) > 0).any(0).all() and not lost.converged.any()
    assert (safe.diff(dim=0) <= 1e-15).all() and found.converged.all()
    assert not residuals_of(T, x0, Plain)[1].converged.any()


def test_the_safeguard_converges_where_momentum_oscillates():
    """Eigenvalues of T below -1/3 turn Nesterov's extrapolation unstable; T is a contraction."""
    slopes = torch.linspace(-0.95, 0.5, 48, dtype=torch.float64).view(1, 3, 4, 4)
    T, x0 = lambda x: slopes * x + 1, torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    (_, momentum), (_, safe) = (residuals_of(T, x0, a, 200) for a in (Momentum, Safeguarded))
    assert not momentum.converged.any() and safe.converged.all()
    torch.testing.assert_close(safe.x, 1 / (1 - slopes))


def test_a_refused_step_goes_back_to_the_last_iterate():
    x = [torch.full((2, 3, 4, 4), float(k)) for k in range(6)]
    safe = Safeguarded(x[0])
    step = lambda k, *residual: safe.next(x[k], x[1], torch.tensor(residual))  # noqa: E731
    step(1, 1.0, 1.0)
    safe.next(x[2], x[1], torch.tensor([0.5, 0.5]))
    assert safe.accepts(torch.tensor([0.4, 0.9])).tolist() == [True, False]
    y = step(3, 0.4, 0.9)
    assert torch.equal(y[1], x[2][1]) and safe.far.tolist() == [False, True]
    assert safe.accepts(torch.tensor([0.9, 0.9])).tolist() == [False, True]  # a plain step
    step(4, 0.3, 0.6)
    assert not safe.accepts(torch.tensor([0.1, 0.7]))[1] and safe.far[1]
    step(5, 0.2, 0.04)  # below a tenth of 0.5
    assert safe.far.tolist() == [False, False]


def test_the_safeguard_solves_every_image_as_if_alone():
    T, x0 = lasso()
    _, together = residuals_of(T, x0, Safeguarded, 60)
    _, alone = residuals_of(lambda x: T(torch.cat([x, x]))[:1], x0[:1], Safeguarded, 60)
    torch.testing.assert_close(alone.x[0], together.x[0])


def test_jacobian_free_gradient_points_the_same_way():
    truth, observation = tiny_observation("com80")
    W = (0.1 * white((24, 24), 3, torch.float64)).requires_grad_()
    T = ProximalGradient(nonlinear(W), observation.with_sigma(25 / 255), SCALE)
    gradients = []
    for iterations in (0, 100):
        x, _ = equilibrium(
            T,
            T.start(),
            iterations=300,
            tolerance=1e-12,
            backward_iterations=iterations,
            backward_tolerance=1e-10,
        )
        gradients.append(torch.autograd.grad((x - truth).square().sum(), W)[0].flatten())
    free, full = gradients
    assert torch.cosine_similarity(free, full, dim=0) > 0.9
    assert (free - full).norm() > 0.05 * full.norm()


def test_backward_solve_is_reported():
    truth, observation = tiny_observation()
    W = torch.zeros(24, 24, dtype=torch.float64, requires_grad=True)
    T = ProximalGradient(nonlinear(W), observation.with_sigma(25 / 255), SCALE)
    seen = []
    for iterations in (1, 50):
        x, _ = equilibrium(
            T,
            T.start(),
            iterations=100,
            tolerance=1e-8,
            backward_iterations=iterations,
            backward_tolerance=1e-8,
            report=seen.append,
        )
        (x - truth).square().sum().backward()
    assert not seen[0].converged.any() and seen[1].converged.all()
    assert seen[1].residual.max() < seen[0].residual.min()


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
@pytest.mark.parametrize("factor", [1.5, 1e30, math.nan])
def test_divergence_is_reported_with_finite_arrays(acceleration, factor):
    """One image diverges, the other converges as if alone, for a map with indexing or without."""

    class Map:
        def __init__(self, factors):
            self.factors = factors

        def __call__(self, x):
            return self.factors * x + 0.5

        def __getitem__(self, index):
            return Map(self.factors[index])

    factors = torch.tensor([0.5, factor]).view(2, 1, 1, 1)
    x0 = torch.full((2, 3, 4, 4), 0.5)
    for T in (Map(factors), lambda x: factors * x + 0.5):
        if acceleration in (Anderson, Safeguarded) and factor == 1.5:
            break  # an affine map in one unknown: Anderson finds its repelling fixed point
        solution = fixed_point(T, x0, iterations=100, tolerance=1e-6, acceleration=acceleration)
        assert solution.converged.tolist() == [True, False]
        assert solution.x.isfinite().all()
        assert solution.x[1].square().mean().sqrt() <= 10
        torch.testing.assert_close(solution.x[0], torch.ones(3, 4, 4), rtol=0, atol=1e-5)


def test_a_map_without_indexing_does_not_revive_a_diverged_image():
    calls = []

    def T(x):
        calls.append(1)
        return torch.full_like(x, 1e9) if len(calls) == 1 else torch.full_like(x, 0.5)

    both = lambda x: torch.cat([T(x[:1]), 0.9 * x[1:]])  # noqa: E731
    x0 = torch.ones(2, 3, 4, 4)
    solution = fixed_point(both, x0, iterations=30, tolerance=1e-6)
    assert not solution.converged[0] and torch.equal(solution.x[0], x0[0])


def test_adam_freezes_an_image_without_a_gradient():
    _, observation = tiny_observation()
    poison = lambda x: torch.where(x.new_tensor([1, 0]).view(2, 1, 1, 1) > 0, x * math.nan, x)  # noqa: E731
    T = GradientDescent(poison, observation, SCALE)
    solution = adam(T, iterations=5, learning_rate=0.01)
    assert solution.x.isfinite().all() and torch.equal(solution.x[0], observation.x0[0])
    assert solution.residual.isfinite().tolist() == [False, True]
    assert not torch.equal(solution.x[1], observation.x0[1])


def test_anderson_restarts_as_new_even_after_an_iterate_that_was_not_finite():
    """An image of a batch may be lost to a candidate that overflowed, while the others go on."""
    x, steps = torch.randn(
        2, 2, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )
    used = Anderson(x[0], window=3)
    used.next(torch.full_like(x[0], torch.nan), torch.full_like(x[0], torch.nan), None)
    used.restart(torch.tensor([True, False]))
    fresh = Anderson(x[0], window=3)
    fresh.step = used.step
    for T_x, step in zip(x, steps, strict=True):
        found, expected = used.next(T_x, step, None), fresh.next(T_x, step, None)
        assert torch.equal(found[0], expected[0])


def test_singular_anderson_system_falls_back_and_counts():
    """Equal residuals make a Gram matrix of ones: without a ridge it is singular."""
    x0 = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    T = lambda x: x + torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).to(x) - 0.5  # noqa: E731
    without, ridged = (
        fixed_point(
            T, x0, iterations=6, tolerance=1e-9, acceleration=partial(Anderson, ridge=ridge)
        )
        for ridge in (0.0, 1e-8)
    )
    assert without.fallbacks > 0 and ridged.fallbacks == 0
    assert without.x.isfinite().all() and not without.converged.any()
    plain = fixed_point(T, x0, iterations=6, tolerance=1e-9)
    assert plain.fallbacks == 0 and torch.equal(without.x, plain.x)


def stored_bytes(step) -> int:
    """Bytes that autograd keeps for the backward pass while `step` runs, counted once each."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = step()  # noqa: F841 (its graph must live while the storages are counted)
        return sum(storage.nbytes() for storage in storages.values())


def test_memory_does_not_grow_with_forward_iterations():
    problem = problem_of("blur16")
    observation = problem.observe(clean_images(1, 32, 32), [generator("test", "blur16", "0")])
    T = ProximalGradient(build({"channels": [4] * 4, "blocks": 1}, False, 0), observation, SCALE)

    def deq(iterations):
        return equilibrium(
            T,
            T.start(),
            iterations=iterations,
            tolerance=0.0,
            backward_iterations=10,
            backward_tolerance=0.0,
        )

    def unrolled(iterations):
        return fixed_point(T, T.start(), iterations=iterations, tolerance=0.0)

    assert stored_bytes(lambda: deq(100)) == stored_bytes(lambda: deq(10)) > 0
    assert stored_bytes(lambda: unrolled(100)) > 8 * stored_bytes(lambda: unrolled(10))


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
