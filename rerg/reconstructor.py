"""The front door: a regularizing gradient as a function of an observation and of its operator.

`load` gives an `RG`, which is a `Reconstructor` of deepinv. Numbers in brackets are equations of
docs/method.md.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from deepinv.models import Reconstructor
from deepinv.physics import BlurFFT, Denoising, Downsampling, Inpainting, LinearPhysics
from torch import Tensor, nn

from rerg.bound import error_bound, radial_factor, rms
from rerg.config import InputError, closest
from rerg.equilibrium import equilibrium
from rerg.iteration import Safeguarded, Solution, fixed_point
from rerg.maps import Map, ProximalGradient
from rerg.models import Model, load_model
from rerg.precision import tf32
from rerg.problems import Observation, initial

SHIPPED = Path(__file__).parent / "weights"
FAULT = 1e-3  # relative; rounding in float32 stays below it
Array = TypeVar("Array", Tensor, np.ndarray)


def _divisible(T: Map) -> Callable[[Tensor], Tensor]:
    """The map, that cannot be indexed where what its physics holds per image is unknown.

    The batch of an unknown physics then stays whole.
    """
    return T if T.observation.closed else T.__call__


class Grey(nn.Module):
    """N on images of one channel: the mean of what it says of three equal ones."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *level: Tensor | float) -> Tensor:
        """(B, 1, H, W) to (B, 1, H, W)."""
        return self.network(x.expand(-1, 3, -1, -1), *level).mean(1, keepdim=True)


class RG(Reconstructor):
    """A regularizing gradient R that restores x from y = A x + n, whatever the linear operator A.

    The restoration is the equilibrium Aᵀ(A x - y) + σ²R(x) = 0, found from x0 by the fast solver
    (11, 15a) to a relative residual of `tolerance`, in at most `iterations` evaluations.

    Everywhere below: y is a batch of observations as `physics` makes them, real floats, a torch
    tensor or a numpy array, with images in [0, 1] and of 1 or 3 channels; physics is any
    `LinearPhysics` of deepinv; sigma is the standard deviation of the noise, or another weight, in
    (0, 1], by default that of the constructor, else that of `physics.noise_model`; x0 is the
    initial image, by default y, its upsampling, or 0.5 where neither is an image. What is returned
    has the type, dtype and device of y. The computation is on the device of the weights.

    InputError, a ValueError of one line, says what cannot be served.
    """

    def __init__(
        self,
        model: Model,
        *,
        sigma: float | None = None,
        iterations: int = 300,
        tolerance: float = 1e-4,
    ):
        super().__init__()
        self.networks, self.about = model.networks, model.about
        self.sigma, self.iterations, self.tolerance = sigma, iterations, tolerance
        self._model = model

    def restore(
        self,
        y: Array,
        physics: LinearPhysics,
        sigma: float | None = None,
        x0: Array | None = None,
    ) -> Array:
        """The restorations x (B, C, H, W), not clipped."""
        return _like(y, self.solve(y, physics, sigma, x0).x)

    def forward(self, y: Tensor, physics: LinearPhysics, sigma: float | None = None) -> Tensor:
        """`restore`, as deepinv calls a reconstructor."""
        return self.restore(y, physics, sigma)

    def solve(
        self,
        y: Array,
        physics: LinearPhysics,
        sigma: float | None = None,
        x0: Array | None = None,
    ) -> Solution:
        """The restorations as tensors on the device of the weights, and how they were reached.

        `evaluations`, `residual` and `converged` of the solution have an entry per image.
        """
        with torch.no_grad():
            T = self._map(y, physics, sigma, x0)
            solution = fixed_point(
                _divisible(T),
                T.start(),
                iterations=self.iterations,
                tolerance=self.tolerance,
                acceleration=Safeguarded,
            )
            return replace(solution, x=T.restoration(solution.x))

    def equilibrium(
        self,
        y: Array,
        physics: LinearPhysics,
        sigma: float | None = None,
        x0: Array | None = None,
    ) -> Tensor:
        """The restorations with their implicit gradient, to y and to the weights (17, 18).

        A tensor, of the dtype and device of the weights; `rg.requires_grad_()` makes them
        trainable. Memory is that of one evaluation.
        """
        T = self._map(y, physics, sigma, x0)
        x, _ = equilibrium(
            _divisible(T),
            T.start().detach(),
            iterations=self.iterations,
            tolerance=self.tolerance,
            backward_iterations=self.iterations,
            backward_tolerance=self.tolerance,
        )
        return T.restoration(x)

    def bound(
        self,
        x: Array,
        truth: Array,
        y: Array,
        physics: LinearPhysics,
        sigma: float | None = None,
    ) -> Array:
        """An upper bound on ‖x - x̂‖, root mean square of each image, (B,); inf where q ≥ 1 (24).

        It is (‖T(x̂) - x̂‖ + ‖T(x) - x‖) / (1 - q) with q = ‖T(x) - T(x̂)‖ / ‖x - x̂‖.
        x, truth: (B, C, H, W), restorations and ground truth.
        """
        with torch.no_grad():
            T = self._map(y, physics, sigma, None)
            if type(T) is not ProximalGradient:
                raise InputError(f"{self._model.spec.variant}: the bound is about an RG alone")
            x, truth = (self._tensor(array) for array in (x, truth))
            T_x, T_truth = T(x), T(truth)
            q = radial_factor(T_x, T_truth, x, truth)
            return _like(y, error_bound(rms(T_truth - truth), q, rms(T_x - x)))

    def _tensor(self, array: Array) -> Tensor:
        if not isinstance(array, Tensor | np.ndarray):
            raise InputError(f"expected a tensor or an array, got {type(array).__name__}")
        tensor = torch.as_tensor(array)
        if not tensor.is_floating_point():
            raise InputError(f"expected real floats with images in [0, 1], got {tensor.dtype}")
        return tensor.to(next(self.networks.parameters()))

    def _map(self, y: Array, physics: LinearPhysics, sigma: float | None, x0: Array | None) -> Map:
        """The map whose fixed points are the restorations."""
        weight = self._sigma(physics, sigma)
        y = self._tensor(y)
        physics = _prepared(physics, y)
        back = _applied(physics, physics.A_adjoint, y)
        if back.dim() != 4 or back.shape[1] not in (1, 3) or back.is_complex():
            raise InputError(
                f"{type(physics).__name__}: expected images of shape (B, 3 or 1, H, W), "
                f"got {tuple(back.shape)}"
            )
        if back.dtype != y.dtype:
            raise InputError(
                f"{type(physics).__name__} computes in {back.dtype}, the network in {y.dtype}; "
                "convert one of them"
            )
        model = self._model
        if back.shape[1] == 1:
            grey = nn.ModuleDict({name: Grey(n) for name, n in model.networks.items()})
            model = replace(model, networks=grey)
        if x0 is not None:
            start = self._tensor(x0)
            if start.shape != back.shape:
                raise InputError(f"x0: expected {tuple(back.shape)}, got {tuple(start.shape)}")
        else:
            known = type(physics) in (Denoising, Inpainting, BlurFFT, Downsampling)
            start = initial(y.detach(), physics) if known else back
            if not known or start.shape != back.shape:
                start = torch.full_like(back, 0.5)
        observation = Observation(y, start, physics, weight)
        _check(observation, 1 / (weight**2 * model.spec.scale))
        observation.__dict__["back_projection"] = back  # with its gradient to y
        return model.restoring_map(observation, "fast")

    def _sigma(self, physics: LinearPhysics, sigma: float | None) -> float:
        chosen = self.sigma if sigma is None else sigma
        if chosen is None:
            chosen = getattr(getattr(physics, "noise_model", None), "sigma", None)
        if chosen is None:
            raise InputError("sigma: expected the standard deviation of the noise, in (0, 1]")
        levels = torch.as_tensor(chosen, dtype=torch.float64).unique()
        if len(levels) != 1 or not 0 < float(levels) <= 1:
            raise InputError(
                f"sigma: expected one value in (0, 1], got {levels.tolist()}; "
                "noise-free observations take a small one, as 3/255"
            )
        return float(levels)


def _like(y: Array, x: Tensor) -> Array:
    """x with the type, dtype and device of y."""
    return x.to(y) if isinstance(y, Tensor) else x.cpu().numpy().astype(y.dtype)


def _prepared(physics: LinearPhysics, y: Tensor) -> LinearPhysics:
    """A copy on the device of y, whose iterative solves are as exact as float32 admits."""
    if not isinstance(physics, LinearPhysics):
        raise InputError(f"physics: expected a LinearPhysics, got {type(physics).__name__}")
    held = next(physics.buffers(), None)
    move = held is not None and held.device != y.device
    physics = copy.deepcopy(physics).to(y.device) if move else copy.copy(physics)
    physics.max_iter, physics.tol = 500, 1e-6
    return physics


def _applied(physics: LinearPhysics, operator, *arguments) -> Tensor:
    """An operator of a user's physics, which may convolve, without TF32; its errors in a line."""
    try:
        with tf32(False):
            return operator(*arguments)
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        shape = tuple(arguments[0].shape)
        raise InputError(
            f"{type(physics).__name__}: {operator.__name__} fails on {shape}: {reason}"
        ) from None


@torch.no_grad()
def _check(observation: Observation, t: float) -> None:
    """Hold the physics against what the solver takes for granted.

    ⟨A u, v⟩ = ⟨u, Aᵀv⟩ for white noise u, v, and p - u + t Aᵀ(A p - y) = 0 for p = prox_{tF}(u).
    Raises InputError where either is not so.
    """
    physics, y = observation.physics, observation.y
    name, rng = type(physics).__name__, np.random.default_rng(0)
    u, v = (torch.from_numpy(rng.standard_normal(z.shape)).to(z) for z in (observation.x0, y))
    A_u = _applied(physics, physics.A, u)
    if A_u.shape != y.shape:
        raise InputError(
            f"{name}: makes {tuple(A_u.shape)} of {tuple(u.shape)}, but y is {tuple(y.shape)}"
        )
    fault = (A_u * v).sum() - (u * _applied(physics, physics.A_adjoint, v)).sum()
    if not fault.abs() <= FAULT * A_u.norm() * v.norm():
        raise InputError(f"{name}: A_adjoint is not the adjoint of A")
    p = _applied(physics, observation.prox, u, t)
    back = _applied(physics, physics.A_adjoint, y)
    A_p = _applied(physics, physics.A, p)
    fault = p - u + t * (_applied(physics, physics.A_adjoint, A_p) - back)
    if not fault.norm() <= FAULT * (u.norm() + t * back.norm()):
        raise InputError(f"{name}: no prox of ½‖Ax - y‖², conjugate gradients fail")


def load(name: str | Path, *, sigma: float | None = None, device: str = "cpu") -> RG:
    """An RG by the name of weights that the package ships, or from a file of weights.

    name: `rerg`, or the path of a .safetensors file with its JSON beside it; sigma: see `RG`.
    Raises InputError where there are no such weights or they are damaged.
    """
    path = Path(name)
    if path.suffix != ".safetensors":
        path = SHIPPED / f"{name}.safetensors"
        shipped = [file.stem for file in SHIPPED.glob("*.safetensors")]
        if not path.exists():
            raise InputError(
                f"{name}: no such weights in this package{closest(str(name), shipped)}"
            )
    return RG(load_model(path, device=device), sigma=sigma)
