"""Published weights: fetched by the registry config/weights.yaml, checked, kept as our own are.

What others publish is a pickle. It is read once, as tensors only, held against the architecture
that the registry states, and written as safetensors with its JSON, so that a job reads no pickle.
"""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from deepinv.models import DRUNet, GSDRUNet
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from rerg.atomic import whole
from rerg.config import InputError
from rerg.datasets import read_digests
from rerg.downloads import cache_folder, download, expand, is_pointer, sha256_of
from rerg.models import build, fill, read_weights, save, write_weights
from rerg.networks import UNet
from rerg.specs import EquilibriumSpec, ModelSpec, NetworkSpec

log = logging.getLogger(__name__)


def fetch(name: str, entry: Mapping, lock: Path, *, backoff: float = 1.0) -> Path:
    """The file of a registry entry, from the user's folder, the cache or the internet.

    Its digest must be the registry's, else that of a `lock` that an earlier run left, else it is
    trusted on first sight. `lock` is written, a line as of sha256sum.
    Raises InputError where it cannot be had or has other bytes.
    """
    file = Path(urlparse(entry["urls"][0]).path).name
    locked = read_digests(lock) if lock.exists() else {}
    expected = entry.get("sha256", locked.get(file))
    path = expand(entry.get("folder", "")) / file
    if "folder" not in entry or not path.exists():
        path = cache_folder() / "weights" / name / file
        download(entry["urls"], path, expected, backoff=backoff, progress=True)
    if is_pointer(path):
        raise InputError(f"{path}: a Git LFS pointer in place of the file; `git lfs pull` gets it")
    found = sha256_of(path)
    if expected not in (None, found):
        raise InputError(f"{path}: expected sha256 {expected}, found {found}")
    if expected is None:
        log.info("%s: trusted on first sight, locked in %s", path, lock)
    with whole(lock) as unfinished:
        unfinished.write_text(f"{found}  {file}\n", encoding="utf-8")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, or of a checkpoint that has them as `state_dict`.

    Raises InputError where it holds anything else; nothing of it is executed.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = next(line for line in f"{error}\nno tensors".splitlines() if line.strip())
        raise InputError(f"{path}: expected weights of torch.save: {reason.strip()}") from None
    state = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a dictionary of tensors")
    return dict(state)


def network_of(entry: Mapping) -> nn.Module:
    """The network of an entry as its authors have it, with random weights."""
    if entry["network"] == "rg":
        return UNet(list(entry["channels"]), entry["blocks"]).unet
    options = {"nc": tuple(entry["channels"]), "nb": entry["blocks"], "pretrained": None}
    make = {"drunet": DRUNet, "gsdrunet": GSDRUNet}[entry["network"]]
    return make(in_channels=3, out_channels=3, **options)


def spec_of(name: str, entry: Mapping) -> ModelSpec:
    """The spec of a published RG: a network, and no training that we know."""
    return ModelSpec(
        variant=name,
        seed=0,
        start="",
        evaluations=0,
        learning_rate=0.0,
        halve_every=0,
        crop=0,
        batch=0,
        clip=0.0,
        precision="float32",
        network=NetworkSpec(tuple(entry["channels"]), entry["blocks"], float(entry["scale"])),
        equilibrium=EquilibriumSpec(0, 0.0, 0, 0.0, 0.0),
        problems=(),
    )


def convert(name: str, entry: Mapping, source: Path, target: Path) -> None:
    """Write the weights of a published file as safetensors, and their JSON beside them.

    Raises InputError where the file is no weights, or of another architecture than the entry's.
    """
    state = read_state(source)
    about = {
        "published": {key: entry[key] for key in ("network", "channels", "blocks", "licence")},
        "citation": entry["citation"],
        "file": {"name": source.name, "sha256": sha256_of(source)},
        "evaluations": 0,
        "seconds": 0.0,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry["network"] == "rg":
        spec = spec_of(name, entry)
        networks = build(spec)
        fill(networks["rg"].unet, state, source)
        with torch.no_grad():  # bias-free, so that its last convolution scales all of it
            networks["rg"].unet.m_tail.weight /= spec.scale
        return save(target, networks, spec, about)
    denoiser = network_of(entry)
    fill(denoiser, state, source)
    write_weights(target, denoiser, {"config": name, **about})


def load_denoiser(path: Path) -> nn.Module:
    """The denoiser D(u, σ) that `convert` wrote: u (B, 3, H, W), σ in [0, 1].

    Raises InputError as `rerg.models.load_model` does.
    """
    about, content = read_weights(path, "published")
    denoiser = network_of(about["published"])
    fill(denoiser, read_tensors(content), path)
    return denoiser.requires_grad_(False)
