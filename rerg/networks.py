"""The UNet of every variant: the body of deepinv's DRUNet, with or without a noise map."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from deepinv.models import DRUNet
from torch import Tensor, nn

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
            if not isinstance(level, Tensor):
                level = x.new_full((1,), level)  # filled on the device: a copy would be waited for
            level = level.to(x).reshape(-1, 1, 1, 1)
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


class Graphs:
    """A network's body that launches each pass without a gradient as one CUDA graph.

    A pass over a shape that came before, in the same precision, is recorded: the same kernels on
    the same weights, which may change in place. The first is plain, as recording needs one before.
    """

    def __init__(self, body: Callable[[Tensor], Tensor]):
        self.body = body
        self.seen: set[tuple] = set()
        self.recorded: dict[tuple, Callable[[Tensor], Tensor]] = {}
        self.pool: Any = None  # of memory that all recorded passes compute in, one after another

    def __call__(self, z: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.body(z)
        low = torch.is_autocast_enabled(z.device.type)
        key = (low, torch.backends.cudnn.allow_tf32, z.shape)
        if key in self.seen and key not in self.recorded:
            self.recorded[key] = self.record(z)
        self.seen.add(key)
        return self.recorded.get(key, self.body)(z)

    def record(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """A pass over inputs of this shape as one launch."""
        held, graph = z.clone(), torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile, as those do that pin batches.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            out = self.body(held)
        self.pool = graph.pool()

        def replay(z: Tensor) -> Tensor:
            held.copy_(z)
            graph.replay()
            return out.clone()

        return replay


def launch(networks: nn.ModuleDict, way: str) -> None:
    """Launch the networks' kernels from now on one by one (`plain`) or, on a GPU, as `graphs`."""
    if way == "graphs":
        for network in networks.values():
            network.body = Graphs(network.body)
