"""`mtdeq`, the multi-task DEQ prior: a denoiser trained at the fixed point of PnP-ADMM."""

from rerg.variants import admm_map, reconstruction_loss

NETWORKS = {"denoiser": True}


def loss(networks, batch, settings):
    """E‖x* - x̂‖² / ‖x_0 - x̂‖², x* of the fixed point of PnP-ADMM (docs/method.md, eq. 32)."""
    T = admm_map(networks, batch.observation, settings.scale)
    value, _, log = reconstruction_loss(T, batch, settings)
    return value, log
