"""Rate and rollback: warm-up, width, and a planted divergence that is undone, bit for bit."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from conftest import crops, spec_of
from torch import nn

from rerg.rollback import MEMORY, WINDOW, Rollback
from rerg.specs import NetworkSpec
from rerg.training import REST, WARM_UP, WIDTH, learning_rate, train


def test_the_rate_rises_over_a_tenth_of_the_budget_and_falls_to_zero():
    spec = spec_of("red", 1000)
    spec = replace(spec, network=NetworkSpec((WIDTH, 8, 8, 8), 1, 400.0))
    rates = [learning_rate(spec, WINDOW, spent) for spent in range(1001)]
    top = rates.index(max(rates))
    assert top == pytest.approx(WARM_UP * 1000, abs=1)
    assert rates[top] == pytest.approx(spec.learning_rate, rel=0.03)
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(rates[top:]))
    assert rates[0] == 0 and rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_first_steps_have_no_rate_but_within_a_twentieth_of_the_budget():
    spec = spec_of("red", 1000)
    assert learning_rate(spec, WINDOW - 1, REST * 1000 - 1) == 0
    assert learning_rate(spec, WINDOW - 1, REST * 1000) > 0
    assert learning_rate(spec, WINDOW, REST * 1000 - 1) > 0


@pytest.mark.parametrize("width", [4, 32, 64])
def test_the_rate_falls_with_the_width(width):
    narrow, wide = (
        replace(spec_of("red", 1000), network=NetworkSpec((w, 8, 8, 8), 1, 400.0))
        for w in (WIDTH, width)
    )
    ratio = learning_rate(narrow, 50, 300) / learning_rate(wide, 50, 300)
    assert ratio == pytest.approx(width / WIDTH)


def test_halving_keeps_the_warm_up():
    spec = replace(spec_of("red", 1000), halve_every=100)
    assert learning_rate(spec, 20, 50) == pytest.approx(learning_rate(spec, 20, 100) / 2)
    assert learning_rate(spec, 299, 500) == pytest.approx(learning_rate(spec, 20, 500) / 4)


def watched(errors, **more):
    """A rollback of one weight, which is the number of the step, after rows with such errors."""
    network = nn.Linear(1, 1, bias=False)
    rollback = Rollback(network, torch.optim.Adam(network.parameters()))
    back = []
    for step, error in enumerate(errors):
        with torch.no_grad():
            network.weight.fill_(step + 1)
        row = {"loss": error, "skipped": 0, **{k: v[step] for k, v in more.items()}}
        if rollback.watch(row):
            back.append((step, network.weight.item()))
    return rollback, back


def test_healthy_noise_is_left_alone():
    errors = [math.exp(math.sin(7 * k)) for k in range(30 * WINDOW)]  # a factor of e up and down
    rollback, back = watched(errors)
    assert back == [] and rollback.factor == 1


def test_a_jump_of_the_error_goes_back_to_the_older_of_two_good_windows():
    errors = [1.0] * (5 * WINDOW) + [4.0] * WINDOW
    rollback, back = watched(errors)
    assert back == [(6 * WINDOW - 1, 4 * WINDOW)]
    assert rollback.factor == 0.5 and rollback.count == 1


def test_the_younger_of_two_good_windows_is_given_up():
    """A jump, a good window and a jump go back to the same state, the last before both."""
    errors = [1.0] * (5 * WINDOW) + [4.0] * WINDOW + [1.0] * WINDOW + [4.0] * WINDOW
    rollback, back = watched(errors)
    assert back == [(6 * WINDOW - 1, 4 * WINDOW), (8 * WINDOW - 1, 4 * WINDOW)]
    assert rollback.factor == 0.25


def test_a_slow_rise_is_judged_by_the_last_windows():
    assert watched([1.2**k for k in range(MEMORY) for _ in range(WINDOW)])[1] == []
    assert watched([1.7**k for k in range(MEMORY) for _ in range(WINDOW)])[1] != []


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_a_start_without_a_finite_error_is_no_reference(error):
    _, back = watched([error] * WINDOW + [1.0] * WINDOW + [4.0] * WINDOW)
    assert back == [(3 * WINDOW - 1, WINDOW)]


def test_lost_images_and_skipped_steps_go_back():
    errors = [1.0] * (2 * WINDOW)
    for key in ("lost", "skipped"):
        shares = [0.0] * WINDOW + [1.0] * WINDOW
        assert watched(errors, **{key: shares})[0].count == 1
        assert watched(errors, **{key: [1.0] * (2 * WINDOW)})[0].count == 0  # as at the start
    assert watched(errors, lost=[0.0] * WINDOW + [0.4] * WINDOW)[0].count == 0


def test_weights_that_are_not_finite_go_back():
    network = nn.Linear(1, 1, bias=False)
    rollback = Rollback(network, torch.optim.Adam(network.parameters()))
    before = network.weight.item()
    for _ in range(WINDOW):
        with torch.no_grad():
            network.weight.fill_(math.nan)
        back = rollback.watch({"loss": 1.0, "skipped": 0})
    assert back and network.weight.item() == before


PLANTED = {"learning_rate": 1.0}  # a thousand times too much


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A training of `red` at a rate that destroys it."""
    spec = replace(spec_of("red", 400), **PLANTED)
    networks, rows = train(spec, crops, None, tmp_path_factory.mktemp("planted") / "a", log_every=5)
    return spec, networks, rows


def test_a_planted_divergence_is_rolled_back(planted):
    spec, networks, rows = planted
    assert rows[-1]["rollbacks"] >= 2
    assert all(bool(p.isfinite().all()) for p in networks.parameters())
    assert rows[-1]["loss"] < 3 * rows[0]["loss"] < max(row["loss"] for row in rows)
    plain = [learning_rate(spec, row["step"] - 1, row["evaluations"] - 2) for row in rows]
    assert rows[-2]["rate"] < 0.3 * plain[-2]


class Broken(Exception):
    """In the place of a kill."""


def test_a_training_resumed_amid_rollbacks_ends_in_the_same_bits(planted, tmp_path):
    spec, unbroken, rows = planted
    went_back = next(row["step"] for row in rows if row["rollbacks"] == 1)
    calls = []

    def breaking(rng):
        calls.append(1)
        if len(calls) > went_back + WINDOW // 2:
            raise Broken
        return crops(rng)

    with pytest.raises(Broken):
        train(spec, breaking, None, tmp_path / "b", log_every=5, checkpoint_every=0)
    resumed, again = train(spec, crops, None, tmp_path / "b", log_every=5)
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [row["rollbacks"] for row in again] == [row["rollbacks"] for row in rows]
