"""Models: the networks of a variant, built from a spec, started, written and loaded."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from rerg.config import InputError, closest
from rerg.maps import Map
from rerg.networks import UNet
from rerg.problems import Observation
from rerg.registry import load, variants
from rerg.specs import ModelSpec, digest


def build(spec: ModelSpec) -> nn.ModuleDict:
    """The networks that a variant trains, each initialised from the seed."""
    networks = nn.ModuleDict()
    for name, conditioned in variants()[spec.variant].networks.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            networks[name] = UNet(list(spec.network.channels), spec.network.blocks, conditioned)
    return networks


def start_from(networks: nn.ModuleDict, source: nn.ModuleDict) -> None:
    """Start every network of a variant from the RG of another.

    A noise map that the source lacks gets zero weights.
    """
    for network in networks.values():
        state = source["rg"].state_dict()
        if network.conditioned and not source["rg"].conditioned:
            head = state["unet.m_head.weight"]
            state["unet.m_head.weight"] = torch.cat([head, torch.zeros_like(head[:, :1])], 1)
        network.load_state_dict(state)


def save(path: Path, networks: nn.ModuleDict, spec: ModelSpec, about: dict) -> None:
    """Write the networks as safetensors, and beside them a JSON with the spec and `about`."""
    about = {"variant": spec.variant, "config": digest(spec), **about, "spec": asdict(spec)}
    write_weights(path, networks, about)


def write_weights(path: Path, module: nn.Module, about: dict) -> None:
    """Write weights as safetensors, and beside them a JSON with `about` and their digest."""
    path = Path(path)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path)
    about = {**about, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Model:
    """Trained networks, the spec that they were trained by, and what else is known of them."""

    networks: nn.ModuleDict
    spec: ModelSpec
    about: dict

    def restoring_map(self, observation: Observation, solver: str) -> Map:
        """The map whose fixed point is a restoration of an observation, as a solver iterates it."""
        variant = load("variants", self.spec.variant)
        if hasattr(variant, "restoring_map"):
            return variant.restoring_map(self.networks, observation, self.spec.scale)
        return load("solvers", solver).MAP(self.networks["rg"], observation, self.spec.scale)

    def compute_in(self, precision: str) -> None:
        """Let the networks' convolutions compute in a precision from now on."""
        for network in self.networks.values():
            network.precision = precision

    def denoiser(self) -> nn.Module:
        """The network whose residual serves as a denoiser.

        Raises InputError for a variant that has none.
        """
        name = variants()[self.spec.variant].denoiser
        if not name:
            raise InputError(f"{self.spec.variant}: trains no denoiser")
        return self.networks[name]


def read_weights(path: Path, key: str) -> tuple[dict, bytes]:
    """The description of a file of weights, of the JSON beside it, and the bytes of the file.

    Raises InputError where either is missing, the description lacks a key, or they do not belong
    to each other.
    """
    path = Path(path)
    about_path = path.with_suffix(".json")
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file, needed to load {path.name}") from None
    except ValueError:
        raise InputError(f"{about_path}: expected a JSON description of {path.name}") from None
    if not isinstance(about, dict) or key not in about:
        raise InputError(f"{about_path}: {key}: missing")
    if hashlib.sha256(content).hexdigest() != about.get("sha256"):
        raise InputError(f"{path}: the weights are not those that {about_path.name} describes")
    return about, content


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Give a network the weights of a file.

    Raises InputError where they are of another architecture.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        fault = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise InputError(f"{path}: weights of another architecture: {fault[:300]}") from None


def load_model(path: Path, expected: ModelSpec | None = None, device: str = "cpu") -> Model:
    """The model of a file of weights and of the JSON beside it, for restoring: no gradients.

    expected: the spec that the model must have been trained by.
    Raises InputError where a file is missing, its digest, spec or architecture differs, or this
    machine has no such variant or device.
    """
    about, content = read_weights(path, "spec")
    about_path = Path(path).with_suffix(".json")
    spec = ModelSpec.read(about["spec"], about_path)
    if spec.variant not in variants():
        known = closest(spec.variant, list(variants()))
        raise InputError(f"{path}: trained by {spec.variant}, a variant that is not here{known}")
    if expected is not None and about.get("config") != digest(expected):
        raise InputError(f"{path}: config is {about.get('config')}, expected {digest(expected)}")
    networks = build(spec)
    try:
        fill(networks, read_tensors(content), path)
    except SafetensorError as error:
        raise InputError(f"{path}: expected safetensors: {error}") from None
    try:
        networks = networks.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device}: {str(error).splitlines()[0]}") from None
    return Model(networks.requires_grad_(False), spec, about)
