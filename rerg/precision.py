"""The precision of a network's convolutions; all else computes in that of its tensors.

`float32`; `tf32`, which rounds what a GPU multiplies to 10 bits of mantissa and adds in float32;
`bf16`, 7 bits. torch lets cuDNN's convolutions take TF32 by default, those of a physics too. The
switch is one for the process: only the thread that runs the network turns it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import Variable


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let cuDNN's convolutions compute in TF32 or not inside; afterwards as before."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def tf32_in_backward(allowed: bool) -> None:
    """The same from within a backward pass until its end, for a hook of it."""
    before = torch.backends.cudnn.allow_tf32
    if allowed == before:  # or another hook of this pass has turned it
        return

    def restore() -> None:
        torch.backends.cudnn.allow_tf32 = before

    torch.backends.cudnn.allow_tf32 = allowed
    Variable._execution_engine.queue_callback(restore)
