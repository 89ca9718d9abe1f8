"""The UNet of every variant: the body of deepinv's DRUNet, with or without a noise map."""

import hashlib
import json
from pathlib import Path

import torch
import torch._functorch.config
import torch.nn.functional as F
from deepinv.models import DRUNet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rerg.config import InputError


class UNet(nn.Module):
    """A bias-free UNet from (B, 3, H, W) to (B, 3, H, W), for any H and W.

    channels: widths of the four scales; blocks: residual blocks per scale. `conditioned` adds an
    input channel that holds a noise level. `passes` counts those through the network, forward and
    backward, each over one batch. `precision` bf16 runs the network's convolutions in bfloat16;
    weights, input and output stay float32.
    """

    def __init__(self, channels: list[int], blocks: int, conditioned: bool = False):
        super().__init__()
        # DRUNet adds an input channel for its noise map, so 2 + 1 is an RGB image alone.
        self.unet = DRUNet(
            in_channels=3 if conditioned else 2,
            out_channels=3,
            nc=channels,
            nb=blocks,
            pretrained=None,
        ).to(memory_format=torch.channels_last)
        self.conditioned = conditioned
        self.body = self.unet.forward_unet
        self.passes = [0, 0]
        self.precision = "float32"

    @property
    def evaluations(self) -> int:
        """Passes so far, forward and backward."""
        return sum(self.passes)

    def forward(self, x: Tensor, level: Tensor | float | None = None) -> Tensor:
        """N(x), or N(x, level) with a noise level in [0, 1], one per image or one for all."""
        height, width = x.shape[-2:]
        padding = (0, -width % 8, 0, -height % 8)
        z = F.pad(x, padding, mode="replicate") if any(padding) else x
        if self.conditioned:
            level = torch.as_tensor(level, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
            z = torch.cat([z, level.expand(len(z), 1, *z.shape[-2:])], 1)
        low = self.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            out = self.body(z.contiguous(memory_format=torch.channels_last))
        out = out.to(x.dtype)
        self.passes[0] += 1
        if out.requires_grad:
            out.register_hook(self._count)
        return out[..., :height, :width]

    def _count(self, _: Tensor) -> None:
        self.passes[1] += 1


def build(spec: dict, conditioned: bool, seed: int) -> UNet:
    """A UNet of the config's `network` entry, initialised from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(spec["channels"], spec["blocks"], conditioned)


def compile_networks(networks: nn.ModuleDict) -> None:
    """Run the networks by torch.compile from now on: the same within rounding.

    Raises InputError where torch.compile does not work on this machine.
    """
    # A deep equilibrium's backward solve goes through one graph many times, which buffers that
    # are given away after the first do not survive.
    torch._functorch.config.donated_buffer = False
    try:
        torch.compile(torch.sin)(next(networks.parameters()).detach())
    except RuntimeError as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise InputError(f"compile: torch.compile does not work here: {reason}") from None
    for network in networks.values():
        network.body = torch.compile(network.unet.forward_unet, dynamic=True)


def copy_weights(source: UNet, target: UNet) -> None:
    """Start `target` from `source`; a noise map that the source lacks gets zero weights."""
    state = source.state_dict()
    if target.conditioned and not source.conditioned:
        head = state["unet.m_head.weight"]
        state["unet.m_head.weight"] = torch.cat([head, torch.zeros_like(head[:, :1])], 1)
    target.load_state_dict(state)


def save_weights(path: Path, networks: nn.ModuleDict, about: dict) -> None:
    """Write the networks as safetensors, and beside them a JSON that describes them."""
    path = Path(path)
    save_file({k: v.contiguous() for k, v in networks.state_dict().items()}, path)
    about = {**about, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


def load_weights(path: Path, networks: nn.ModuleDict, expected: dict) -> dict:
    """Load weights into networks, and return their description.

    expected: keys of the JSON beside the weights and the values they must have.
    Raises InputError where the file, its digest, a value or the architecture differs.
    """
    path = Path(path)
    about_path = path.with_suffix(".json")
    try:
        about = json.loads(about_path.read_text())
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file, needed to load {path.name}") from None
    except json.JSONDecodeError:
        raise InputError(f"{about_path}: expected a JSON description of {path.name}") from None
    for key, value in expected.items():
        if about.get(key) != value:
            raise InputError(f"{path}: {key} is {about.get(key)}, expected {value}")
    if hashlib.sha256(content).hexdigest() != about.get("sha256"):
        raise InputError(f"{path}: the weights are not those that {about_path.name} describes")
    try:
        networks.load_state_dict(load_file(path))
    except RuntimeError as error:
        fault = str(error).splitlines()[1].strip()
        raise InputError(f"{path}: weights of another architecture: {fault}") from None
    return about
