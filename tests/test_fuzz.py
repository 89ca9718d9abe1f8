"""Any mutation of the configuration is either a plan or one line."""

import copy
import math
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerg.config import InputError
from rerg.run import Run

CONFIG = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
PGD = {
    "reconstructor": "optim.PGD",
    "parameters": {"prior": {"class": "optim.PnP"}, "stepsize": 1.0},
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 16, 10**12, 0.0, 0.5, -0.5, 1e-9, 1e300]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", "rerg", "den25", "NA", "1e3", "50", "..", "a b", "é", "a\nb", "$x", "~"]),
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=2)
)


def paths_of(content, path=()):
    """All places in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths_of(value, (*path, key))


@st.composite
def mutated(draw, content):
    """A copy with one or two values replaced, removed or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        *parents, key = draw(st.sampled_from(list(paths_of(content))))
        place = content
        for parent in parents:
            place = place[parent]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                place[key] = draw(VALUES)
            case "remove":
                del place[key]
            case "add" if isinstance(place, dict):
                place[draw(st.text(max_size=6))] = draw(VALUES)
            case _:
                place.append(draw(VALUES))
    return content


def numbers_of(content):
    """All numbers in nested dicts and lists."""
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from numbers_of(part)
    elif isinstance(content, int | float):
        yield content


def plan_or_line(config, root: Path) -> None:
    """Read a run, and ask it what the rules ask."""
    try:
        run = Run(config, root, "mine.yaml")
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert all(map(math.isfinite, numbers_of([run.config, run.methods, run.problems])))
    for method in run.all_methods():
        for problem in run.problems_of(method):
            batch = run.batch_of(problem)
            assert problem in run.problems_in(method, batch)
            if "variant" in run.methods[method]:
                run.options(method, problem)
    for variant in run.variants():
        for seed in run.seeds:
            run.model_spec(variant, seed)


@given(mutated({**CONFIG, "deepinv": {"pgd": {**PGD, "tune": {"stepsize": [0.5, 1]}}}}))
@settings(max_examples=150, deadline=None)
def test_any_config_is_a_plan_or_a_line(config):
    plan_or_line(config, ROOT)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The parts of the repository that a run is read from, to be written over."""
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "workflow" / "baselines").mkdir(parents=True)
    (folder / "workflow" / "schemas").symlink_to(ROOT / "workflow" / "schemas")
    for name in ("tv", "bm3d"):
        shutil.copytree(ROOT / "workflow/baselines" / name, folder / "workflow/baselines" / name)
    return folder


PROBLEMS = yaml.safe_load((ROOT / "config" / "problems.yaml").read_text(encoding="utf-8"))
FEW = {name: PROBLEMS[name] for name in ("den25", "sr3", "sr2g", "aniso1", "iso2", "com80")}
SMALL = {**CONFIG, "problems": list(FEW), "comparisons": [], "examples": ["den25"]}
FIXTURE = [HealthCheck.function_scoped_fixture]


@given(content=mutated(FEW))
@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURE)
def test_any_list_of_problems_is_a_plan_or_a_line(content, root):
    text = yaml.safe_dump(content, allow_unicode=True)
    (root / "config" / "problems.yaml").write_text(text, encoding="utf-8")
    plan_or_line(SMALL, root)


@given(content=mutated(yaml.safe_load((ROOT / "workflow/baselines/tv/tv.yaml").read_text())))
@settings(max_examples=100, deadline=None, suppress_health_check=FIXTURE)
def test_any_baseline_is_a_plan_or_a_line(content, root):
    (root / "config" / "problems.yaml").write_text(yaml.safe_dump(FEW), encoding="utf-8")
    text = yaml.safe_dump(content, allow_unicode=True)
    (root / "workflow/baselines/tv/tv.yaml").write_text(text, encoding="utf-8")
    plan_or_line(SMALL, root)
