"""The variants: each loss by hand, and that nothing but the loss differs."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import clean_images, crops, problem_of, spec_of
from torch import nn

from rerg.bound import probes, surrogate
from rerg.equilibrium import ADMM, GradientDescent, ProximalGradient
from rerg.problems import generator
from rerg.training import build_networks, draw_batch, settings_of, start_from, take_step
from rerg.variants import VARIANTS, Batch, module, reconstruction_loss, restoring_map

SETTINGS = settings_of(spec_of("rerg", 100))


def fixed_batch(problem="den25", step=0, count=2):
    described, truth = problem_of(problem), clean_images(count, 32, 32, seed=3)
    rngs = [generator("test", problem, str(i)) for i in range(count)]
    return Batch(truth, described.observe(truth, rngs), np.random.default_rng(0), step)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_falls_on_a_fixed_batch_and_weights_change(variant, trained):
    spec = spec_of(variant, 100)
    networks = build_networks(spec)
    start_from(networks, trained)
    before = copy.deepcopy(networks.state_dict())
    optimizer = torch.optim.Adam(networks.parameters(), lr=2e-4)
    rows = []
    for _ in range(8):
        batch = draw_batch(crops, [problem_of("blur16")], 0, 0)  # with the same noise and probes
        rows.append(take_step(variant, networks, optimizer, batch, settings_of(spec), 1.0))
    assert all(row["skipped"] == 0 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not any(torch.equal(before[k], v) for k, v in networks.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_its_loss_and_its_networks(variant):
    """Every network has the same body, with or without a noise map, from the same seed."""
    own = {
        k
        for k, v in vars(module(variant)).items()
        if getattr(v, "__module__", 0) in (f"rerg.variants.{variant}", 0) and not k.startswith("_")
    }
    assert own - {"WEIGHT", "F"} == {"NETWORKS", "loss"}
    networks = build_networks(spec_of(variant, 100))
    assert {k: v.conditioned for k, v in networks.items()} == module(variant).NETWORKS
    reference = build_networks(spec_of("red", 100))["rg"].state_dict()
    if "rg" in networks:
        assert all(torch.equal(reference[k], v) for k, v in networks["rg"].state_dict().items())


def test_red_is_zero_for_a_network_that_sees_the_noise():
    batch = fixed_batch()
    loss, _ = module("red").loss({"rg": lambda u: u - batch.truth}, batch, SETTINGS)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    nothing, _ = module("red").loss({"rg": torch.zeros_like}, fixed_batch(), SETTINGS)
    assert nothing.item() == pytest.approx((50 / 255) ** 2 / 3, rel=0.9)  # E σ² of U(0, 50/255)


@pytest.mark.parametrize("step", [0, 1])
def test_rg_by_hand(step):
    """δ‖D - x̂‖₁ + 0.004‖s²R(D) - (x̂ + n - D)‖² with R = 400 N and both levels drawn again."""
    networks = build_networks(spec_of("rg", 100))
    value, _ = module("rg").loss(networks, fixed_batch(step=step), SETTINGS)
    batch = fixed_batch(step=step)
    level = batch.levels()
    noisy = batch.truth + level * batch.normal()
    s = batch.levels() if step else level
    denoised = noisy - networks["denoiser"](noisy, s)
    regularizer = s**2 * 400 * networks["rg"](denoised) - (noisy - denoised)
    expected = 0.004 * (regularizer**2).mean()
    if step == 0:
        expected = expected + (denoised - batch.truth).abs().mean()
    torch.testing.assert_close(value, expected)


def test_rg1_is_the_surrogate():
    networks = build_networks(spec_of("rg1", 100))
    value, _ = module("rg1").loss(networks, fixed_batch("sr2"), SETTINGS)
    batch = fixed_batch("sr2")
    T = ProximalGradient(networks["rg"], batch.observation, 400)
    expected = surrogate(T, batch.truth, probes(batch.truth, batch.observation.x0, batch.rng))
    assert value.item() == expected.item()


def test_deqgd_in_closed_form():
    """N(x) = x - x̂ has the equilibrium prox_{(c/λ)F}(x̂): for denoising (x̂ + ty)/(1 + t)."""
    batch = fixed_batch("den25")
    value, log = module("deqgd").loss({"rg": lambda x: x - batch.truth}, batch, SETTINGS)
    t = 1 / (400 * (25 / 255) ** 2)
    assert value.item() == pytest.approx((t / (1 + t)) ** 2, rel=1e-3)
    assert log["converged"] == 1 and log["lost"] == 0


def test_rerg_is_deqgd_and_the_bound(trained):
    """Its loss exceeds deqgd's by β times the surrogate, and is deqgd's where β = 0."""
    values = {}
    for beta in (0.0, 0.05, 0.5):
        settings = settings_of(spec_of("rerg", 100, beta=beta))
        values[beta], log = module("rerg").loss(trained, fixed_batch("sr2"), settings)
    deqgd, _ = module("deqgd").loss(trained, fixed_batch("sr2"), SETTINGS)
    assert values[0.0].item() == pytest.approx(deqgd.item(), rel=1e-6)
    for beta in (0.05, 0.5):
        assert values[beta].item() == pytest.approx(deqgd.item() + beta * log["bound"], rel=1e-5)


def test_beta_changes_the_gradient(trained):
    gradients = []
    for beta in (0.0, 0.5):
        networks = build_networks(spec_of("rerg", 100))
        start_from(networks, trained)
        settings = settings_of(spec_of("rerg", 100, beta=beta))
        value, _ = module("rerg").loss(networks, fixed_batch("sr2"), settings)
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

        value, log = module("mtdeq").loss({"denoiser": N}, batch, SETTINGS)
        assert told == {problem_of(problem).sigma}
        if problem == "den25":
            assert log["converged"] == 1 and value.item() < 1e-3


@pytest.mark.parametrize("variant", ["deqgd", "rerg", "mtdeq"])
def test_lost_images_are_left_out(variant):
    """The second image's map repels: the loss is the first one's, and the log says so."""
    batch = fixed_batch("den25")

    def N(x, level=None):
        repels = torch.arange(len(x)).view(-1, 1, 1, 1) == 1 if len(x) == 2 else True
        return torch.where(torch.as_tensor(repels), -9 * x - 1, x - batch.truth[:1])

    settings = settings_of(spec_of(variant, 100, beta=0.0))
    T = restoring_map(variant, {"rg": N, "denoiser": N}, batch.observation, 400, "fast")
    value, _, log = reconstruction_loss(Unshrinkable(T), batch, settings)
    assert log["lost"] == 0.5 and math.isfinite(value.item())
    sound = {"rg": lambda x: x - batch.truth[:1], "denoiser": lambda x, _: x - batch.truth[:1]}
    first = Batch(batch.truth[:1], batch.observation[torch.tensor([0])], batch.rng, 0)
    alone, _ = module(variant).loss(sound, first, settings)
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
            return self.w * x - 1

    networks = nn.ModuleDict({"rg": Repelling()})
    before = networks["rg"].w.item()
    optimizer = torch.optim.Adam(networks.parameters(), lr=1e-2)
    row = take_step("deqgd", networks, optimizer, fixed_batch(), SETTINGS, 1.0)
    assert row["skipped"] == 1 and row["lost"] == 1 and math.isnan(row["loss"])
    assert networks["rg"].w.item() == before
    row = take_step("rerg", networks, optimizer, fixed_batch(), SETTINGS, 1.0)
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
    row = take_step("red", networks, optimizer, fixed_batch(), SETTINGS, 1.0)
    assert row["skipped"] == 1 and networks["rg"].w.item() == 1.0


def test_flat_images_without_noise_do_not_swamp_the_loss():
    """x0 = x̂ up to rounding: the error is divided by a grey level's, not by rounding."""
    described, truth = problem_of("sr2g"), torch.ones(2, 3, 32, 32)
    observation = described.observe(truth, [generator("a", "b", "c")] * 2)
    assert (observation.x0 - truth).abs().max() < 1e-5
    batch = Batch(truth, observation, np.random.default_rng(0), 0)
    networks = build_networks(spec_of("deqgd", 100))
    value, _ = module("deqgd").loss(networks, batch, SETTINGS)
    assert value is None or value.item() < 1e4


def test_restoring_map_of_every_solver():
    batch = fixed_batch()
    networks = build_networks(spec_of("rg", 100))
    kinds = [
        type(restoring_map(variant, networks, batch.observation, 400, solver))
        for variant, solver in (("rg", "fast"), ("rg", "gd"), ("rg", "adam"), ("mtdeq", "fast"))
    ]
    assert kinds == [ProximalGradient, GradientDescent, GradientDescent, ADMM]
