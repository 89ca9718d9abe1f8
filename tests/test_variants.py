"""The variants: each loss by hand, and that nothing but the loss differs."""

import copy
import math

import pytest
import torch
from conftest import TRAINED, batch_of, clean_images, crops, problem_of, spec_of
from torch import nn

from rerg.batch import LEVEL
from rerg.bound import Iterate, probes, surrogate
from rerg.maps import ADMM, ProximalGradient
from rerg.models import build, start_from
from rerg.problems import generator
from rerg.reconstruction import reconstruction_loss
from rerg.registry import load
from rerg.solvers import fast
from rerg.training import draw_batch, optimizer_of, take_step


def fixed_batch(problem="den25", step=0, count=2):
    described, truth = problem_of(problem), clean_images(count, 32, 32, seed=3)
    rngs = [generator("test", problem, str(i)) for i in range(count)]
    return batch_of(truth, described.observe(truth, rngs), step)


def loss_of(variant, networks, batch, **changes):
    """The loss of a variant and its log."""
    return load("variants", variant).loss(networks, batch, spec_of(variant, 100, **changes))


@pytest.mark.parametrize("variant", TRAINED)
def test_loss_falls_on_a_fixed_batch_and_weights_change(variant, trained):
    spec = spec_of(variant, 100)
    networks = build(spec)
    start_from(networks, trained)
    before = copy.deepcopy(networks.state_dict())
    optimizer = optimizer_of(networks, 2e-4)
    rows = []
    for _ in range(8):
        batch = draw_batch(crops, [problem_of("blur16")], 0, 0)  # with the same noise and probes
        rows.append(take_step(spec, networks, optimizer, batch))
    assert all(row["skipped"] == 0 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not any(torch.equal(before[k], v) for k, v in networks.state_dict().items())


@pytest.mark.parametrize("variant", TRAINED)
def test_a_step_depends_on_its_batch_and_its_spec_alone(variant, trained):
    """No variant keeps a state of its own, trains on the side, or draws from a global generator."""
    spec, ends = spec_of(variant, 100), []
    for _ in range(2):
        networks = build(spec)
        start_from(networks, trained)
        optimizer = optimizer_of(networks, 1e-3)
        for step in range(2):
            batch = draw_batch(crops, [problem_of("sr2")], 0, step)
            clean = batch.truth.clone()
            take_step(spec, networks, optimizer, batch)
            assert torch.equal(batch.truth, clean)
        ends.append(torch.cat([p.detach().flatten() for p in networks.parameters()]))
        torch.manual_seed(1)
    assert torch.equal(*ends)


def test_red_is_zero_for_a_network_that_sees_the_noise():
    batch = fixed_batch()
    value, _ = loss_of("red", {"rg": lambda u: u - batch.truth}, batch)
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_red_is_the_power_of_the_noise_for_a_network_that_sees_nothing():
    """Each image has a level of its own, whose square is the mean of U(0, 50/255)'s over many."""
    value, _ = loss_of("red", {"rg": torch.zeros_like}, fixed_batch(count=4))
    levels = fixed_batch(count=4).levels()
    assert value.item() == pytest.approx(levels.square().mean().item(), rel=0.05)
    assert len(set(levels.flatten().tolist())) == 4 and 0 < levels.min() < levels.max() < LEVEL
    many = batch_of(torch.zeros(4000, 1, 1, 1), None).levels()
    assert many.square().mean().item() == pytest.approx((50 / 255) ** 2 / 3, rel=0.05)


@pytest.mark.parametrize("step", [0, 1])
def test_rg_by_hand(step):
    """δ‖D - x̂‖₁ + 0.004‖s²R(D) - (x̂ + n - D)‖² with R = 400 N and both levels drawn again."""
    networks = build(spec_of("rg", 100))
    value, _ = loss_of("rg", networks, fixed_batch(step=step))
    batch = fixed_batch(step=step)
    level = batch.levels()
    noisy = batch.truth + level * batch.noise
    s = batch.levels() if step else level
    denoised = noisy - networks["denoiser"](noisy, s)
    regularizer = s**2 * 400 * networks["rg"](denoised) - (noisy - denoised)
    expected = 0.004 * (regularizer**2).mean()
    if step == 0:
        expected = expected + (denoised - batch.truth).abs().mean()
    torch.testing.assert_close(value, expected)


def test_rg1_is_the_surrogate():
    networks = build(spec_of("rg1", 100))
    value, log = loss_of("rg1", networks, fixed_batch("sr2"))
    batch = fixed_batch("sr2")
    T = ProximalGradient(networks["rg"], batch.observation, 400)
    path = Iterate(T.start(), batch.rng, 8)
    with torch.no_grad():
        fast.solve(T, iterations=8, tolerance=1e-3, watch=path)
    e = probes(batch.truth, batch.observation.x0, batch.rng, path.x, batch.noise)
    expected = surrogate(T, batch.truth, e)
    assert value.item() == expected.item()
    assert log["error"].item() == pytest.approx(expected.exp().item())


def test_deqgd_in_closed_form():
    """N(x) = x - x̂ has the equilibrium prox_{(c/λ)F}(x̂): for denoising (x̂ + ty)/(1 + t)."""
    batch = fixed_batch("den25")
    value, log = loss_of("deqgd", {"rg": lambda x: x - batch.truth}, batch)
    t = 1 / (400 * (25 / 255) ** 2)
    assert value.item() == pytest.approx((t / (1 + t)) ** 2, rel=1e-3)
    assert log["converged"] == 1 and log["lost"] == 0


def test_rerg_is_deqgd_and_the_bound(trained):
    """Its loss exceeds deqgd's by β times the surrogate, and is deqgd's where β = 0."""
    values = {}
    for beta in (0.0, 0.05, 0.5):
        parameters = {"beta": beta}
        values[beta], log = loss_of("rerg", trained, fixed_batch("sr2"), parameters=parameters)
    deqgd, _ = loss_of("deqgd", trained, fixed_batch("sr2"))
    assert values[0.0].item() == pytest.approx(deqgd.item(), rel=1e-6)
    for beta in (0.05, 0.5):
        expected = deqgd.item() + beta * log["bound"].item()
        assert values[beta].item() == pytest.approx(expected, rel=1e-5)


def test_beta_changes_the_gradient(trained):
    gradients = []
    for beta in (0.0, 0.5):
        networks = build(spec_of("rerg", 100))
        start_from(networks, trained)
        parameters = {"beta": beta}
        value, _ = loss_of("rerg", networks, fixed_batch("sr2"), parameters=parameters)
        value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in networks.parameters()]))
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


def test_mtdeq_tells_its_denoiser_the_sigma_of_the_problem():
    """D = x̂ makes x* = x̂; every call is told σ, which for completion is not the noise level."""
    for problem in ("den25", "sr2", "com80"):
        batch, told = fixed_batch(problem, count=1), set()

        def N(u, level, batch=batch, told=told):
            told.add(level)
            return u - batch.truth

        value, log = loss_of("mtdeq", {"denoiser": N}, batch)
        assert told == {problem_of(problem).sigma}
        if problem == "den25":
            assert log["converged"] == 1 and value.item() < 1e-3


@pytest.mark.parametrize("kind", [ProximalGradient, ADMM])
def test_lost_images_are_left_out(kind):
    """The second image's map repels: the loss is the first one's, and the log says so."""
    batch, spec = fixed_batch("den25"), spec_of("rerg", 100).equilibrium

    def N(x):
        repels = torch.arange(len(x)).view(-1, 1, 1, 1) == 1
        return torch.where(repels, -9 * x.abs() - 1, x - batch.truth[:1])

    def sound(x):
        return x - batch.truth[:1]

    def map_of(network, observation):
        D = (lambda u: u - network(u)) if kind is ADMM else network
        return kind(D, observation, 400)

    T = Unshrinkable(map_of(N, batch.observation))
    value, log = reconstruction_loss(T, batch, spec)
    assert log["lost"] == 0.5
    first = batch_of(batch.truth[:1], batch.observation[torch.tensor([0])])
    alone, log = reconstruction_loss(map_of(sound, first.observation), first, spec)
    assert log["lost"] == 0
    assert value.item() == pytest.approx(alone.item(), rel=1e-2, abs=1e-4)


class Unshrinkable:
    """A map that is always given the whole batch, so that a network can tell its images apart."""

    def __init__(self, T):
        self.T = T
        self.start, self.restoration = T.start, T.restoration

    def __call__(self, x):
        return self.T(x)


def test_without_any_fixed_point_deqgd_skips_and_rerg_learns_from_the_bound():
    class Repelling(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(-9.0))

        def forward(self, x):
            return self.w * x.abs() - 1  # below zero: x = T(x) has no solution

    networks = nn.ModuleDict({"rg": Repelling()})
    before = networks["rg"].w.item()
    optimizer = torch.optim.Adam(networks.parameters(), lr=1e-2)
    row = take_step(spec_of("deqgd", 100), networks, optimizer, fixed_batch())
    assert row["skipped"] == 1 and row["lost"] == 1 and math.isnan(row["loss"])
    assert networks["rg"].w.item() == before
    row = take_step(spec_of("rerg", 100), networks, optimizer, fixed_batch())
    assert row["skipped"] == 0 and row["lost"] == 1
    assert networks["rg"].w.item() > before  # towards a contraction


def test_a_step_without_a_finite_gradient_changes_nothing():
    class Poisoned(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.w * x * math.nan

    networks = nn.ModuleDict({"rg": Poisoned()})
    optimizer = torch.optim.Adam(networks.parameters(), lr=1e-2)
    row = take_step(spec_of("red", 100), networks, optimizer, fixed_batch())
    assert row["skipped"] == 1 and networks["rg"].w.item() == 1.0


def test_flat_images_without_noise_do_not_swamp_the_loss():
    """x0 = x̂ up to rounding: the error is divided by a grey level's, not by rounding."""
    described, truth = problem_of("sr2g"), torch.ones(2, 3, 32, 32)
    observation = described.observe(truth, [generator("a", "b", "c")] * 2)
    assert (observation.x0 - truth).abs().max() < 1e-5
    batch = batch_of(truth, observation)
    off = 3 / 255  # the equilibrium is x̂ + off, as what N leaves is left by the data too
    value, log = loss_of("deqgd", {"rg": lambda x: x - truth - off}, batch)
    assert log["lost"] == 0
    assert 0 < value.item() < 3**2  # (3 grey levels, less what the data take)² over one's
