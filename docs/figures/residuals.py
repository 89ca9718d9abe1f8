"""Draw docs/figures/residuals.png: the residual of every solver over its network evaluations."""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from skimage import data
from torch import Tensor

from rerg.config import read_yaml
from rerg.figures import STYLE, WIDTH
from rerg.iteration import Anderson, Momentum, Plain, Solution, Watch, fixed_point, norm
from rerg.labels import solver_label
from rerg.maps import ProximalGradient
from rerg.problems import Problem, generator
from rerg.reconstructor import load
from rerg.registry import load as module_of
from rerg.specs import ProblemSpec

FOLDER = Path(__file__).parent
CONFIG = FOLDER.parents[1] / "config"
PANELS = {  # title: problem, factor of the network
    "Denoising, σ = 50": ("den50", 1),
    "Completion, 90 % missing": ("com90", 1),
    "Denoising, σ = 50, R × 4": ("den50", 4),
}
SIDE, TOP, LEFT = 96, 72, 122  # of the crop, pixels
STEPS = 1500  # at most
END = 1e-5  # the least residual that is drawn
ON_FAST = {"plain steps": Plain, "momentum": Momentum, "Anderson": Anderson}
LINES = {  # solver: its equation in docs/method.md, colour, line, width; later ones lie above
    "gd": ("9", "#D55E00", "--", 1.2),
    "adam": ("13", "#000000", ":", 1.2),
    "plain steps": ("11", "#999999", "-", 2.4),
    "momentum": ("14", "#E69F00", "-", 1.2),
    "fast": ("15a", "#0072B2", "-", 2.8),
    "Anderson": ("15", "#7CC8F0", (0, (3, 2)), 1.2),
}


class Residuals:
    """Of the fast map T, at what a solver would return now: rows of evaluations and residual.

    What it evaluates itself is not counted. Beyond 100 evaluations it looks at every 5 % more.
    """

    def __init__(self, T: ProximalGradient):
        self.T, self.rows, self.next = T, [], 1

    def __call__(self, k: int, x: Tensor, residual: np.ndarray) -> None:
        if self.next <= k or k == STEPS:
            self.next = max(k + 1, int(1.05 * k) if k >= 100 else 0)
            T_x = self.T(x)
            self.rows.append((k, (norm(T_x - x) / norm(T_x)).item()))


def solve(solver: str, T: ProximalGradient, options: dict, watch: Watch) -> Solution:
    """Run a solver to its end."""
    if solver in ON_FAST:
        options = {"iterations": STEPS, "tolerance": END / 2, "watch": watch}
        return fixed_point(T, T.start(), acceleration=ON_FAST[solver], **options)
    module = module_of("solvers", solver)
    own = module.MAP(T.N, T.observation, T.scale)
    return module.solve(own, watch=watch, **options)


@torch.no_grad()
def courses(weights: str) -> dict[str, dict[str, tuple[np.ndarray, bool]]]:
    """Title to solver to its residuals and whether it diverged, on one crop of a photograph."""
    rg = load(weights)
    network, scale = rg.networks["rg"], rg.about["spec"]["network"]["scale"]
    problems = read_yaml(CONFIG / "problems.yaml")
    solvers = read_yaml(CONFIG / "config.yaml")["solvers"]
    pixels = data.chelsea()[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    truth = torch.from_numpy(pixels).movedim(-1, 0)[None].float() / 255
    found = {title: {} for title in PANELS}
    for title, (name, factor) in PANELS.items():
        observation = Problem(ProblemSpec.of(name, problems[name])).observe(
            truth, [generator("docs", name, "0")]
        )
        T = ProximalGradient(lambda x, factor=factor: factor * network(x), observation, scale)
        for solver in LINES:
            options = {**solvers.get(solver, {}), "iterations": STEPS}
            if solver == "fast":
                options["tolerance"] = END / 2
            if solver == "adam" and "learning_rate" in problems[name]:
                options["learning_rate"] = problems[name]["learning_rate"]
            watch = Residuals(T)
            solution = solve(solver, T, options, watch)
            found[title][solver] = np.array(watch.rows), solution.stopped == ["diverged"]
    return found


def draw(found: dict[str, dict[str, tuple[np.ndarray, bool]]]) -> Figure:
    """A panel per problem, a line per solver; a cross where it diverges."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    panels = figure.subplots(1, len(found), sharex=True, sharey=True)
    for ax, (title, lines) in zip(panels, found.items(), strict=True):
        for solver, (line, diverged) in lines.items():
            number, color, style, width = LINES[solver]
            label = f"{solver_label(solver)} ({number})"
            ax.plot(*line.T, linestyle=style, color=color, linewidth=width, label=label)
            if diverged:
                ax.plot(*line[-1], "x", color=color, markersize=3 + 2 * width)
        ax.set(xscale="log", yscale="log", xlim=(1, STEPS), ylim=(END, 3), title=title)
        ax.grid(linewidth=0.3)
    panels[0].set_ylabel("residual of the fast map,\n‖T(x) − x‖ / ‖T(x)‖")
    panels[len(panels) // 2].set_xlabel("network evaluations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="rerg", help="shipped ones, or a .safetensors file")
    with matplotlib.rc_context(STYLE):
        figure = draw(courses(parser.parse_args().weights))
        figure.savefig(FOLDER / "residuals.png", metadata={"Software": None})
