"""A training that destroys itself goes back to its last good state, with half the rate.

Windows of ten steps are compared. The first has a rate of zero, so that it measures the start
(docs/method.md, section 5).
"""

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

WINDOW = 10  # steps
WORSE = 3.0  # times the error (geometric means) of the last good windows
LOST, RISE = 0.5, 0.25  # share of lost images: at least, and above the least of a window so far
MEMORY = 10  # good windows


class Rollback:
    """Watches the steps of a training; `factor` multiplies its rate, `count` counts the returns.

    A window is bad where its mean of log(error) exceeds that of the last ten good windows by
    log 3, where more than half of its images are lost and a quarter more than in the best window,
    or where weights are not finite. A step that was skipped counts as lost. Then weights and
    moments go back to the older of the last two good windows, and the rate is halved for good.
    """

    def __init__(self, networks: nn.Module, optimizer: torch.optim.Optimizer):
        self.networks, self.optimizer = networks, optimizer
        self.window: list[dict] = []
        self.levels: list[float] = []
        self.lowest, self.factor, self.count = 1.0, 1.0, 0
        self.good = [self._snapshot()]

    def _snapshot(self) -> list[dict]:
        return copy.deepcopy([self.networks.state_dict(), self.optimizer.state_dict()])

    def watch(self, row: Mapping[str, float]) -> bool:
        """Whether the training went back at this step.

        row: of the step, with `error` > 0 (its loss where there is none), `lost` and `skipped`.
        """
        self.window.append(
            {
                "error": row.get("error", row["loss"]),
                "lost": 1.0 if row["skipped"] else row.get("lost", 0.0),
            }
        )
        if len(self.window) < WINDOW:
            return False
        window, self.window = self.window, []
        errors = [step["error"] for step in window if step["error"] > 0]  # false for NaN
        level = float(np.mean(np.log(errors))) if errors else math.inf
        lost = float(np.mean([step["lost"] for step in window]))
        reference = np.mean(self.levels) if self.levels else math.inf
        finite = bool(torch.stack([p.isfinite().all() for p in self.networks.parameters()]).all())
        worse = level > reference + math.log(WORSE)
        if worse or lost > max(LOST, self.lowest + RISE) or not finite:
            self.good = self.good[:1]
            weights, moments = copy.deepcopy(self.good[0])
            self.networks.load_state_dict(weights)
            self.optimizer.load_state_dict(moments)
            self.factor, self.count = self.factor / 2, self.count + 1
            return True
        self.good = [*self.good, self._snapshot()][-2:]
        self.levels = [*self.levels, level][-MEMORY:] if math.isfinite(level) else self.levels
        self.lowest = min(self.lowest, lost)
        return False

    def state_dict(self) -> dict:
        """All that a checkpoint keeps of it."""
        names = ("window", "levels", "lowest", "factor", "count", "good")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from what `state_dict` gave."""
        vars(self).update(state)
