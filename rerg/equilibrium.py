"""Deep equilibria: a fixed point with its implicit gradient (docs/method.md, eq. 17 and 18)."""

from collections.abc import Callable

import torch
from torch import Tensor

from rerg.iteration import Safeguarded, Solution, Watch, fixed_point


def equilibrium(
    T: Callable[[Tensor], Tensor],
    x0: Tensor,
    *,
    iterations: int,
    tolerance: float,
    backward_iterations: int,
    backward_tolerance: float,
    report: Callable[[Solution], None] | None = None,
    watch: Watch | None = None,
) -> tuple[Tensor, Solution]:
    """The fixed point x* of T with its implicit gradient, and the forward solution.

    With v = ∂ℓ/∂x* the backward pass solves u = J_T(x*)ᵀu + v by the guarded solver and passes
    u on to T, so that dℓ/dθ = uᵀ ∂T(x*; θ)/∂θ (17, 18). Its memory is that of
    one application of T. backward_iterations = 0 takes u = v, the Jacobian-free gradient.
    report: called in the backward pass with the solution u, so that its residual can be seen.
    watch: of the forward solve, as of `fixed_point`.
    """
    with torch.no_grad():
        solution = fixed_point(
            T,
            x0,
            iterations=iterations,
            tolerance=tolerance,
            acceleration=Safeguarded,
            watch=watch,
        )
    z = solution.x.detach().requires_grad_()
    with torch.enable_grad():
        T_z = T(z)
        x = T_z.view_as(T_z)  # its hook must not see the gradients of the backward solve

    def solve(v: Tensor) -> Tensor:
        if backward_iterations == 0:
            return v

        def adjoint(u: Tensor) -> Tensor:
            return torch.autograd.grad(T_z, z, u, retain_graph=True)[0] + v

        with torch.no_grad():
            backward = fixed_point(
                adjoint,
                v,
                iterations=backward_iterations,
                tolerance=backward_tolerance,
                acceleration=Safeguarded,
                largest=torch.inf,
            )
        if report is not None:
            report(backward)
        return backward.x

    x.register_hook(solve)
    return x, solution
