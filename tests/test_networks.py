"""The UNet: sizes, noise maps, evaluations, precision, compilation."""

import numpy as np
import pytest
import torch
import torch._inductor.config
from conftest import problem_of, white
from torch import nn

from rerg.config import InputError
from rerg.equilibrium import equilibrium
from rerg.maps import ProximalGradient
from rerg.networks import UNet, compile_networks


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


def test_a_machine_that_cannot_compile_is_one_line():
    networks = nn.ModuleDict({"rg": unet()})
    with (
        torch._inductor.config.patch(
            {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
        ),
        pytest.raises(InputError) as error,
    ):
        compile_networks(networks)
    assert str(error.value).startswith("compile: torch.compile does not work here: ")
    assert "\n" not in str(error.value)


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
