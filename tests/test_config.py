"""Bad configurations: one line that names the file, the key and what was expected."""

import copy
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT

from rerg.config import InputError, Run, digest, read_yaml

CONFIG = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


def changed(path: str, value: object) -> dict:
    """The default config with another value at a dotted key."""
    config = copy.deepcopy(CONFIG)
    *parents, key = path.split(".")
    entry = config
    for parent in parents:
        entry = entry[parent]
    entry[key] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("sed", 1, "sed: unknown key; did you mean seed?"),
        ("training.stepz", 1, "training.stepz: unknown key"),
        ("variants.rerg.betta", 0.1, "variants.rerg.betta: unknown key; did you mean beta?"),
        ("seed", "zero", 'seed: expected integer, got "zero"'),
        ("training.batch", 0, "training.batch: expected at least 1, got 0"),
        ("training.nodes", 3, "training.batch: expected a multiple of training.processes x"),
        ("device", "gpu", "device: expected one of cpu, cuda"),
        ("run", "../up", "run: expected a name of the form"),
        ("network.channels", [8, 8], "network.channels: "),
        ("methods", ["rergg"], "methods: unknown method rergg; did you mean rerg?"),
        ("problems", ["den26"], "problems: unknown problem den26; did you mean den25?"),
        ("datasets.test", ["set6"], "datasets.test: unknown dataset set6; did you mean set5?"),
        ("datasets.test", ["embedded-train"], "datasets.test: embedded-train is for train, not"),
        ("examples", ["sr4"], "examples: unknown problem sr4"),
        ("baselines", ["no/such/folder"], "no/such/folder: no such folder"),
    ],
)
def test_a_fault_is_one_line(key, value, line):
    with pytest.raises(InputError) as error:
        Run(changed(key, value), ROOT, "mine.yaml")
    text = str(error.value)
    assert line in text and "\n" not in text
    assert text.startswith(("mine.yaml: ", "baselines: "))


def test_a_missing_key_is_named():
    config = copy.deepcopy(CONFIG)
    del config["solvers"]
    with pytest.raises(InputError, match=r"^mine.yaml: solvers: missing$"):
        Run(config, ROOT, "mine.yaml")


def test_yaml_faults_name_the_line(tmp_path):
    (tmp_path / "a.yaml").write_text("run: demo\nseed: [1\n")
    with pytest.raises(InputError, match=r"a.yaml: line 3: not YAML"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(InputError, match=r"b.yaml: no such file"):
        read_yaml(tmp_path / "b.yaml")


def test_snakemake_stops_with_that_line_before_any_job(tmp_path):
    (tmp_path / "mine.yaml").write_text("trainin: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--configfile", tmp_path / "mine.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    *notes, line = done.stderr.strip().splitlines()
    assert line == f"{tmp_path}/mine.yaml: trainin: unknown key; did you mean training?"
    assert all(note.startswith("Config file ") for note in notes)  # Snakemake's own


def test_every_shipped_config_is_sound():
    for name in ("config", "paper"):
        config = {**CONFIG, **yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())}
        assert Run(config, ROOT, name).problems_of("rerg") == config["problems"]


def test_comparisons_restore_their_problems_only():
    run = Run(CONFIG, ROOT, "config")
    block = CONFIG["comparisons"][0]
    assert set(run.problems_of(block["methods"][0])) <= set(CONFIG["problems"])
    assert run.problems_of("rg-adam") == ["com90"]
    assert "rg-adam" in run.methods_of("com90") and "rg-adam" not in run.methods_of("den15")


def test_a_label_does_not_change_what_is_trained():
    run = Run(CONFIG, ROOT, "config")
    assert "label" not in run.trained_problems()["den25"]
    assert "com95" not in run.trained_problems()  # held out


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_parsing_needs_neither_torch_nor_numpy():
    code = "import sys, rerg.config, rerg.expressions; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_environment_and_package_name_the_same_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    assert sorted(pip) == sorted(project["dependencies"])
    assert f"python{project['requires-python']}" in conda


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        d for e in project["optional-dependencies"].values() for d in e
    ]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {re.match(r"[A-Za-z0-9_-]+", d)[0].lower().replace("_", "-") for d in wanted}
    assert names <= pinned


def test_readme_names_files_that_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
