"""Reading and checking what a user writes: one line that names the file, the key and the fault."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from conftest import ROOT

from rerg.config import InputError, check, closest, read_mapping, read_yaml


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("run: demo\nseed: [1\n", "line 3: not YAML: "),
        ("a: 1\nb: 2\na: 3\n", "line 3: not YAML: a twice"),
        ("a:\n  b: {c: 1, d: 2, c: 3}\n", "line 2: not YAML: c twice"),
        ("a: !!python/object:os.system {}\n", "line 1: not YAML: "),
    ],
)
def test_yaml_faults_name_the_line(text, line, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: {line}") and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"b.yaml: no such file$"):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(InputError, match=r": Is a directory$"):
        read_yaml(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"run: \xff\n")
    with pytest.raises(InputError, match=r"a.yaml: expected UTF-8 text"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["", "- run: a\n", "hello\n", "5\n"])
def test_a_config_without_keys_is_one_line(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=r"a\.yaml: expected keys, got "):
        read_mapping(tmp_path / "a.yaml")


def test_merged_keys_of_yaml_may_be_set_again(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["mine"] == {"x": 1, "y": 3}


SCHEMA = {
    "additionalProperties": False,
    "properties": {
        "whole": {"type": "integer", "minimum": 1},
        "real": {"type": "number", "exclusiveMinimum": 0},
        "deep": {
            "type": "object",
            "required": ["here"],
            "additionalProperties": {"type": "string"},
        },
    },
}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("whole: 1.0", "whole: expected integer, got 1.0"),
        ("whole: true", "whole: expected integer, got true"),
        ("whole: .nan", "whole: expected integer, got NaN"),
        ("real: .nan", "real: expected number, got NaN"),
        ("real: .inf", "real: expected number, got Infinity"),
        ("real: false", "real: expected number, got false"),
        ("real: 1e-3", 'real: expected number, got "1e-3"'),  # YAML 1.1 wants 1.0e-3
        ("real: 0", "real: expected more than 0, got 0"),
        ("whole: 0", "whole: expected at least 1, got 0"),
        ("wole: 1", "wole: unknown key; did you mean whole?"),
        ("zzz: 1", "zzz: unknown key; known: deep, real, whole"),
        ("deep: {there: x}", "deep.here: missing"),
        ("deep: {here: 1}", "deep.here: expected string, got 1"),
    ],
)
def test_a_fault_names_the_file_that_sets_the_key(text, line, tmp_path):
    files = [tmp_path / "base.yaml", tmp_path / "mine.yaml", tmp_path / "last.yaml"]
    for path, content in zip(files, ("{}", text, "other: 1"), strict=True):
        path.write_text(content + "\n")
    with pytest.raises(InputError) as error:
        check(yaml.safe_load(text), SCHEMA, *files)
    assert str(error.value) == f"{files[1]}: {line}"


def test_numbers_as_they_should_be_pass():
    check({"whole": 3, "real": 2, "deep": {"here": "x"}}, SCHEMA, "a.yaml")
    check({"real": 1.0e-3}, SCHEMA, "a.yaml")


def test_the_nearest_word_is_meant_or_all_are_named():
    assert closest("rergg", ["red", "rerg"]) == "; did you mean rerg?"
    assert closest("zzz", ["red", "rerg"]) == "; known: red, rerg"


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


@pytest.mark.parametrize("name", ["my clone", "it's", 'a"b', "tab\there"])
def test_a_clone_that_pip_cannot_serve_is_refused_before_the_installation(name, tmp_path):
    clone = tmp_path / name
    clone.mkdir()
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, clone)
    command = ["make", "--no-print-directory", "test"]  # which `make test` would print first
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not (clone / ".venv").exists()
    assert done.stdout.splitlines()[0].startswith(f"{clone}: blanks or quotes in its path")


def test_readme_names_files_that_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
