"""The front door: the equilibrium of a linear R against a dense solution, for any physics."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deepinv import physics as deepinv_physics
from deepinv import test as deepinv_test
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor, nn

import rerg
from rerg.models import Model, build, save
from rerg.specs import EquilibriumSpec, ModelSpec, NetworkSpec

ROOT = Path(__file__).parents[1]
SIGMA, SCALE = 0.05, 400.0
SIZE = 12
SPEC = ModelSpec(
    variant="red",
    seed=0,
    start="",
    evaluations=1,
    learning_rate=1e-3,
    halve_every=0,
    crop=16,
    batch=1,
    clip=1.0,
    precision="float32",
    network=NetworkSpec((4, 4, 4, 4), 1, SCALE),
    equilibrium=EquilibriumSpec(30, 1e-3, 10, 1e-2, 0.1),
    problems=(),
)


class Laplacian(nn.Module):
    """N(x) = a (x - 0.95 mean of the four neighbours), circular: symmetric, and contracting."""

    def __init__(self, a: float = 0.4):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x: Tensor) -> Tensor:
        neighbours = [x.roll(shift, dim) for shift in (-1, 1) for dim in (-1, -2)]
        return self.a * (x - 0.95 * sum(neighbours) / 4)


def linear_rg(network: nn.Module | None = None, **options) -> rerg.RG:
    options = {"iterations": 2000, "tolerance": 1e-11, **options}
    networks = nn.ModuleDict({"rg": network or Laplacian()})
    return rerg.RG(Model(networks, SPEC, {}), **options).double()


def image(batch: int, channels: int = 3, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).random((batch, channels, height, width)))


def kernel(size: int) -> Tensor:
    h = torch.from_numpy(np.random.default_rng(2).random((1, 1, size, size)))
    return h / h.sum()


def matrix(operator, like: Tensor) -> Tensor:
    """A as a dense matrix, by applying it to the basis, one image at a time."""
    basis = torch.eye(like.numel(), dtype=like.dtype).view(-1, *like.shape)
    return torch.stack([operator(e[None])[0].flatten() for e in basis], 1)


def masks(batch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((batch, 1, SIZE, SIZE)) < 0.5).double()


def operator_of_a_user() -> LinearPhysics:
    """The mean over each row: neither square nor an image."""
    return LinearPhysics(
        A=lambda x, **_: x.mean(-1),
        A_adjoint=lambda y, **_: y[..., None].expand(-1, 3, 12, 12) / 12,
    )


def build_physics(name: str) -> LinearPhysics:
    p, size = deepinv_physics, (3, SIZE, SIZE)
    return {
        "denoising": lambda: p.Denoising().double(),
        "completion": lambda: p.Inpainting(size, mask=masks(1)),
        "deblurring": lambda: p.BlurFFT(size, filter=kernel(5)),
        "super-resolution": lambda: p.Downsampling(size, filter=kernel(3), factor=2),
        "grey": lambda: p.Inpainting((1, SIZE, SIZE), mask=masks(1)),
        "decimation": lambda: p.Downsampling(size, filter=None, factor=2),
        "odd size": lambda: p.Downsampling(size, filter=kernel(3), factor=5),
        "reflected": lambda: p.Downsampling(size, filter=kernel(3), factor=2, padding="reflect"),
        "even filter": lambda: p.Downsampling(size, filter=kernel(4), factor=2),
        "any size": lambda: p.Downsampling(None, filter=kernel(3), factor=2),
        "valid blur": lambda: p.Blur(kernel(3), padding="valid"),
        "reflected blur": lambda: p.Blur(kernel(3), padding="reflect"),
        "decolorize": lambda: p.Decolorize().double(),
        "demosaicing": lambda: p.Demosaicing((SIZE, SIZE)).double(),
        "composition": lambda: (
            p.Inpainting(size, mask=0.7).double() * p.BlurFFT(size, filter=kernel(3))
        ),
        "operator of a user": operator_of_a_user,
    }[name]()


NAMES = [
    "denoising", "completion", "deblurring", "super-resolution", "grey", "decimation", "odd size",
    "reflected", "even filter", "any size", "valid blur", "reflected blur", "decolorize",
    "demosaicing", "composition", "operator of a user",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_rg_restores_what_the_normal_equations_say(name):
    physics = build_physics(name)
    truth = image(2, 1 if name == "grey" else 3)
    y = physics.A(truth)
    N = matrix(Laplacian().double(), truth[0])
    A = matrix(physics.A, truth[0])
    expected = torch.linalg.solve(A.T @ A + SIGMA**2 * SCALE * N, A.T @ y.flatten(1).T)
    before = {key: getattr(physics, key) for key in ("max_iter", "tol")}
    rg = linear_rg()
    solution = rg.solve(y, physics, SIGMA)
    assert solution.converged.all()
    torch.testing.assert_close(solution.x.flatten(1).T, expected, atol=2e-5, rtol=0)
    assert before == {key: getattr(physics, key) for key in before}  # a user's physics is his own


@pytest.mark.parametrize(
    ("physics", "fault"),
    [
        (deepinv_physics.Physics(), "expected a LinearPhysics, got Physics"),
        (deepinv_physics.BlurFFT((3, 16, 16), filter=kernel(3)), "BlurFFT: "),
        (LinearPhysics(A=lambda x, **_: x[..., :6, :6]), "LinearPhysics: A_adjoint fails on"),
        (
            LinearPhysics(A=lambda x, **_: x, A_adjoint=lambda y, **_: 2 * y),
            "A_adjoint is not the adjoint of A",
        ),
        (
            LinearPhysics(A=lambda x, **_: x[:, :2], A_adjoint=lambda y, **_: y[:, :2]),
            "expected images of shape (B, 3 or 1, H, W), got (2, 2, 12, 12)",
        ),
        (deepinv_physics.Decolorize(), "Decolorize: "),
        (
            LinearPhysics(A=lambda x, **_: x[..., 0], A_adjoint=lambda y, **_: y),
            "makes (2, 3, 12) of (2, 3, 12, 12), but y is (2, 3, 12, 12)",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(physics, fault):
    with pytest.raises(rerg.InputError) as error:
        linear_rg().restore(image(2), physics, SIGMA)
    assert fault in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("y", "sigma", "fault"),
    [
        (image(1), 25, "expected one value in (0, 1], got [25.0]"),
        (image(1), 0, "noise-free observations take a small one"),
        (image(1), None, "sigma: expected the standard deviation"),
        ((255 * image(1)).byte(), SIGMA, "expected real floats with images in [0, 1]"),
        ([1.0], SIGMA, "expected a tensor or an array, got list"),
    ],
)
def test_a_bad_observation_is_refused_in_a_line(y, sigma, fault):
    with pytest.raises(rerg.InputError) as error:
        linear_rg().restore(y, build_physics("decimation"), sigma)
    assert fault in str(error.value)


def test_a_physics_of_another_precision_is_refused_in_a_line():
    rg = linear_rg().float()
    with pytest.raises(rerg.InputError, match=r"computes in torch.float64, the network in torch.f"):
        rg.restore(image(1), build_physics("deblurring"), SIGMA)


def test_no_weights_of_that_name():
    with pytest.raises(rerg.InputError, match="nothing: no such weights in this package"):
        rerg.load("nothing")
    with pytest.raises(rerg.InputError, match=r"no.json: no such file, needed to load no.saf"):
        rerg.load("no.safetensors")


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.float32, torch.float64])
def test_numpy_or_torch_in_and_the_same_out(kind):
    physics = build_physics("deblurring")
    y = physics.A(image(2))
    expected = linear_rg(sigma=SIGMA).restore(y, physics)
    y = y.numpy().astype(kind) if isinstance(kind, type) else y.to(kind)
    x = linear_rg(sigma=SIGMA).restore(y, physics)
    assert type(x) is type(y) and x.dtype == y.dtype and x.shape == y.shape
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_images_of_a_batch_are_restored_as_alone():
    """What a physics holds per image, masks or filters, goes with the image."""
    filters = torch.cat([kernel(3), torch.ones(1, 1, 3, 3).double() / 9, kernel(3).mT])
    for make in (
        lambda i: deepinv_physics.Inpainting((3, SIZE, SIZE), mask=masks(3)[i]),
        lambda i: deepinv_physics.BlurFFT((3, SIZE, SIZE), filter=filters[i]),
        lambda i: deepinv_physics.Downsampling((3, SIZE, SIZE), filter=filters[i], factor=2),
    ):
        whole, truth = make(slice(None)), image(3)
        y = whole.A(truth)
        together = linear_rg().solve(y, whole, SIGMA)
        for i in range(3):
            alone = linear_rg().solve(y[i : i + 1], make([i]), SIGMA)
            torch.testing.assert_close(together.x[i : i + 1], alone.x, atol=1e-9, rtol=0)
            assert together.evaluations[i] == alone.evaluations[0]


def test_a_mask_without_axes_of_batch_and_channels_is_that_of_all_images():
    physics = deepinv_physics.Inpainting((3, SIZE, SIZE), mask=masks(1)[0, 0])
    y = physics.A(image(3))
    together = linear_rg().solve(y, physics, SIGMA)
    for i in range(3):
        alone = linear_rg().solve(y[i : i + 1], physics, SIGMA)
        torch.testing.assert_close(together.x[i : i + 1], alone.x, atol=1e-9, rtol=0)


def test_the_equilibria_of_a_batch_are_those_of_its_images():
    """Of an unknown physics that holds something of two axes, a mixing of rows."""
    mix = torch.eye(SIZE).double() + torch.eye(SIZE).roll(1, 0).double()

    class Mixed(LinearPhysics):
        def __init__(self):
            super().__init__()
            self.register_buffer("mix", mix / 2)

        def A(self, x, **_):
            return self.mix @ x

        def A_adjoint(self, y, **_):
            return self.mix.mT @ y

    y = Mixed().A(torch.cat([image(2), image(1) / 9]))
    together = linear_rg(sigma=SIGMA).equilibrium(y, Mixed())
    for i in range(3):
        alone = linear_rg(sigma=SIGMA).equilibrium(y[i : i + 1], Mixed())
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=0)


def test_the_initial_image_changes_the_way_and_not_the_end():
    physics = build_physics("valid blur")
    y = physics.A(image(1))
    end = linear_rg().solve(y, physics, SIGMA)
    again = linear_rg().solve(y, physics, SIGMA, x0=end.x)
    assert again.evaluations < end.evaluations
    torch.testing.assert_close(again.x, end.x, atol=2e-5, rtol=0)
    with pytest.raises(rerg.InputError, match=r"x0: expected \(1, 3, 12, 12\)"):
        linear_rg().solve(y, physics, SIGMA, x0=y)


@pytest.mark.parametrize("name", ["deblurring", "valid blur"])
def test_implicit_gradients_are_those_of_the_closed_form(name):
    """d‖x*‖²/dy and d‖x*‖²/da, with x* = (AᵀA + λ a L)⁻¹ Aᵀ y solved densely."""
    physics, rg = build_physics(name), linear_rg(sigma=SIGMA).requires_grad_()
    truth = image(1)
    y = physics.A(truth).requires_grad_()
    (rg.equilibrium(y, physics) ** 2).sum().backward()

    A, L = matrix(physics.A, truth[0]), matrix(Laplacian(1.0).double(), truth[0]).detach()
    a, z = torch.tensor(0.4).double().requires_grad_(), y.detach().clone().requires_grad_()
    normal = A.T @ A + SIGMA**2 * SCALE * a * L
    (torch.linalg.solve(normal, A.T @ z.flatten()) ** 2).sum().backward()
    torch.testing.assert_close(y.grad, z.grad, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(rg.networks["rg"].a.grad, a.grad, atol=0, rtol=1e-3)


def test_the_bound_holds_and_is_tight_for_a_contraction():
    """With A = I, T(x) = prox(x - aLx) is affine: the bound is checked against the dense error."""
    physics = build_physics("denoising")
    truth = image(3)
    y = truth + 0.05 * torch.from_numpy(np.random.default_rng(5).standard_normal(truth.shape))
    rg = linear_rg(sigma=SIGMA)
    x = rg.restore(y, physics)
    bound, error = rg.bound(x, truth, y, physics), (x - truth).square().mean((1, 2, 3)).sqrt()
    assert (error <= bound).all() and (bound < 10 * error).all()


def test_it_is_a_reconstructor_of_deepinv():
    """deepinv's own test() takes it, with σ from the physics' noise model."""
    physics = deepinv_physics.Denoising(GaussianNoise(SIGMA))
    rg = rerg.RG(Model(nn.ModuleDict({"rg": Laplacian()}), SPEC, {}))
    x = F.avg_pool2d(image(4, height=24, width=24).float(), 5, 1, 2)
    data = torch.utils.data.DataLoader(list(x), batch_size=2)
    metrics = deepinv_test(
        rg, data, physics, online_measurements=True, verbose=False, show_progress_bar=False
    )
    assert metrics["PSNR"] > metrics["PSNR no learning"] + 1


def test_the_weights_of_a_file(tmp_path):
    networks = build(SPEC)
    save(tmp_path / "mine.safetensors", networks, SPEC, {"note": "of a test"})
    rg = rerg.load(tmp_path / "mine.safetensors", sigma=SIGMA)
    assert rg.about["note"] == "of a test" and rg.sigma == SIGMA
    for name, tensor in networks.state_dict().items():
        torch.testing.assert_close(rg.networks.state_dict()[name], tensor)


def test_importing_it_imports_nothing():
    code = (
        "import time; t = time.process_time(); import rerg, sys; "
        "assert not {'torch', 'numpy', 'yaml'} & {*sys.modules}, sys.modules; "
        "print(time.process_time() - t); assert dir(rerg) and rerg.RG.restore"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1


def test_the_stub_names_what_the_package_has():
    stub = (ROOT / "rerg" / "__init__.pyi").read_text()
    assert all(f"as {name}\n" in stub or f"{name}:" in stub for name in rerg.__all__)
    with pytest.raises(AttributeError):
        _ = rerg.nothing


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """Of docs/restore-your-image.md, with weights that stand for the shipped ones."""
    save(tmp_path / "rerg.safetensors", build(SPEC), SPEC, {})
    monkeypatch.setattr("rerg.reconstructor.SHIPPED", tmp_path)
    page = (ROOT / "docs" / "restore-your-image.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["restored"].shape == names["x"].shape and "tensor" in capsys.readouterr().out
