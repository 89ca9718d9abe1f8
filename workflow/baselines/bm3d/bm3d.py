"""BM3D for denoising and deblurring, by the package of its authors."""

import bm3d
import numpy as np
import torch
from deepinv.physics import Denoising

if not hasattr(np, "trapz"):  # bm4d 4.2, under bm3d, calls what NumPy 2.4 renamed
    setattr(np, "trapz", np.trapezoid)  # noqa: B010

profile = bm3d.BM3DProfile()
profile.num_threads = 1  # more give other last digits from run to run


def restore(y, physics, sigma, regularization):
    """BM3D of each image: of its colours together, or of each after a regularized inverse.

    Deblurring: Z = H̄Y / (|H|² + regularization·σ²), then BM3D with the spectrum of Z's noise,
    without the second inverse of Dabov et al. (2008).
    """
    noisy = y.permute(0, 2, 3, 1).double().cpu().numpy()
    if isinstance(physics, Denoising):
        clean = [bm3d.bm3d_rgb(image, sigma, profile) for image in noisy]
    else:
        impulse = torch.zeros_like(y)
        impulse[..., 0, 0] = 1
        H = torch.fft.fft2(physics.A(impulse))[0, 0].cpu().numpy()
        inverse = H.conj() / (np.abs(H) ** 2 + regularization * sigma**2)
        spectrum = H.size * sigma**2 * np.abs(inverse) ** 2
        z = np.fft.ifft2(np.fft.fft2(noisy, axes=(1, 2)) * inverse[..., None], axes=(1, 2)).real
        clean = [
            np.dstack([bm3d.bm3d(image[..., c], spectrum, profile) for c in range(3)])
            for image in z
        ]
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in clean]).to(y)
