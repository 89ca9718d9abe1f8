"""Our restoration loop against the same loop written plainly after the public code of PnP-ReG.

That code restores one image at a time by Adam on the image, with one flip or rotation per step,
and logs PSNR and SSIM at each. `plain` is written after this description; rerg does the same steps
on all images at once and takes its PSNR on a log-spaced grid. Both end at the same images.
"""

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row, Workload, in_turn, timed_row
from rerg.networks import UNet
from rerg.problems import Observation
from rerg.restoration import restore
from rerg.scores import ssim

LEARNING_RATE = 0.01


def turned(N: UNet, x: Tensor, k: int) -> Tensor:
    """N applied under the (k mod 8)-th flip and rotation, and turned back."""
    z = torch.rot90(x, k % 4, (2, 3))
    if k % 8 >= 4:
        return torch.rot90(N(z.flip(3)).flip(3), -(k % 4), (2, 3))
    return torch.rot90(N(z), -(k % 4), (2, 3))


def plain(N: UNet, observation: Observation, scale: float, truth: Tensor, steps: int) -> Tensor:
    """One image, step by step, with both scores at each."""
    A, A_adjoint = observation.physics.A, observation.physics.A_adjoint
    x = observation.x0.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=LEARNING_RATE)
    clean, log = truth[0].numpy(), []
    for k in range(1, steps + 1):
        with torch.no_grad():
            prior = observation.sigma**2 * scale * turned(N, x, k)
            x.grad = A_adjoint(A(x) - observation.y) + prior
        optimizer.step()
        image = x.detach()[0].numpy()
        log.append((-10 * np.log10(np.mean((image - clean) ** 2)), ssim(image, clean)))
    return x.detach()


def rows(work: Workload) -> list[Row]:
    """Seconds of the plain loop over those of ours, on super-resolution."""
    model, steps, images = work.model(), 5 if work.quick else 50, 2 if work.quick else 4
    problem = work.of_each_operator()[-1] if work.quick else work.problems["sr2"]
    truth, batch = work.observe(problem, images)
    observed = {str(i): batch[torch.tensor([i])] for i in range(len(truth))}
    ends: dict[str, np.ndarray] = {}

    def ours() -> None:
        restored = restore(
            model,
            observed,
            solver="adam",
            options={"iterations": steps, "learning_rate": LEARNING_RATE},
            batch_size=8,
            truth={str(i): truth[i] for i in range(len(truth))},
        )
        ends["ours"] = np.stack([restored.images[name] for name in observed])

    def theirs() -> None:
        found = [
            plain(model.networks["rg"], observation, work.scale, truth[i : i + 1], steps)
            for i, observation in enumerate(observed.values())
        ]
        ends["theirs"] = torch.cat(found).numpy()

    taken = in_turn([ours, theirs], 1 if work.quick else 5)
    apart = np.abs(ends["ours"] - ends["theirs"]).max()
    return [
        timed_row(
            f"restoration loop against PnP-ReG's, plainly written, {len(truth)} images",
            *taken.T,
            ">= 1",
            note=f"{problem.name}, {steps} steps of Adam; images at most {apart:.0e} apart",
        )
    ]
