"""The UNet of every variant: the body of deepinv's DRUNet, with or without a noise map."""

import torch
import torch._functorch.config
import torch.nn.functional as F
from deepinv.models import DRUNet
from torch import Tensor, nn

from rerg.config import InputError
from rerg.precision import tf32, tf32_in_backward


class UNet(nn.Module):
    """A bias-free UNet from (B, 3, H, W) to (B, 3, H, W), for any H and W.

    channels: widths of the four scales; blocks: residual blocks per scale. `conditioned` adds an
    input channel that holds a noise level. `passes` counts those through the network, forward and
    backward, each over one batch. `precision` is that of the convolutions in both (rerg.precision);
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
        low = torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with low, tf32(self.precision == "tf32"):
            out = self.body(z.contiguous(memory_format=torch.channels_last))
        out = out.to(x.dtype)
        self.passes[0] += 1
        if out.requires_grad:
            out.register_hook(self._before_backward)
        return out[..., :height, :width]

    def _before_backward(self, _: Tensor) -> None:
        self.passes[1] += 1
        tf32_in_backward(self.precision == "tf32")


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
