"""`red`, regularization by denoising: N estimates the noise. The warm start of the others."""

NETWORKS = {"rg": False}


def loss(networks, batch, settings):
    """E‖N(x̂ + e) - e‖², e white noise of level U(0, 50/255) (docs/method.md, eq. 27)."""
    del settings
    e = batch.levels() * batch.normal()
    return (networks["rg"](batch.truth + e) - e).square().mean(), {}
