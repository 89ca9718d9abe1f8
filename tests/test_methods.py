"""The contract, held against every method that is present, and what a bad baseline does."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, clean_images, write_images
from deepinv.optim import PnP
from safetensors.numpy import save_file

from rerg.baselines import build
from rerg.check import faults
from rerg.config import InputError
from rerg.files import read_restored
from rerg.run import Run, find_baselines, lacks, trained_methods

DATASET = "embedded-test"
CONFIG = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
SHIPPED = find_baselines([ROOT / "workflow" / "baselines"], "config")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Where models are kept for the methods that need them."""
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("method", [*trained_methods(), *SHIPPED])
def test_contract(method, models, tmp_path, monkeypatch):
    place = tmp_path / "it's here"  # what a rule of its own must quote
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    if method in SHIPPED:
        settings = yaml.safe_load((SHIPPED[method] / f"{method}.yaml").read_text())
        if missing := lacks(settings):
            pytest.skip(f"no {missing}")
    assert faults(method, models=models) == []


def write_baseline(folder: Path, name: str, code: str, settings: str = "") -> None:
    """A baseline as a user would add it, by a function or a rule."""
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}.{'smk' if code.startswith('rule') else 'py'}").write_text(code)
    (folder / name / f"{name}.yaml").write_text(settings)


FAULTS = {
    "misshapen": ("x0[..., 1:]", "den25: ValueError: expected shape (3, 48, 61), got (3, 48, 60)"),
    "infinite": ("x0 * float('inf')", "den25: ValueError: values that are not finite"),
    "random": ("x0 + 0.001 * torch.randn_like(x0)", "den25: a second run gave another restoration"),
    "worse": ("0.5 * x0", "den25: "),
    "fewer": ("x0[:1]", "den25: ValueError: expected 2 images, got 1"),
    "array": ("x0.numpy()", "den25: ValueError: expected a tensor, got ndarray"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_method_is_a_line(name, tmp_path):
    expression, line = FAULTS[name]
    code = "import os, torch\n\n\ndef restore(y, physics, sigma, x0):\n"
    code += "    torch.manual_seed(os.getpid())\n" if name == "random" else ""
    write_baseline(tmp_path, name, code + f"    return {expression}\n", "problems: [identity]")
    (found,) = faults(name, [tmp_path])
    assert found.startswith(f"{name}: {line}") and "\n" not in found
    if name == "worse":
        assert "dB, the initial image has 20." in found and "be left out of `problems`" in found


def check(*arguments: object) -> subprocess.CompletedProcess:
    """The command that `make check-baseline` runs."""
    command = [sys.executable, "-m", "rerg.check", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_command_ends_with_a_line_per_fault(tmp_path):
    code = "def restore(y, physics, sigma, x0):\n    return x0[..., 1:]\n"
    write_baseline(tmp_path, "mine", code)
    done = check("mine", "--baselines", tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("mine: ")]
    assert done.returncode == 1 and not done.stdout
    assert [line.split(": ")[1] for line in lines] == ["den25", "sr3", "blur16", "com80"]


def test_the_command_ends_with_0_for_a_sound_method(tmp_path):
    code = "def restore(y, physics, sigma):\n    return physics.prox_l2(y, y, 40)\n"
    write_baseline(tmp_path, "mine", code, "problems: [blur]")
    done = check("mine", "--baselines", tmp_path)
    assert (done.returncode, done.stdout) == (0, "mine: keeps the contract\n"), done.stderr


def test_what_a_method_needs_is_missed_before_any_job(tmp_path, monkeypatch):
    needs = "needs: {programs: [sh, nosuchprogram], packages: [yaml, nosuchpackage], files: [%s]}\n"
    (tmp_path / "there").write_text("")
    monkeypatch.setenv("HERE", str(tmp_path))
    for file, line in {
        "$HERE/there": "the program nosuchprogram and the package nosuchpackage",
        "$HERE/gone": "the program nosuchprogram and the package nosuchpackage and the file "
        "$HERE/gone",
    }.items():
        folder = tmp_path / f"baselines-{file[6:]}"
        write_baseline(folder, "mine", "", needs % file)
        config = {**CONFIG, "methods": ["mine"], "baselines": [str(folder)]}
        with pytest.raises(InputError) as error:
            Run(config, ROOT, "mine.yaml")
        assert str(error.value) == (
            f"mine.yaml: methods: mine needs {line}, not found on this machine"
        )
        Run({**config, "stored": True}, ROOT, "mine.yaml")  # a stored table needs nothing
        Run({**config, "methods": ["tv"]}, ROOT, "mine.yaml")  # nor does what is not run


BAD = {
    "crashing": "import os, signal\n\n    os.kill(os.getpid(), signal.SIGKILL)",
    "raising": 'raise KeyError("no such thing")',
    "endless": "while True:\n        pass",
}
REASONS = {
    "crashing": "its process ended with status -9",
    "raising": "KeyError: 'no such thing'",
    "endless": "over its time limit of 1 s",
    "silent": "no restoration was written",
    "failing": "false ended with status 1",
    "sleeping": "over its time limit of 1 s",
}
TARGET = f"results/tiny/scores/{DATASET}/den25.csv"


def write_bad(folder: Path, name: str) -> None:
    """A baseline that gives no restoration."""
    code = f"def restore(y, physics, sigma):\n    {BAD[name]}\n"
    settings = "problems: [identity]\n" + "timeout: 1\n" * (name == "endless")
    write_baseline(folder, name, code, settings)


@pytest.mark.parametrize("name", BAD)
def test_a_method_without_a_restoration_is_a_line(name, tmp_path):
    write_bad(tmp_path, name)
    assert faults(name, [tmp_path]) == [f"{name}: den25: {REASONS[name]}"]


RULE = """rule {name}:
    input:
        observations_of,
    output:
        "<results>/restorations/{{dataset}}/{{problem}}/{name}.npz",
    shell:
        "{{GUARD}} --timeout 1 {{input}}/{{wildcards.problem}}.npz {{output}} {command}"
"""
COMMANDS = {"silent": "true", "failing": "false", "sleeping": "sleep 100"}


def test_bad_baselines_leave_a_reason_and_hurt_no_other(tmp_path):
    """A crash, and what a program in a rule of its own may do, beside a sound baseline."""
    folder, bad = tmp_path / "baselines", ["crashing", *COMMANDS]
    write_bad(folder, "crashing")
    for name, command in COMMANDS.items():
        write_baseline(folder, name, RULE.format(name=name, command=command))
    results = tmp_path / "results" / "tiny"
    for seed, split in enumerate(("train", "validation", "test")):
        lock = results / "images" / f"embedded-{split}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text("")  # first, as images older than it would be prepared anew
        write_images(lock.with_suffix(".h5"), clean_images(2, 48, 61, seed))
    save_file({}, results / "images" / "lpips.safetensors", metadata={"reason": "not fetched"})
    config = {"run": "tiny", "problems": ["den25"], "methods": [*bad, "wiener"]}
    config |= {"comparisons": [], "examples": [], "tuning": {"rounds": 0}}
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**config, "baselines": [str(folder)]}))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--cores", "2", "--keep-going", "--configfile", path, "--directory", tmp_path]
    command += ["--rerun-triggers", "mtime", "--", TARGET]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / TARGET).set_index("method")["psnr"]
    assert scores["wiener"].notna().all()
    for name in bad:
        assert scores[name].isna().all()
        by_rule = f"den25/{name}.npz" if name in COMMANDS else f"{name}/all/den25/den25.npz"
        assert read_restored(results / "restorations" / DATASET / by_rule).failed == REASONS[name]


def test_a_parameter_may_be_a_list_of_objects():
    prior = {"class": "optim.PnP", "denoiser": "$denoiser"}
    (built,) = build([prior], {"$denoiser": torch.nn.Identity()})
    assert isinstance(built, PnP) and isinstance(built.denoiser, torch.nn.Identity)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"m.yaml": "label: M"}, "m.yaml: expected one of m.py, m.smk, a reconstructor; got 0"),
        ({"m.py": "", "m.smk": ""}, "m.yaml: expected one of m.py, m.smk, a reconstructor; got 2"),
        ({"m.py": "", "m.yaml": "lable: M"}, "m.yaml: lable: unknown key; did you mean label?"),
        ({"m.py": "", "m.yaml": "problems: [blurr]"}, "problem or operator blurr; did you mean"),
        ({"m.py": "", "m.yaml": "tune: {a: [1, 2]}"}, "m.yaml: tune: unknown parameter a"),
        ({"m.py": "", "m.yaml": "needs: {program: [perl]}"}, "needs.program: unknown key; did you"),
        ({"m.smk": "", "m.yaml": "timeout: 3"}, "timeout: m.smk runs alone, and would not read it"),
    ],
)
def test_a_fault_of_a_folder_is_one_line(files, expected, tmp_path):
    (tmp_path / "m").mkdir()
    for name, content in files.items():
        (tmp_path / "m" / name).write_text(content)
    with pytest.raises(InputError) as error:
        Run({**CONFIG, "baselines": [str(tmp_path)]}, ROOT, "test")
    assert expected in str(error.value) and "\n" not in str(error.value)
