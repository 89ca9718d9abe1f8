"""Implicit gradients: closed forms, finite differences, a second implementation, memory."""

import pytest
import torch
from closed_forms import SCALE, TYPES, Linear, nonlinear, tiny_observation
from conftest import clean_images, problem_of, white
from torchdeq import get_deq

from rerg.equilibrium import equilibrium
from rerg.iteration import fixed_point
from rerg.maps import ADMM, GradientDescent, ProximalGradient
from rerg.networks import UNet
from rerg.problems import generator


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


@pytest.mark.parametrize("problem", ["den25", "com80"])
def test_implicit_gradient_of_an_r_fifty_times_too_strong(problem):
    """The backward solve finds its step as the forward one does."""
    linear = Linear(problem, count=1, size=(28, 30))
    linear.M = (50 * linear.M.detach()).requires_grad_()
    T = linear.map(ProximalGradient)
    solves = {"iterations": 300, "tolerance": 1e-10}
    z, _ = equilibrium(T, T.start(), **solves, backward_iterations=200, backward_tolerance=1e-9)
    (gradient,) = torch.autograd.grad(0.5 * (z - linear.truth).square().sum(), linear.M)
    _, expected = linear.closed_form()
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()


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
    T = ProximalGradient(UNet([4] * 4, 1), observation, SCALE)

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
