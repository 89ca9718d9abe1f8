"""RED by its own fixed-point solver."""


def restore(y, physics, sigma, x0, denoiser, scale, iterations):
    """x_{k+1} = argmin_x ½‖Ax - y‖² + (σ²·scale/2)‖x - D(x_k)‖², D a blind denoiser."""
    x = x0
    for _ in range(iterations):
        x = physics.prox_l2(denoiser(x, sigma), y, 1 / (scale * sigma**2))
    return x
