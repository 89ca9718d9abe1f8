"""Operators, proximal operators and observations of every problem of config/problems.yaml."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import KERNELS, PROBLEMS, ROOT, clean_images, dense, problem_of, white
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rerg.config import InputError, check, read_yaml
from rerg.files import read_observed, write_observed
from rerg.kernels import kernel_of, kernel_size
from rerg.problems import Problem, batch, from_arrays, generator, to_arrays
from rerg.specs import ProblemSpec

IDENTITY = ProblemSpec("mine", "identity", noise=2.55, sigma=2.55)
SIZES = [(40, 40), (37, 53), (48, 31)]
SCHEMA = ROOT / "workflow" / "schemas" / "problems.schema.yaml"


def observed(name, size, count, dtype=torch.float32):
    problem = problem_of(name)
    x = clean_images(count, *size).to(dtype)
    rngs = [generator("test", name, str(i)) for i in range(count)]
    return problem, problem.crop(x), problem.observe(x, rngs)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_adjoint_norm_and_prox(name, size, count):
    problem, x, observation = observed(name, size, count)
    physics = observation.physics
    f = problem.factor
    assert observation.x0.shape == x.shape
    assert observation.y.shape == (count, 3, x.shape[-2] // f, x.shape[-1] // f)

    u, v = white(x.shape, 1), white(observation.y.shape, 2)
    forward = (physics.A(u) * v).flatten(1).sum(1)
    backward = (u * physics.A_adjoint(v)).flatten(1).sum(1)
    scale = u.flatten(1).norm(dim=1) * v.flatten(1).norm(dim=1)
    assert torch.all((forward - backward).abs() <= 1e-6 * scale)

    t = 1 / (400 * observation.weight)
    z = x + 0.1 * white(x.shape, 3)
    p = observation.prox(z, t)
    optimality = (p - z) / t + observation.gradient(p)
    assert optimality.abs().max() <= 1e-5


def test_norm_is_at_most_one_and_reached(name):
    """‖A‖² by the power method: 1, or at least 1/f² (a flat image) where f² pixels become one."""
    problem, x, observation = observed(name, (36, 48), 1, torch.float64)
    physics, u = observation.physics, white(x.shape, 0, torch.float64) + 1
    for _ in range(60):
        u = physics.A_adjoint(physics.A(u / u.norm()))
    assert u.norm() <= 1 + 1e-9  # the step of gradient descent rests on it
    assert u.norm() >= 1 / problem.factor**2 - 1e-5
    if problem.factor == 1:
        assert u.norm() == pytest.approx(1, abs=1e-5)


def test_prox_agrees_with_the_dense_matrix(name):
    """prox_{tF}(z) = (I + tAᵀA)⁻¹(z + tAᵀy), with A written out as a matrix."""
    _, x, observation = observed(name, (28, 36), 1, torch.float64)
    A = dense(observation.physics, x)
    t, z = 3.7, white(x.shape, 3, x.dtype)
    system = torch.eye(A.shape[1], dtype=x.dtype) + t * A.T @ A
    right = z[0].flatten(1) + t * observation.y[0].flatten(1) @ A
    expected = torch.linalg.solve(system, right.T).T.view_as(x)
    torch.testing.assert_close(observation.prox(z, t), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(40, 40), (37, 53)])
def test_blur_is_a_convolution_with_wrapped_boundary(size):
    """An asymmetric kernel, against scipy: no flip, no shift."""
    kernel = np.random.default_rng(0).random((7, 5)) ** 3
    problem = problem_of("blur16")
    problem.__dict__["kernel"] = kernel / kernel.sum()
    x = clean_images(1, *size).double()
    y = problem.physics(size, like=x).A(x)
    for channel, blurred in zip(x[0].numpy(), y[0].numpy(), strict=True):
        expected = ndimage.convolve(channel, problem.kernel, mode="wrap")
        np.testing.assert_allclose(blurred, expected, atol=1e-12)


@pytest.mark.parametrize("angle", [0, 30, 120])
def test_gaussian_kernel_has_its_standard_deviations_along_its_axes(angle):
    h = kernel_of(replace(IDENTITY, kernel={"gaussian": [2.4, 1.0], "angle": angle}))
    u, v = np.mgrid[:25, :25] - 12
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = c * v - s * u, s * v + c * u  # counter-clockwise, rows point down
    assert (h * along**2).sum() == pytest.approx(2.4**2, rel=1e-3)
    assert (h * across**2).sum() == pytest.approx(1.0, rel=1e-3)
    assert (h * along * across).sum() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("problem", ["sr2", "sr3", "sr4", "sr2g", "sr3g"])
def test_downsampling_is_centred(problem):
    """The kernel sums to 1, its centre is that of the f x f block, and a ramp stays a ramp."""
    f, h = problem_of(problem).factor, problem_of(problem).kernel
    assert h.sum() == pytest.approx(1, abs=1e-12)
    size = (14 * f, 14 * f)
    ramp = torch.arange(size[1], dtype=torch.float64).expand(1, 3, *size)
    physics = problem_of(problem).physics(size, like=ramp)
    inner = slice(6, 8)  # low-resolution pixels that the wrapped boundary does not reach
    expected = f * torch.arange(14, dtype=torch.float64) + (f - 1) / 2
    down = physics.A(ramp)[..., inner, inner]
    torch.testing.assert_close(down, expected[inner].expand_as(down), rtol=0, atol=1e-9)
    down = physics.A(ramp.mT)[..., inner, inner]
    torch.testing.assert_close(down, expected[inner, None].expand_as(down), rtol=0, atol=1e-9)


def test_bicubic_kernel_is_the_one_of_keys():
    """h(u) = k(u/f) with a = -0.75: k is 1 at 0 and 0 at other integers."""
    h = kernel_of(replace(IDENTITY, kernel={"bicubic": -0.75}, factor=3))
    row = h[len(h) // 2] / h[len(h) // 2].max()
    middle = row.argmax()
    np.testing.assert_allclose(row[[middle - 6, middle - 3, middle + 3, middle + 6]], 0, atol=1e-12)
    np.testing.assert_allclose(h, h.T, atol=1e-15)


@pytest.mark.parametrize("problem", ["com80", "com90", "com95"])
def test_mask_keeps_the_fraction_that_it_promises(problem):
    entry = PROBLEMS[problem]
    _, x, observation = observed(problem, (37, 53), 3)
    mask = observation.physics.mask
    assert mask.shape == (3, 1, 37, 53)  # shared by the channels
    assert set(mask.unique().tolist()) == {0, 1}
    assert mask.sum((1, 2, 3)).tolist() == [37 * 53 - round(entry["missing"] * 37 * 53)] * 3
    assert not torch.equal(mask[0], mask[1])
    torch.testing.assert_close(observation.y, mask * x)
    torch.testing.assert_close(observation.x0, mask * x + 0.5 * (1 - mask))


def test_noise_stays_out_of_missing_pixels():
    noisy = Problem(replace(problem_of("com80").spec, noise=25.0))
    observation = noisy.observe(clean_images(1, 37, 53), [generator("test", "noisy", "0")])
    missing = observation.physics.mask.expand_as(observation.y) == 0
    assert torch.all(observation.y[missing] == 0) and torch.all(observation.x0[missing] == 0.5)


def test_noise_has_its_level(name):
    _, x, observation = observed(name, (64, 64), 3)
    noise = observation.y - observation.physics.A(x)
    if PROBLEMS[name]["operator"] == "mask":
        assert PROBLEMS[name]["noise"] == 0
    level = PROBLEMS[name]["noise"] / 255
    assert noise.std().item() == pytest.approx(level, rel=0.05, abs=1e-7)
    assert observation.weight == pytest.approx((PROBLEMS[name]["sigma"] / 255) ** 2)


def test_the_same_observation_in_every_batch(name):
    """It depends on the dataset, the problem and the image, and on nothing else."""
    problem = problem_of(name)
    x = clean_images(3, 37, 53)
    together = problem.observe(x, [generator("set", name, str(i)) for i in range(3)])
    torch.manual_seed(1)  # no global random state enters
    alone = problem.observe(x[1:2], [generator("set", name, "1")])
    torch.testing.assert_close(alone.y, together.y[1:2], rtol=0, atol=1e-6)
    joined = batch([alone, alone])
    torch.testing.assert_close(joined.y[1], together.y[1], rtol=0, atol=1e-6)
    z = white(together.x0.shape, 4)
    torch.testing.assert_close(
        together[torch.tensor([1])].prox(z[1:2], 2.0), together.prox(z, 2.0)[1:2]
    )

    if problem.noise == 0 and problem.operator != "mask":
        return  # nothing is drawn
    for other in (("set", name, "2"), ("set", "other", "1"), ("other", name, "1")):
        drawn = problem.observe(x[1:2], [generator(*other)])
        assert not torch.allclose(drawn.y, alone.y, atol=1e-4)


def test_observations_survive_their_file(tmp_path, name):
    """What a method reads is bit for bit what was observed, and the file's bytes are the same."""
    problem = problem_of(name)
    x = clean_images(2, 37, 53)
    images = {
        str(i): problem.observe(x[i : i + 1], [generator("set", name, str(i))]) for i in range(2)
    }
    for path in (tmp_path / "a.npz", tmp_path / "b.npz"):
        write_observed(path, to_arrays(problem, images))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    read, loaded = from_arrays(read_observed(tmp_path / "a.npz"))
    assert read.spec == problem.spec
    for image, observation in images.items():
        z = white(observation.x0.shape, 5)
        for a, b in (
            (loaded[image].y, observation.y),
            (loaded[image].x0, observation.x0),
            (loaded[image].gradient(z), observation.gradient(z)),
            (loaded[image].prox(z, 2.0), observation.prox(z, 2.0)),
        ):
            assert torch.equal(a, b)


def test_an_observation_that_goes_to_a_device_stays_where_it_is(name):
    _, x, observation = observed(name, (37, 53), 2)
    z = white(x.shape, 6)
    expected = observation.gradient(z), observation.prox(z, 2.0)
    moved = observation.to("meta")
    assert moved.y.device.type == moved.prox(z.to("meta"), 2.0).device.type == "meta"
    for there, here in zip(
        (observation.gradient(z), observation.prox(z, 2.0)), expected, strict=True
    ):
        assert torch.equal(there, here)
    A = observation.physics.A
    assert A(z).device.type == "cpu" and observation.to("cpu") is observation


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_operator_on_every_device(name):
    _, x, observation = observed(name, (37, 53), 2)
    moved, z = observation.to("cuda"), white(x.shape, 6)
    for here, there in (
        (observation.gradient(z), moved.gradient(z.cuda())),
        (observation.prox(z, 2.0), moved.prox(z.cuda(), 2.0)),
    ):
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-5)


def spec(entry):
    """The spec of an entry, with what has a default here."""
    return ProblemSpec.of("mine", {"operator": "blur", "noise": 0, "sigma": 3, **entry})


@pytest.fixture
def stored(tmp_path):
    """A function that writes kernels to a file, and the mapping that names it "set"."""

    def store(*kernels):
        np.savez(tmp_path / "set.npz", **{str(i): kernel for i, kernel in enumerate(kernels)})
        return {"set": str(tmp_path / "set.npz")}

    return store


def test_kernel_files_are_read_by_index(stored):
    entry = {"operator": "blur", "kernel": {"file": "set", "index": 1}, "noise": 0, "sigma": 3}
    kernels = np.random.default_rng(0).random((2, 5, 7))
    files = stored(*kernels)
    np.testing.assert_allclose(kernel_of(spec(entry), files), kernels[1] / kernels[1].sum())
    assert kernel_size(spec(entry), files) == 7
    assert kernel_size(spec(entry)) == 0  # not known before the file is there
    for asked in (kernel_of, kernel_size):
        with pytest.raises(InputError, match="set has 2 kernels, expected an index below 2, got 2"):
            asked(spec({"kernel": {"file": "set", "index": 2}}), files)


# Windows


@pytest.mark.parametrize("std", [[10, 10], [7, 3], [1, 40], [4.5, 4.5]])
@pytest.mark.parametrize(("factor", "angle"), [(1, 0), (1, 45), (4, 0)])
def test_a_gaussian_of_any_size_keeps_its_standard_deviation(std, factor, angle):
    entry = {"kernel": {"gaussian": std, "angle": angle}, "factor": factor}
    h = kernel_of(spec(entry))
    assert len(h) == kernel_size(spec(entry)) and len(h) % 2 == 1
    u = len(h) // 2 - np.arange(len(h)) - (factor - 1) / 2
    variance = (h * (u**2 + u[:, None] ** 2)).sum()
    assert variance == pytest.approx(std[0] ** 2 + std[1] ** 2, rel=2e-3)


@pytest.mark.parametrize("length", [25, 26, 41, 90.5])
@pytest.mark.parametrize(("factor", "angle"), [(1, 0), (1, 90), (1, 37), (3, 0)])
def test_a_motion_of_any_length_is_not_cut(length, factor, angle):
    entry = {"kernel": {"motion": length, "angle": angle}, "factor": factor}
    h = kernel_of(spec(entry))
    size = kernel_size(spec(entry))
    assert h.shape == (size, size) and size % 2 == 1 and size <= length + factor + 2
    u = size // 2 - np.arange(size) - (factor - 1) / 2
    u, v = np.meshgrid(u, u, indexing="ij")
    along = math.cos(math.radians(angle)) * v - math.sin(math.radians(angle)) * u
    assert (h * along).sum() == pytest.approx(0, abs=0.02)
    assert (h * along**2).sum() == pytest.approx((length**2 - 1) / 12 + 1 / 6, rel=0.03)


def test_the_windows_of_small_kernels_are_those_of_the_field():
    sizes = {name: kernel_size(spec(entry)) for name, entry in PROBLEMS.items()}
    assert {sizes[name] for name in ("blur16", "aniso2", "sr2g", "sr3g", "motion")} == {25}
    assert (sizes["sr2"], sizes["sr4"], sizes["den15"], sizes["com90"]) == (13, 25, 0, 0)
    assert kernel_size(spec({"kernel": {"motion": 25}})) == 25
    for name, entry in PROBLEMS.items():
        if "kernel" in entry:
            assert kernel_size(spec(entry), KERNELS) == len(kernel_of(spec(entry), KERNELS)), name


def test_the_size_of_a_window_is_known_without_torch():
    code = "import sys, rerg.kernels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Kernels that are none


@pytest.mark.parametrize(
    ("operator", "kernel", "message"),
    [
        ("blur", {}, "p.kernel: "),
        ("blur", {"angle": 30}, "p.kernel: "),
        ("blur", {"motion": 9, "gaussian": [1, 1]}, "p.kernel: "),
        ("blur", {"bicubic": -0.5, "file": "Levin09", "index": 0}, "p.kernel: "),
        ("blur", {"file": "Levin09"}, "p.kernel: expected an index with a file"),
        ("blur", {"motion": 9, "index": 0}, "p.kernel: expected an index with a file"),
        ("downsampling", {"bicubic": -0.5, "angle": 30}, "p.kernel: "),
        ("blur", {"file": "Levin09", "index": 0, "angle": 30}, "p.kernel: "),
        ("blur", {"motion": 10**400}, "p.kernel.motion: expected at most 1000"),
        ("blur", {"box": 3}, "p.kernel.box: unknown key"),
        ("identity", {"motion": 9}, "p.operator: .*downsampling"),
        ("mask", {"gaussian": [1, 1]}, "p.operator: .*downsampling"),
    ],
)
def test_a_kernel_that_is_none_is_refused_by_the_schema(operator, kernel, message):
    needs = {"downsampling": {"factor": 2}, "mask": {"missing": 0.5}}.get(operator, {})
    common = {"label": "P", "short": "p", "noise": 0, "sigma": 3, "trained": True}
    with pytest.raises(InputError, match=f"problems.yaml: {message}") as error:
        entry = {**common, "operator": operator, "kernel": kernel, **needs}
        check({"p": entry}, SCHEMA, "problems.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("problem", "changes"),
    [("blur16", {"factor": 2}), ("den15", {"missing": 0.5}), ("com80", {"factor": 3})],
)
def test_a_key_of_another_operator_is_refused(problem, changes):
    with pytest.raises(InputError, match=rf"{problem}\.operator: "):
        check({problem: PROBLEMS[problem] | changes}, SCHEMA, "problems.yaml")


@pytest.mark.parametrize("name", [50, 1e3, None, True])
def test_a_name_that_yaml_reads_as_another_type_is_refused(name):
    with pytest.raises(InputError, match="expected"):
        check({name: PROBLEMS["den15"]}, SCHEMA, "problems.yaml")


@pytest.mark.parametrize(
    "kernel",
    [
        {"gaussian": [math.nan, 1]},
        {"gaussian": [2, math.inf]},
        {"motion": math.nan},
        {"motion": 5, "angle": math.nan},
        {"bicubic": math.inf},
        {"bicubic": math.nan},
        {"motion": 1e-3},  # between the pixels' centres where the factor is even
        {"gaussian": [1e-3, 1e-3]},
    ],
)
def test_parameters_that_give_no_kernel_are_refused(kernel):
    with pytest.raises(
        InputError, match=r"config/problems\.yaml: mine\.kernel .*: expected"
    ) as error:
        kernel_of(spec({"kernel": kernel, "factor": 2}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.zeros((5, 5)), "positive sum"),
        (-np.ones((3, 3)), "positive sum"),
        (np.array([[1.0, math.nan]]), "finite values"),
        (np.array([[1.0, math.inf]]), "finite values"),
        (np.full((3, 3), 1e308), "finite values"),
        (np.array([[-0.1, 0.2, -0.1 + 1e-16]]), "positive sum"),  # a derivative, to rounding
        (np.ones(9), "expected a matrix"),
        (np.ones((3, 3, 3)), "expected a matrix"),
        (np.ones((0, 0)), "expected a matrix"),
    ],
)
def test_a_stored_kernel_that_is_none_is_refused(stored, kernel, message):
    files = stored(np.ones((3, 3)), kernel)
    with pytest.raises(InputError, match=message) as error:
        kernel_of(spec({"kernel": {"file": "set", "index": 1}}), files)
    assert str(error.value).startswith(
        "config/problems.yaml: mine.kernel {'file': 'set', 'index': 1}: "
    )


VALUES = st.one_of(
    st.floats(),  # NaN and infinities among them
    st.integers(-3, 70),
    st.sampled_from([10**400, True, None, "9", [], [2], [0.5, 0.5], [1, math.nan], {}, -(10**400)]),
)
KINDS = st.dictionaries(
    st.sampled_from(["bicubic", "gaussian", "motion", "angle", "file", "index", "box"]),
    VALUES | st.just("Levin09") | st.lists(st.floats(0, 120), min_size=2, max_size=2),
    max_size=3,
)
READ_ONCE = cache(read_yaml)
GONE = st.just("gone")


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([name for name in PROBLEMS if "kernel" in PROBLEMS[name]]),
    st.dictionaries(st.sampled_from(["operator", "factor", "missing"]), VALUES | GONE, max_size=1),
    st.dictionaries(
        st.sampled_from(["bicubic", "gaussian", "motion", "angle", "file", "index"]),
        VALUES | GONE,
        max_size=2,
    )
    | KINDS.map(lambda kernel: {"bicubic": "gone", "gaussian": "gone", "motion": "gone", **kernel})
    | GONE,
)
def test_every_mutation_of_a_problem_is_a_kernel_or_one_line(problem, changes, kernel_changes):
    def mutated(entry, changes):
        return {key: value for key, value in {**entry, **changes}.items() if value != "gone"}

    entry = mutated(PROBLEMS[problem], changes)
    if kernel_changes == "gone":
        del entry["kernel"]
    else:
        entry["kernel"] = mutated(entry["kernel"], kernel_changes)
    try:
        with patch("rerg.config.read_yaml", READ_ONCE):
            check({problem: entry}, SCHEMA, "problems.yaml")
        size, h = kernel_size(spec(entry), KERNELS), kernel_of(spec(entry), KERNELS)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert h.shape == (size, size) and size < 1200
    assert np.isfinite(h).all() and h.sum() == pytest.approx(1)


@pytest.mark.parametrize("problem", ["blur16", "sr4"])
def test_an_image_smaller_than_the_kernel_is_refused(problem):
    with pytest.raises(InputError, match=f"{problem}: its kernel of 25 x 25 pixels"):
        problem_of(problem).observe(clean_images(1, 24, 40), [generator("set", problem, "0")])
