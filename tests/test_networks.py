"""The UNet: sizes, noise maps, evaluations, precision, ways to launch its kernels."""

import numpy as np
import pytest
import torch
from conftest import problem_of, white
from torch import nn

from rerg.equilibrium import equilibrium
from rerg.maps import ProximalGradient
from rerg.networks import Graphs, UNet, launch


def unet(conditioned=False):
    torch.manual_seed(0)
    return UNet([4, 4, 8, 8], 1, conditioned)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (33, 17)])
@pytest.mark.parametrize("conditioned", [False, True])
def test_any_size(size, conditioned):
    network = unet(conditioned)
    x = white((2, 3, *size))
    level = 0.1 if conditioned else None
    assert network(x, level).shape == x.shape
    assert torch.equal(network(0 * x, 0.0), 0 * x)  # without biases


def test_noise_map_takes_a_level_or_one_per_image():
    network = unet(True)
    x = white((2, 3, 16, 16))
    levels = torch.tensor([0.05, 0.2]).view(2, 1, 1, 1)
    both = network(x, levels)
    torch.testing.assert_close(both[:1], network(x[:1], 0.05))
    torch.testing.assert_close(both[1:], network(x[1:], 0.2))
    assert not torch.allclose(network(x, 0.05), network(x, 0.2))


def test_evaluations_count_passes_forward_and_backward():
    network, x = unet(), white((2, 3, 16, 16))
    with torch.no_grad():
        network(x)
    assert network.evaluations == 1
    network(x).square().sum().backward()
    assert network.evaluations == 3  # a forward and a backward pass more


def test_evaluations_of_a_deq_step():
    """K forward, one to attach the graph, L of the backward solve and one into the weights."""
    truth = torch.full((1, 3, 16, 16), 0.5)
    observation = problem_of("den25").observe(truth, [np.random.default_rng(0)])
    network = unet()
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


def test_bf16_is_close_to_float32_and_stays_float32_outside():
    network = unet(True)
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


def test_graphs_are_of_passes_without_gradients_over_shapes_that_come_again(monkeypatch):
    """Recording itself needs a GPU: here a recorded pass is twice a plain one."""
    network, keys = unet(), []

    def record(self, z):
        keys.append((torch.is_autocast_enabled("cpu"), *z.shape))
        return lambda z: 2 * self.body(z)

    monkeypatch.setattr(Graphs, "record", record)
    x, other = white((2, 3, 16, 16)), white((1, 3, 16, 24))
    with torch.no_grad():
        plain = network(x)
    launch(nn.ModuleDict({"rg": network}), "graphs")
    with torch.no_grad():
        passes = [network(x) for _ in range(3)]
        network(other)
        assert torch.equal(passes[0], plain) and keys == [(False, 2, 3, 16, 16)]
        assert all(torch.equal(out, 2 * plain) for out in passes[1:])
        network.precision = "bf16"
        network(x)
        assert len(keys) == 1
        network(x)
    assert keys[1:] == [(True, 2, 3, 16, 16)]
    network.precision = "float32"
    assert torch.equal(network(x), plain) and network(x).requires_grad
    assert network.passes == [9, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_graphs_give_the_bits_of_plain_passes(precision, monkeypatch):
    # else two plain passes may differ: a transposed convolution adds in any order
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    plain, network = (unet(True).cuda().requires_grad_(False) for _ in range(2))
    plain.precision = network.precision = precision
    launch(nn.ModuleDict({"rg": network}), "graphs")
    kept = []
    with torch.no_grad():
        for step in range(4):
            for size in ((4, 3, 32, 32), (1, 3, 21, 40)):
                x = white(size, step).cuda()
                kept.append((network(x, 0.1), plain(x, 0.1)))
            for weights in (*plain.parameters(), *network.parameters()):
                weights *= 1.1  # as an optimizer changes them
    assert len(network.body.recorded) == 2
    for ours, theirs in kept:
        assert torch.equal(ours, theirs)
