"""The contract of a method, held against tiny observations of every type of problem.

    python -m rerg.check NAME [--baselines FOLDER]

restores images that are made here, twice, by one baseline (or one variant and solver). One line per
fault: a restoration that is missing, has another shape or is not finite, differs the second time,
or is worse than the initial image; and observations that were changed. Exit status 1 with a fault.
What a method learns from is trained for a moment: enough to restore with, too little to judge, so
that its quality is not asked for.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import torch
import yaml
from torch import Tensor

from rerg import baselines, restoration
from rerg.config import InputError, read_yaml
from rerg.devices import set_up_cpu
from rerg.files import Restored, read_observed, read_restored, write_observed, write_restored
from rerg.guard import fault_of
from rerg.images import as_tensor
from rerg.models import load_model, save
from rerg.problems import Problem, from_arrays, to_arrays
from rerg.published import convert, network_of
from rerg.run import Run
from rerg.training import train
from rerg.tuning import summary

ROOT = Path(__file__).parents[1]
DATASET = "embedded-test"  # its name alone
SIZE = (48, 61)  # pixels
EVALUATIONS = 40  # of a training
ITERATIONS = 5  # of a solver
CHANGES = {
    "run": "check",
    "problems": ["den25", "sr3", "blur16", "com80"],
    "comparisons": [],
    "examples": [],
    "network": {"channels": [8, 8, 16, 16], "blocks": 1, "scale": 400},
}


def clean_images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random images (B, 3, H, W) in [0, 1], float32, with smooth parts and edges."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:height, :width] / max(height, width)
    x = np.empty((batch, 3, height, width), dtype=np.float32)
    for image in x:
        for channel in image:
            a, b, phase = rng.uniform([-6, -6, 0], 6)
            channel[:] = 0.5 + 0.25 * np.sin(a * u + b * v + phase)
        for _ in range(4):
            normal, height_of_edge = rng.standard_normal(2), rng.uniform(-0.2, 0.2, 3)
            side = normal[0] * (u - rng.uniform()) + normal[1] * (v - rng.uniform()) > 0
            image += height_of_edge[:, None, None].astype(np.float32) * side
    return torch.from_numpy(x.clip(0, 1))


class Bench:
    """A folder with a run of one method on two tiny images, up to their observations.

    models: where what is trained for a moment is kept, for other methods too.
    Raises InputError for a fault of the method's folder, and where the method needs what this
    machine lacks.
    """

    def __init__(self, name: str, folders: Sequence[Path], folder: Path, models: Path):
        config = read_yaml(ROOT / "config" / "config.yaml") | CHANGES
        config |= {"methods": [name], "baselines": [str(Path(f).resolve()) for f in folders]}
        config["training"] |= {"crop": 32, "batch": 2}
        config["tuning"] |= {"rounds": 0}
        self.run = Run(config, ROOT, "rerg.check")
        self.name, self.settings, self.models = name, self.run.methods[name], models
        self.folder, self.results = folder, folder / "results" / "check"
        self.config = folder / "check.yaml"
        self.config.write_text(yaml.safe_dump(config), encoding="utf-8")
        (batch,) = self.run.batches
        self.observations = self.results / "observations" / DATASET / batch
        self.truth = self._observe()
        self.problems = self.run.problems_of(name)
        if not self.problems:
            tried = ", ".join(self.run.config["problems"])
            raise InputError(f"{name}: it restores none of {tried}, so nothing can be checked")

    def _observe(self) -> dict[str, dict[str, Tensor]]:
        """Write images and observations as the rules do; problem to image to ground truth."""
        images = self.results / "images" / f"{DATASET}.h5"
        images.parent.mkdir(parents=True)
        images.with_suffix(".lock").write_text("")
        pixels = (clean_images(2, *SIZE) * 255).round().byte().movedim(1, -1).numpy()
        clean = {f"image-{i}": as_tensor(x) for i, x in enumerate(pixels)}
        with h5py.File(images, "w") as file:
            for image, x in zip(clean, pixels, strict=True):
                file[image] = x
        truth = {}
        for name in self.run.config["problems"]:
            problem = Problem(self.run.problem_spec(name))
            observed = {
                image: problem.observe_image(DATASET, image, x) for image, x in clean.items()
            }
            write_observed(self.observations / f"{name}.npz", to_arrays(problem, observed))
            truth[name] = {image: problem.crop(x) for image, x in clean.items()}
        return truth

    def weights(self, variant: str) -> Path:
        """A variant that was trained for a moment; random weights stand for published ones."""
        path = self.models / f"{variant}.safetensors"
        if not path.exists() and variant in self.run.weights:
            small = {key: CHANGES["network"][key] for key in ("channels", "blocks")}
            entry = self.run.weights[variant] | small
            torch.save(network_of(entry).state_dict(), path.with_suffix(".pth"))
            convert(variant, entry, path.with_suffix(".pth"), path)
        elif not path.exists():
            spec = replace(self.run.model_spec(variant, 0), evaluations=EVALUATIONS)
            start = load_model(self.weights(spec.start)).networks if spec.start else None

            def crops(rng: np.random.Generator) -> Tensor:
                return clean_images(spec.batch, spec.crop, spec.crop, int(rng.integers(2**32)))

            networks, _ = train(spec, crops, start, path.with_suffix(".ckpt"))
            save(path, networks, spec, {})
        return path

    def restore(self) -> dict[str, Restored]:
        """Problem to its restorations, or the reason why there are none."""
        folder = self.results / "restorations" / DATASET
        targets = {problem: folder / problem / f"{self.name}.npz" for problem in self.problems}
        for target in targets.values():
            target.unlink(missing_ok=True)
        if self.settings.get("baseline") == ".smk":
            if reason := self._by_its_rule(targets.values()):
                return {problem: Restored(failed=reason) for problem in targets}
        else:
            variant = self.run.variant_of(self.name)
            weights = self.weights(variant) if variant else None
            for problem, target in targets.items():
                task = partial(self._by_a_call, self.observations / f"{problem}.npz", weights)
                restored, reason = baselines.guarded(task, self.settings.get("timeout", 60))
                write_restored(target, Restored(failed=reason) if reason else restored)
        found = {}
        for problem, target in targets.items():
            reason = fault_of(target, self.observations / f"{problem}.npz")
            found[problem] = Restored(failed=reason) if reason else read_restored(target)
        return found

    def _by_a_call(self, path: Path, weights: Path | None) -> Restored:
        _, observations = from_arrays(read_observed(path))
        if "variant" in self.settings:
            options = self.run.options(self.name, path.stem) | {"iterations": ITERATIONS}
            solver = self.settings["solver"]
            model = load_model(weights)
            return restoration.restore(
                model, observations, solver=solver, options=options, batch_size=2
            )
        file = None
        if self.settings["baseline"] == ".py":
            file = self.run.baselines[self.name] / f"{self.name}.py"
        baseline = baselines.load_baseline(self.name, self.settings, file, weights, "cpu")
        return baselines.restore(baseline, observations, batch_size=2)

    def _by_its_rule(self, targets) -> str:
        """Run the baseline's own rule; the last line of Snakemake where it fails."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
        command += ["--directory", self.folder, "--configfile", self.config, "--cores", "1"]
        command += ["--rerun-triggers", "mtime", "--"]
        command += [target.relative_to(self.folder) for target in targets]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1].strip() if done.returncode else ""

    def digests(self) -> dict[str, str]:
        """Problem to the digest of its observations."""
        paths = sorted(self.observations.glob("*.npz"))
        return {path.stem: sha256(path.read_bytes()).hexdigest() for path in paths}

    def fault(self, problem: str, first: Restored, again: Restored) -> str:
        """What is wrong with two restorations of a problem, in a line; "" where nothing is."""
        if first.failed:
            return first.failed
        same = not again.failed and all(
            np.array_equal(x, again.images[image]) for image, x in first.images.items()
        )
        if not same:
            return f"a second run gave {again.failed or 'another restoration'}"
        observed = read_observed(self.observations / f"{problem}.npz").images
        if unknown := sorted(set(first.images) - set(observed)):
            return f"{unknown[0]}: no such image was observed"
        if "variant" in self.settings or "denoiser" in self.settings:
            return ""
        initial = Restored({image: parts["x0"] for image, parts in observed.items()})
        quality, floor = (summary(x, self.truth[problem])["psnr"] for x in (first, initial))
        if quality > floor:
            return ""
        return (
            f"{quality:.2f} dB, the initial image has {floor:.2f} dB; "
            f"should {problem} be left out of `problems` in {self.name}.yaml?"
        )


def faults(name: str, folders: Sequence[Path] = (), models: Path | None = None) -> list[str]:
    """A line for every fault of a method. folders: with further baselines; models: see `Bench`.

    Raises InputError as `Bench` does.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        bench = Bench(name, folders, folder, models or folder)
        before = bench.digests()
        first, again = bench.restore(), bench.restore()
        lines = [
            f"{name}: {problem}: {reason}"
            for problem in bench.problems
            if (reason := bench.fault(problem, first[problem], again[problem]))
        ]
        if bench.digests() != before:
            lines.append(f"{name}: it changed the observations")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="rerg.check", description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--baselines", type=Path, nargs="+", default=[], metavar="FOLDER")
    given = parser.parse_args()
    set_up_cpu(1)
    try:
        lines = faults(given.name, given.baselines)
    except InputError as error:
        lines = [str(error)]
    if lines:
        sys.exit("\n".join(lines))
    print(f"{given.name}: keeps the contract")


if __name__ == "__main__":
    main()
