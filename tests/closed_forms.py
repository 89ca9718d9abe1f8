"""Maps whose equilibria and gradients are known, for the tests of the solvers."""

from functools import cache

import numpy as np
import torch
from conftest import clean_images, dense, problem_of, white

from rerg.iteration import Anderson, Momentum, Plain, Safeguarded
from rerg.maps import ADMM
from rerg.problems import generator

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
