"""The UNet: sizes, evaluations, seeds, and weights that are refused in one line."""

import json

import numpy as np
import pytest
import torch
import torch._inductor.config
from conftest import spec_of, white
from torch import nn

from rerg.config import InputError, digest
from rerg.equilibrium import ProximalGradient, equilibrium
from rerg.networks import build, compile_networks, copy_weights, load_weights, save_weights
from rerg.problems import Problem
from rerg.training import build_networks

SPEC = {"channels": [4, 4, 8, 8], "blocks": 1, "scale": 400}


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (33, 17)])
@pytest.mark.parametrize("conditioned", [False, True])
def test_any_size(size, conditioned):
    network = build(SPEC, conditioned, 0)
    x = white((2, 3, *size))
    level = 0.1 if conditioned else None
    assert network(x, level).shape == x.shape
    assert torch.equal(network(0 * x, 0.0), 0 * x)  # without biases


def test_noise_map_takes_a_level_or_one_per_image():
    network = build(SPEC, True, 0)
    x = white((2, 3, 16, 16))
    levels = torch.tensor([0.05, 0.2]).view(2, 1, 1, 1)
    both = network(x, levels)
    torch.testing.assert_close(both[:1], network(x[:1], 0.05))
    torch.testing.assert_close(both[1:], network(x[1:], 0.2))
    assert not torch.allclose(network(x, 0.05), network(x, 0.2))


def test_seed_decides_the_weights():
    state = torch.random.get_rng_state()
    a, b, c = (build(SPEC, False, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_evaluations_count_passes_forward_and_backward():
    network, x = build(SPEC, False, 0), white((2, 3, 16, 16))
    with torch.no_grad():
        network(x)
    assert network.evaluations == 1
    network(x).square().sum().backward()
    assert network.evaluations == 3  # a forward and a backward pass more


def test_evaluations_of_a_deq_step():
    """K forward, one to attach the graph, L of the backward solve and one into the weights."""
    problem = Problem("den", {"operator": "identity", "noise": 25, "sigma": 25})
    truth = torch.full((1, 3, 16, 16), 0.5)
    observation = problem.observe(truth, [np.random.default_rng(0)])
    network = build(SPEC, False, 0)
    T = ProximalGradient(network, observation, 400)
    x, _ = equilibrium(
        T,
        T.start(),
        iterations=7,
        tolerance=0.0,
        backward_iterations=5,
        backward_tolerance=0.0,
    )
    assert network.evaluations == 7 + 1
    x.square().sum().backward()
    assert network.evaluations == 7 + 1 + 5 + 1


def test_a_noise_map_starts_without_effect():
    source, target = build(SPEC, False, 0), build(SPEC, True, 1)
    copy_weights(source, target)
    x = white((1, 3, 16, 16))
    torch.testing.assert_close(target(x, 0.2), source(x), rtol=0, atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    spec = spec_of("rg1", 100)
    networks = build_networks(spec)
    path = tmp_path / "rg1.safetensors"
    save_weights(path, networks, {"variant": "rg1", "config": digest(spec)})
    return spec, networks, path


def test_weights_survive_their_file(saved):
    spec, networks, path = saved
    loaded = build_networks({**spec, "seed": 5})
    about = load_weights(path, loaded, {"config": digest(spec)})
    assert about["variant"] == "rg1"
    for a, b in zip(networks.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)


def refusal(path, networks, expected=None):
    with pytest.raises(InputError) as caught:
        load_weights(path, networks, expected or {})
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


def test_a_machine_that_cannot_compile_is_one_line():
    networks = nn.ModuleDict({"rg": build(SPEC, False, 0)})
    with (
        torch._inductor.config.patch(
            {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
        ),
        pytest.raises(InputError) as error,
    ):
        compile_networks(networks)
    assert str(error.value).startswith("compile: torch.compile does not work here: ")
    assert "\n" not in str(error.value)


def test_weights_of_another_architecture_are_refused(saved):
    spec, _, path = saved
    wider = build_networks({**spec, "network": {**spec["network"], "channels": [8, 8, 8, 8]}})
    assert "another architecture" in refusal(path, wider)
    assert "another architecture" in refusal(path, build_networks({**spec, "variant": "mtdeq"}))


def test_weights_of_another_config_are_refused(saved):
    spec, networks, path = saved
    message = refusal(path, networks, {"config": digest({**spec, "seed": 1})})
    assert "config" in message and digest(spec) in message


def test_altered_weights_are_refused(saved):
    _, networks, path = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "not those that rg1.json describes" in refusal(path, networks)
    path.write_bytes(content[: len(content) // 2])
    assert "not those" in refusal(path, networks)


def test_missing_or_broken_descriptions_are_refused(saved):
    _, networks, path = saved
    about = path.with_suffix(".json")
    text = about.read_text()
    assert json.loads(text)["sha256"]
    about.write_text(text[:20])
    assert "expected a JSON description" in refusal(path, networks)
    about.unlink()
    assert "no such file" in refusal(path, networks)


def test_bf16_is_close_to_float32_and_stays_float32_outside():
    network = build(SPEC, True, 0)
    x = white((2, 3, 16, 16)).requires_grad_()
    exact = network(x, 0.1)
    (gradient,) = torch.autograd.grad(exact.square().sum(), x)
    network.precision = "bf16"
    rough = network(x, 0.1)
    (rough_gradient,) = torch.autograd.grad(rough.square().sum(), x)
    assert rough.dtype == rough_gradient.dtype == torch.float32
    for a, b in ((exact, rough), (gradient, rough_gradient)):
        error = (a - b).norm() / a.norm()
        assert 1e-5 < error < 3e-2  # bfloat16 has 8 bits, and was used
