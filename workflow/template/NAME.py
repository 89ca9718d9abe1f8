"""NAME: replace this by your method."""


def restore(y, physics, sigma, x0, weight, iterations):
    """Smooth the image and return to the data, in turn.

    y: observations (B, 3, h, w); physics: A, of deepinv; sigma: σ in [0, 1]; x0: initial images
    (B, 3, H, W), an argument that may be left out. Returns images of the size of x0.
    """
    x = x0
    for _ in range(iterations):
        neighbours = sum(x.roll(shift, axis) for shift in (-1, 1) for axis in (-2, -1)) / 4
        x = physics.prox_l2((x + neighbours) / 2, y, 1 / (weight * sigma**2))
    return x
