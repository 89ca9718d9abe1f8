"""Precisions, on a CPU that rounds as a GPU does: what they reach, refuse and leave.

`rounding_convolutions` gives this machine convolutions which round their operands to TF32 where
cuDNN would,
forward and backward, so that a flag which is lost between the two shows.
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, observe, spec_of, white
from torch import nn

from rerg.bound import rms
from rerg.config import InputError, read_yaml
from rerg.equilibrium import equilibrium
from rerg.iteration import Safeguarded, fixed_point
from rerg.models import Model, build
from rerg.restoration import climb, restore_batch, rounding
from rerg.run import Run


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """x with 10 bits of mantissa, as a tensor core reads it, where cuDNN may use TF32."""
    if not torch.backends.cudnn.allow_tf32:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Rounded(torch.autograd.Function):
    """A convolution, or its transpose, whose operands are rounded at each of its three passes."""

    @staticmethod
    def forward(ctx, x, weight, stride, padding, transposed):
        ctx.save_for_backward(x, weight)
        ctx.rest = None, stride, padding, (1, 1), transposed, (0, 0), 1
        bias, stride, padding, dilation, transposed, output, groups = ctx.rest
        return torch.convolution(
            to_tf32(x), to_tf32(weight), bias, stride, padding, dilation, transposed, output, groups
        )

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        _, stride, padding, dilation, transposed, output, groups = ctx.rest
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            to_tf32(grad), to_tf32(x), to_tf32(weight), None, stride, padding, dilation, transposed,
            output, groups, [True, True, False],
        )  # fmt: skip
        return grad_x, grad_weight, None, None, None


@pytest.fixture
def rounding_convolutions(monkeypatch):
    """Convolutions as those of a GPU, and torch's default, which lets them compute in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for kind, transposed in ((nn.Conv2d, False), (nn.ConvTranspose2d, True)):
        monkeypatch.setattr(
            kind,
            "forward",
            lambda self, x, transposed=transposed: Rounded.apply(
                x, self.weight, self.stride, self.padding, transposed
            ),
        )


def contraction() -> Model:
    """An untrained RG whose residual is as long as a trained one's: it has equilibria."""
    spec = spec_of("deqgd", 10)
    networks = build(spec).requires_grad_(False)
    x = observe("den25", 32, 32)[1].x0
    networks["rg"].unet.m_tail.weight *= 0.1 * x.norm() / networks["rg"](x).norm()
    return Model(networks, spec, {})


def run_of(changes: dict) -> Run:
    """The demo with other settings in some of its blocks."""
    config = read_yaml(ROOT / "config" / "config.yaml")
    for key, settings in changes.items():
        for name, value in settings.items():
            both = isinstance(value, dict)
            config[key][name] = {**config[key][name], **value} if both else value
    return Run(config, ROOT, ROOT / "config" / "config.yaml")


def passes(network: nn.Module, precision: str) -> list[torch.Tensor]:
    """N(x), and the gradients of its square to x and to the weights."""
    network.precision = precision
    x = white((1, 3, 16, 16)).requires_grad_()
    out = network(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *network.parameters()])]


def test_a_precision_is_that_of_both_passes_and_of_nothing_else(rounding_convolutions):
    network = build(spec_of("red", 1))["rg"]
    exact = passes(network, "float32")
    assert torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    for a, b in zip(exact, passes(network, "float32"), strict=True):
        assert torch.equal(a, b)
    rough = passes(network, "tf32")
    assert not torch.backends.cudnn.allow_tf32
    for a, b in zip(exact, rough, strict=True):
        assert 1e-5 < (a - b).norm() / a.norm() < 5e-2


def test_the_backward_solve_of_an_equilibrium_is_in_that_precision(
    rounding_convolutions, monkeypatch
):
    """Its passes run inside the hook of another backward pass."""
    seen = []
    backward = Rounded.backward
    monkeypatch.setattr(
        Rounded,
        "backward",
        lambda ctx, g: (seen.append(torch.backends.cudnn.allow_tf32), backward(ctx, g))[1],
    )
    model = contraction()
    model.networks.requires_grad_(True)
    model.compute_in("float32")
    T = model.restoring_map(observe("den25", 16, 16)[1], "fast")
    x, _ = equilibrium(
        T, T.start(), iterations=5, tolerance=0.0, backward_iterations=3, backward_tolerance=0.0
    )
    x.square().sum().backward()
    assert seen and not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_the_operators_are_exact_whatever_the_default(rounding_convolutions, monkeypatch):
    """deepinv's downsampling convolves, and cuDNN would round that too."""
    _, observation = observe("sr2", 16, 16)
    exact = observation.physics.A_adjoint(observation.y)
    convolve = F.conv_transpose2d
    monkeypatch.setattr(
        F, "conv_transpose2d", lambda x, w, *a, **k: convolve(to_tf32(x), to_tf32(w), *a, **k)
    )
    assert not torch.equal(observation.physics.A_adjoint(observation.y), exact)
    assert torch.equal(observation.back_projection, exact)


@pytest.mark.parametrize("problem", ["den15", "den25"])  # where it has equilibria
def test_climbing_meets_a_tolerance_that_tf32_does_not(rounding_convolutions, problem):
    truth, observation = observe(problem, 32, 32, 3)
    options, model = {"iterations": 100, "tolerance": 1e-6}, contraction()
    with torch.no_grad():
        cheap, _, _ = climb(model, observation, "fast", options, ["tf32"])
        way = ["tf32", "float32"]
        both, taken, traces = climb(model, observation, "fast", options, way, truth)
        exact, alone, _ = climb(model, observation, "fast", options, ["float32"])
    assert not cheap.converged.any()
    assert both.converged.all() and exact.converged.all()
    assert (both.x - exact.x).abs().max() < 1e-4
    for i, (counts, trace) in enumerate(zip(taken, traces, strict=True)):
        assert counts["float32"] < alone[i]["float32"]
        assert sum(counts.values()) == both.evaluations[i] == trace[-1, 0]
        assert (trace[1:, 0] > trace[:-1, 0]).all()


def test_a_solve_stalls_where_its_rounding_says(rounding_convolutions):
    _, observation = observe("den25", 32, 32, 2)
    model = contraction()
    with torch.no_grad():
        floor = rounding(model, observation, "fast", "tf32", "float32")
        assert rounding(model, observation, "fast", "float32", "float32") == 0
        model.compute_in("tf32")
        T = model.restoring_map(observation, "fast")
        least = fixed_point(
            T, T.start(), iterations=100, tolerance=0.0, acceleration=Safeguarded
        ).residual
    assert (least > floor / 4).all() and (least < 2 * floor).all()


def test_each_image_takes_the_precisions_that_it_needs(rounding_convolutions):
    _, observation = observe("den25", 32, 32, 2)
    model = contraction()

    def precisions(tolerance: float, solver: str = "fast") -> list[str]:
        options = {"iterations": 30, "tolerance": tolerance}
        if solver == "adam":
            options = {"iterations": 2, "learning_rate": 0.01}
        _, stats, _ = restore_batch(model, observation, solver, options, ["tf32", "float32"])
        return [row["precision"] for row in stats]

    assert precisions(1e-3) == ["tf32", "tf32"]
    assert precisions(1e-6) == ["tf32+float32"] * 2
    assert precisions(0.0, "adam") == ["tf32", "tf32"]  # it has no tolerance


def test_the_bound_is_measured_in_the_last_precision(rounding_convolutions):
    truth, observation = observe("den25", 32, 32, 1)
    model, options = contraction(), {"iterations": 30, "tolerance": 1e-3}
    _, [row], _ = restore_batch(model, observation, "fast", options, ["tf32", "float32"], truth)
    assert row["precision"] == "tf32"
    model.compute_in("float32")
    exact = rms(model.restoring_map(observation, "fast")(truth) - truth).item()
    assert row["bound_r"] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("iterations", [1, 3, 8])
def test_the_iterations_are_those_of_all_precisions(rounding_convolutions, iterations):
    """Half of them at most are the first's. It has a goal of its own, above the tolerance."""
    _, observation = observe("den25", 32, 32, 1)
    options, way = {"iterations": iterations, "tolerance": 1e-7}, ["tf32", "float32"]
    with torch.no_grad():
        solution, [taken], _ = climb(contraction(), observation, "fast", options, way)
    assert taken["tf32"] == iterations // 2
    assert sum(taken.values()) == solution.evaluations == iterations
    assert solution.residual > 1e-7 and solution.stopped == ["limit"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"training": {"precision": "bf16"}}, r"training.precision: bf16 comes under a relative"),
        (
            {"variants": {"rerg": {"precision": "bf16"}}},
            r"variants.rerg.precision: bf16 .* of 0.003, but .* is 0.001; expected tf32 or float32",
        ),
        (
            {"restoration": {"precision": ["bf16"]}},
            r"restoration.precision: bf16 .*, but the tolerance of \w+ on \w+ is 0.0001",
        ),
        (
            {"restoration": {"precision": ["tf32"]}, "solvers": {"gd": {"tolerance": 1e-6}}},
            r"restoration.precision: tf32 .*, but the tolerance of rerg-gd on den25 is 1e-06",
        ),
        (
            {"restoration": {"precision": ["float32", "tf32"]}},
            r"restoration.precision: expected the order bf16, tf32, float32",
        ),
    ],
)
def test_a_precision_that_meets_no_tolerance_is_refused_in_a_line(changes, fault):
    with pytest.raises(InputError, match=fault) as error:
        run_of(changes)
    assert "\n" not in str(error.value)


def test_bf16_is_offered_where_nothing_is_solved():
    run = run_of({"variants": {name: {"precision": "bf16"} for name in ("red", "rg", "rg1")}})
    precisions = {name: run.model_spec(name, 0).precision for name in run.variants()}
    assert precisions == dict.fromkeys(("red", "rg", "rg1"), "bf16") | dict.fromkeys(
        ("deqgd", "rerg", "mtdeq"), "float32"
    )
    run_of({"equilibrium": {"tolerance": 5e-3}, "training": {"precision": "bf16"}})
