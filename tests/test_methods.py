"""The contract of a method, held against every method that is present, also the user's own.

METHOD=mine tests one, BASELINES=folder also finds those of a folder elsewhere: this is
`make check-baseline NAME=mine`. Observations are tiny and of every type of problem.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, clean_images, crops, problem_of, spec_of
from safetensors.numpy import save_file

from rerg.baselines import guarded, prepare, restore
from rerg.config import InputError, Run, digest
from rerg.guard import fault
from rerg.networks import save_weights
from rerg.problems import generator, load_observations, save_observations
from rerg.restoration import psnr
from rerg.restoration import restore as restore_by_variant
from rerg.training import train

PROBLEMS = ["den25", "sr3", "blur16", "com80"]
DATASET = "embedded-test"
FOLDERS = [str(Path(path).resolve()) for path in os.environ.get("BASELINES", "").split()]
CONFIG = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
CHANGES = {"problems": PROBLEMS, "comparisons": [], "examples": ["den25"], "baselines": FOLDERS}
RUN = Run({**CONFIG, **CHANGES}, ROOT, "test")
METHODS = [os.environ["METHOD"]] if "METHOD" in os.environ else list(RUN.methods)


def config_of(path: Path, **changes) -> Path:
    """A config file for tiny runs of the workflow without trained models."""
    config = {"run": "tiny", **CHANGES, "tuning": {"rounds": 0}, **changes}
    path.write_text(yaml.safe_dump(config))
    return path


def snakemake(folder: Path, config: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the workflow in a folder."""
    for name in ("rerg", "config", "workflow"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--cores", "2", "--keep-going", "--configfile", config, "--directory", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def write_images(folder: Path) -> dict[str, torch.Tensor]:
    """Tiny images in the place of the prepared ones: two for tests, one for validation."""
    folder.mkdir(parents=True)
    images = {}
    for seed, (split, count) in enumerate({"train": 1, "validation": 1, "test": 2}.items()):
        (folder / f"embedded-{split}.lock").write_text("")
        with h5py.File(folder / f"embedded-{split}.h5", "w") as file:
            for i, x in enumerate(clean_images(count, 48, 61, seed)):
                file[f"image-{i}"] = (x * 255).round().byte().permute(1, 2, 0).numpy()
                images[f"image-{i}"] = torch.from_numpy(file[f"image-{i}"][()]).permute(2, 0, 1)
    return {name: x[None].float() / 255 for name, x in images.items()}  # the last: those of test


@pytest.fixture(scope="session")
def observed(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of a run with tiny observations, and the ground truth by (problem, image)."""
    folder = tmp_path_factory.mktemp("contract")
    results = folder / "results" / "tiny"
    images, truth = write_images(results / "images"), {}
    observations = results / "observations" / DATASET
    observations.mkdir(parents=True)
    for name in PROBLEMS:
        problem = problem_of(name)
        made = {
            image: problem.observe(x, [generator(DATASET, name, image)])
            for image, x in images.items()
        }
        save_observations(observations / f"{name}.npz", problem, made)
        truth |= {(name, image): problem.crop(x) for image, x in images.items()}
    return results, truth


@cache
def network_of(variant: str, folder: Path) -> torch.nn.ModuleDict:
    """A variant trained for a moment: enough to restore with it, too little to judge it."""
    start = None if variant == "red" else network_of("red", folder)
    networks, _ = train(spec_of(variant, 40), crops, start, folder / f"{variant}.ckpt")
    return networks.requires_grad_(False)


def run_variant(settings: dict, observations: dict, folder: Path) -> dict:
    """The arrays of a restoration by a variant, after a few iterations."""
    options = {**CONFIG["solvers"][settings["solver"]], "iterations": 5}
    return restore_by_variant(
        settings["variant"],
        network_of(settings["variant"], folder),
        observations,
        scale=CONFIG["network"]["scale"],
        solver=settings["solver"],
        options=options,
        batch_size=2,
    )


def run_baseline(method: str, settings: dict, observations: dict, folder: Path) -> dict:
    """The arrays of a restoration by a function or a reconstructor, as the rule makes them."""
    variant, spec, weights = RUN.denoiser_of(method), None, []
    if variant:
        spec, weights = spec_of(variant, 40), [str(folder / f"{variant}.safetensors")]
        save_weights(Path(weights[0]), network_of(variant, folder), {"config": digest(spec)})
    baseline = str(RUN.baselines[method])
    function, denoiser = prepare(method, settings, baseline, spec, weights, "cpu")
    return restore(function, observations, settings["parameters"], denoiser, batch_size=2)


def restore_all(method: str, results: Path) -> dict[str, Path | str]:
    """A method on every problem that it claims: its file, or why there is none."""
    settings, folder = RUN.methods[method], results.parents[1]
    problems = [
        p for p in PROBLEMS if {p, RUN.problems[p]["operator"]} & set(settings.get("problems", [p]))
    ]
    targets = {p: results / "restorations" / DATASET / p / f"{method}.npz" for p in problems}
    if settings.get("baseline") == ".smk":
        config = config_of(folder / "rule.yaml", methods=[method])
        names = [str(path.relative_to(folder)) for path in targets.values()]
        done = snakemake(folder, config, "--force", "--", *names)
        assert done.returncode == 0, done.stderr.splitlines()[-1]
        return targets
    if trained := settings.get("variant") or RUN.denoiser_of(method):
        network_of(trained, folder)  # before the children that restore
    restored = {}
    for name, target in targets.items():
        _, observations = load_observations(results / "observations" / DATASET / f"{name}.npz")
        if "variant" in settings:
            task, timeout = partial(run_variant, settings, observations, folder), 60
        else:
            task = partial(run_baseline, method, settings, observations, folder)
            timeout = settings["timeout"]
        arrays, reason = guarded(task, timeout)
        restored[name] = reason or target
        if arrays:
            target.parent.mkdir(parents=True, exist_ok=True)
            np.savez(target, **arrays)
    return restored


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The images of a restoration file."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key.startswith("image-")}


def missing(method: str) -> str | None:
    """What a method needs and this machine lacks."""
    settings = RUN.methods[method]
    if method == "lee" and not shutil.which("perl"):
        return "no perl"
    if method in ("bm3d", "wavelet"):
        package = {"bm3d": "bm3d", "wavelet": "ptwt"}[method]
        return None if importlib.util.find_spec(package) else f"no package {package}"
    weights = settings.get("denoiser", "")
    if weights and not RUN.denoiser_of(method) and not Path(os.path.expandvars(weights)).exists():
        return f"no weights {weights}"
    return None


@pytest.mark.parametrize("method", METHODS)
def test_contract(method, observed):
    """Names, shapes, finite values, the same again, the same observation, better than x0.

    Better than the initial image only where nothing is trained: the networks here are not.
    """
    if reason := missing(method):
        pytest.skip(reason)
    results, truth = observed
    observations = {p: results / "observations" / DATASET / f"{p}.npz" for p in PROBLEMS}
    before = {p: sha256(path.read_bytes()).digest() for p, path in observations.items()}
    faults = []
    first = restore_all(method, results)
    for problem, path in first.items():
        reason = path if isinstance(path, str) else fault(path, observations[problem])
        if reason:
            faults.append(f"{method}: {problem}: {reason}")
    if not faults:
        kept = {problem: arrays_of(path) for problem, path in first.items()}
        for problem, path in restore_all(method, results).items():
            again = path if isinstance(path, str) else arrays_of(path)
            same = not isinstance(again, str) and all(
                np.array_equal(x, again[image]) for image, x in kept[problem].items()
            )
            if not same:
                faults.append(f"{method}: {problem}: a second run gave another restoration")
        settings = RUN.methods[method]
        if "variant" not in settings and "denoiser" not in settings:
            faults += worse_than_initial(method, kept, observations, truth)
    if before != {p: sha256(path.read_bytes()).digest() for p, path in observations.items()}:
        faults.append(f"{method}: it changed the observations")
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def worse_than_initial(method: str, restored: dict, observations: dict, truth: dict) -> list[str]:
    """A line for every problem where a method's mean PSNR is not above the initial image's."""
    lines = []
    for problem, arrays in restored.items():
        x0 = {image: np.load(observations[problem])[f"{image}.x0"] for image in arrays}
        quality, floor = (
            np.mean([float(psnr(torch.from_numpy(x)[None], truth[problem, i])) for i, x in xs])
            for xs in (arrays.items(), x0.items())
        )
        if not quality > floor:
            lines.append(
                f"{method}: {problem}: {quality:.2f} dB, the initial image has {floor:.2f} dB;"
                f" should {problem} be left out of `problems` in {method}.yaml?"
            )
    return lines


BAD = {
    "crashing": "def restore(y, physics, sigma):\n    import os\n\n    os.abort()\n",
    "raising": 'def restore(y, physics, sigma):\n    raise KeyError("no such thing")\n',
    "endless": "def restore(y, physics, sigma):\n    while True:\n        pass\n",
    "misshapen": "def restore(y, physics, sigma, x0):\n    return x0[..., 1:]\n",
    "infinite": "def restore(y, physics, sigma, x0):\n    return x0 * float('inf')\n",
}
REASONS = {
    "crashing": "its process ended with status -6",
    "raising": "KeyError: 'no such thing'",
    "endless": "over its time limit of 1 s",
    "misshapen": "ValueError: expected shape (2, 3, 48, 61), got (2, 3, 48, 60)",
    "infinite": "ValueError: the restoration has values that are not finite",
    "silent": "no restoration was written",
    "failing": "false ended with status 1",
    "sleeping": "over its time limit of 1 s",
}
RULE = """rule {name}:
    input:
        f"{{RESULTS}}/observations/{{{{dataset}}}}/{{{{problem}}}}.npz",
    output:
        f"{{RESULTS}}/restorations/{{{{dataset}}}}/{{{{problem}}}}/{name}.npz",
    shell:
        "{{GUARD}} --timeout 1 {{input}} {{output}} {command}"
"""
COMMANDS = {"silent": "true", "failing": "false", "sleeping": "sleep 100"}


@pytest.mark.skipif("METHOD" in os.environ, reason="one method is tested")
def test_bad_baselines_leave_a_reason_and_hurt_no_other(observed, tmp_path):
    """Crash, exception, endless loop, wrong shape, NaN, and their like in a rule of their own."""
    folder = tmp_path / "baselines"
    for name, code in BAD.items():
        (folder / name).mkdir(parents=True)
        (folder / name / f"{name}.py").write_text(code)
        (folder / name / f"{name}.yaml").write_text("timeout: 1\n" if name == "endless" else "")
    for name, command in COMMANDS.items():
        (folder / name).mkdir()
        (folder / name / f"{name}.smk").write_text(RULE.format(name=name, command=command))
    results, workspace = observed[0], observed[0].parents[1]
    config = config_of(
        workspace / "bad.yaml",
        problems=["den25"],
        methods=[*REASONS, "tv"],
        baselines=[str(folder)],
    )
    part = f"results/tiny/scores/{DATASET}/den25.csv"
    lpips = results / "images" / "lpips.safetensors"
    save_file({}, lpips, metadata={"reason": "not fetched in a test"})
    done = snakemake(workspace, config, "--", part)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(workspace / part).set_index("method")["psnr"]
    assert scores["tv"].notna().all()
    restorations = results / "restorations" / DATASET / "den25"
    for name, reason in REASONS.items():
        assert scores[name].isna().all()
        assert str(np.load(restorations / f"{name}.npz")["failed"]) == reason


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"m.yaml": "label: M"}, "m.yaml: expected one of m.py, m.smk, a reconstructor; got 0"),
        ({"m.py": "", "m.smk": ""}, "m.yaml: expected one of m.py, m.smk, a reconstructor; got 2"),
        ({"m.py": "", "m.yaml": "lable: M"}, "m.yaml: lable: unknown key; did you mean label?"),
        ({"m.py": "", "m.yaml": "problems: [blurr]"}, "problem or operator blurr; did you mean"),
        ({"m.py": "", "m.yaml": "tune: {a: [1, 2]}"}, "m.yaml: tune: unknown parameter a"),
        ({"m.smk": "", "m.yaml": "timeout: 3"}, "timeout: m.smk runs alone, and would not read it"),
    ],
)
def test_a_fault_of_a_folder_is_one_line(files, expected, tmp_path):
    (tmp_path / "m").mkdir()
    for name, content in files.items():
        (tmp_path / "m" / name).write_text(content)
    with pytest.raises(InputError) as error:
        Run({**CONFIG, **CHANGES, "baselines": [str(tmp_path)]}, ROOT, "test")
    assert expected in str(error.value) and "\n" not in str(error.value)
