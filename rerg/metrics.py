"""The peak signal-to-noise ratio, of arrays and of tensors."""

from typing import TypeVar

import numpy as np

Image = TypeVar("Image")  # numpy arrays, or tensors of torch, which this module need not import


def psnr(x: Image, truth: Image) -> Image:
    """10 log10(1 / MSE) in dB over the last three axes, peak 1: of images (..., 3, H, W), (...).

    RGB in [0, 1] scale; no border is cropped and nothing is clipped. Infinite for equal images.
    """
    mse = ((x - truth) ** 2).mean((-3, -2, -1))
    with np.errstate(divide="ignore"):
        return -10 * (mse.log10() if hasattr(mse, "log10") else np.log10(mse))
