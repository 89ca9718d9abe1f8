"""A run: bad configurations in one line, and what its rules ask of a good one."""

import copy
import json
import math
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from snakemake.utils import update_config

from rerg.checks import smallest
from rerg.config import InputError
from rerg.registry import solvers, variants
from rerg.run import Run, trained_methods
from rerg.specs import digest

CONFIG = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())

PGD = {"reconstructor": "optim.PGD", "parameters": {"prior": "$sigma", "stepsize": 0}}


def argument(value: object) -> dict:
    """A reconstructor with an argument."""
    return {"reconstructor": "optim.PGD", "parameters": {"prior": value}}


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
        ("sed", 1, "sed: unknown key; did you mean seeds?"),
        ("training.stepz", 1, "training.stepz: unknown key"),
        ("variants.rerg.betta", 0.1, "variants.rerg.betta: unknown key; did you mean beta?"),
        ("seeds", ["zero"], 'seeds.0: expected integer, got "zero"'),
        ("seeds", [], "seeds: expected at least 1 entries"),
        ("seeds", [1, 1], "seeds: expected each entry once"),
        ("seeds", [10**21], "seeds.0: expected at most 4294967295"),  # periodic to Snakemake
        ("variants.rerg.beta", float("nan"), "variants.rerg.beta: expected number, got NaN"),
        ("variants.rerg.evaluations", 100.0, "evaluations: expected integer, got 100.0"),
        ("variants.rg1.beta", 0.1, "variants.rg1.beta: unknown key"),
        ("variants.rergg", {}, "variants.rergg: unknown key; did you mean rerg?"),
        ("variants.red.start", "red", "variants.red.start: expected a variant that starts from no"),
        ("variants.rg.start", "rg1", "variants.rg.start: expected a variant that starts from no"),
        ("variants.rg.start", "rgg", "variants.rg.start: unknown variant rgg; did you mean rg?"),
        ("solvers.gd.toleranse", 1, "solvers.gd.toleranse: unknown key; did you mean tolerance?"),
        ("solvers.fast", {"iterations": 5}, "solvers.fast.tolerance: missing"),
        ("solvers.fast.iterations", 5.0, "solvers.fast.iterations: expected integer, got 5.0"),
        ("solvers.adam.learning_rate", 0, "learning_rate: expected more than 0, got 0"),
        ("training.batch", 0, "training.batch: expected at least 1, got 0"),
        ("training.launch", True, "training.launch: expected one of plain, graphs"),
        ("training.launch", "graphs", "training.launch: graphs are CUDA's and expect device cuda"),
        ("restoration.launch", "graphs", "restoration.launch: graphs are CUDA's and expect device"),
        ("training.nodes", 3, "training.batch: expected a multiple of training.processes x"),
        ("device", "gpu", "device: expected one of cpu, cuda"),
        ("run", "../up", "run: expected a name of the form"),
        ("network.channels", [8, 8], "network.channels: expected at least 4 entries"),
        ("methods", ["rergg"], "methods: unknown method rergg; did you mean rerg?"),
        ("problems", ["den26"], "problems: unknown problem den26; did you mean den25?"),
        ("datasets.test", ["set6"], "datasets.test: unknown dataset set6; did you mean set5?"),
        ("datasets.test", ["embedded-train"], "datasets.test: embedded-train is for train, not"),
        ("examples", ["sr4"], "examples: unknown problem sr4"),
        ("deepinv", {"mine": {**PGD, "tune": {"prior": [1, 2]}}}, "tune.prior: expected a number"),
        ("deepinv", {"mine": {**PGD, "tune": {"stepsize": [1, 2]}}}, "stepsize: expected a number"),
        (
            "deepinv",
            {"mine": {**PGD, "timeout": math.inf}},
            "mine.timeout: expected number, got Inf",
        ),
        ("deepinv", {"mine": argument(math.nan)}, "parameters.prior: expected a finite number"),
        ("deepinv", {"mine": argument([{"x": -math.inf}])}, "prior.0.x: expected a finite number"),
        ("deepinv", {"mine": argument("1e-3")}, "expected a finite number (YAML reads 1e-3 as"),
        ("deepinv", {"mine": argument({"class": 5})}, "prior.class: expected string, got 5"),
        ("deepinv", {"mine": argument({"class": "optim.PnPP"})}, "deepinv has no optim.PnPP; did"),
        ("deepinv", {"mine": {"reconstructor": "optin.PGD"}}, "deepinv has no module optin for"),
        (
            "deepinv",
            {"mine": {"reconstructor": "optim.DPIR", "parameters": {"sigmaa": 1}}},
            "deepinv.mine: optim.DPIR has no argument sigmaa; did you mean sigma?",
        ),
        (  # which deepinv would drop without a word
            "deepinv",
            {"mine": {"reconstructor": "optim.PGD", "parameters": {"stepsizee": 1}}},
            "deepinv.mine: optim.PGD has no argument stepsizee; did you mean stepsize?",
        ),
        (
            "deepinv",
            {"mine": argument([{"class": "optim.TVPrior", "n_it": 5}])},
            "deepinv.mine: optim.TVPrior has no argument n_it; did you mean n_it_max?",
        ),
        ("deepinv", {"mine": {"label": "Mine"}}, "deepinv.mine.reconstructor: missing"),
        ("deepinv", {"truth": PGD}, "truth is a row of every table"),
        ("deepinv", {"007": PGD}, "YAML reads 007 as no text"),
        ("baselines", ["no/such/folder"], "baselines: no/such/folder: no such folder"),
        ("baselines", [""], "baselines.0: expected a folder"),
    ],
)
def test_a_fault_is_one_line(key, value, line):
    with pytest.raises(InputError) as error:
        Run(changed(key, value), ROOT, "mine.yaml")
    text = str(error.value)
    assert line in text and "\n" not in text
    assert text.startswith("mine.yaml: ")


def test_arguments_of_a_base_and_the_factor_of_sigma_are_known():
    parameters = {"prior": {"class": "optim.PnP", "g": 1}, "verbose": True, "sigma_factor": 2}
    config = changed("deepinv", {"mine": {"reconstructor": "optim.PGD", "parameters": parameters}})
    assert Run(config, ROOT, "mine.yaml").methods["mine"]["parameters"] == parameters


@pytest.mark.parametrize(
    ("problems", "crop", "line"),
    [
        (["den25", "blur20"], 24, "at least 25 pixels, as blur20 has a kernel of 25 x 25, got 24"),
        (["den25", "sr3"], 20, "at least 21 pixels, as sr3 has a kernel of 19 x 19, got 20"),
        (["den25", "wide"], 48, "at least 61 pixels, as wide has a kernel of 61 x 61, got 48"),
    ],
)
def test_a_crop_must_hold_the_kernels(problems, crop, line, tmp_path):
    config = {**changed("training.crop", crop), "problems": problems, "comparisons": []}
    config |= {"examples": [], "methods": ["rerg"]}
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    with (tmp_path / "config/problems.yaml").open("a") as file:
        kernel = "{motion: 61, angle: 20}"
        file.write("wide: {label: W, short: w, operator: blur, noise: 1, sigma: 1, trained: true, ")
        file.write(f"kernel: {kernel}}}\n")
    with pytest.raises(InputError, match=f"^m.yaml: training.crop: expected {line}$"):
        Run(config, tmp_path, "m.yaml")
    assert not Run({**config, "methods": ["tv"]}, tmp_path, "m.yaml").variants()


@pytest.mark.parametrize(
    ("problems", "side"), [(["den25"], 32), (["sr3"], 33), (["sr4", "blur16"], 32), (["com90"], 32)]
)
def test_an_image_must_hold_the_kernels_and_the_scores(problems, side):
    config = {**CONFIG, "problems": problems, "comparisons": [], "examples": [], "methods": ["tv"]}
    run = Run(config, ROOT, "m.yaml")
    assert smallest(run) == side
    run.problems[problems[0]] |= {"kernel": {"motion": 61}}
    assert smallest(run) >= 61


def test_trained_methods_need_a_trained_problem():
    held_out = {**CONFIG, "problems": ["com95"], "comparisons": [], "examples": []}
    with pytest.raises(InputError, match=r"^m.yaml: problems: expected one with trained: true, as"):
        Run(held_out, ROOT, "m.yaml")
    assert Run({**held_out, "methods": ["tv"]}, ROOT, "m.yaml").variants() == []


def test_numbers_of_the_command_line_are_numbers():
    """Snakemake hands over what is nested as text; merged already, as here."""
    given = {
        "tuning": {"factors": ["0.5", "1"], "rounds": "2"},
        "stored": "true",
        "training": {"clip": "2.5"},
        "network": {"channels": ["8", "8", "8", "8"], "blocks": "2", "scale": "400"},
        "solvers": {"fast": {"iterations": "7", "tolerance": "1.0e-3"}},
        "deepinv": {"mine": {**argument(["1.5", {"b": "3", "c": "$x0"}]), "timeout": "60"}},
        "problems": ["den25", "sr2"],
        "comparisons": [],
        "examples": [],
    }
    config = copy.deepcopy(CONFIG)
    update_config(config, given)
    run = Run(config, ROOT, "mine.yaml", given)
    assert run.config["tuning"] == {**CONFIG["tuning"], "factors": [0.5, 1], "rounds": 2}
    assert run.config["training"] == {**CONFIG["training"], "clip": 2.5}
    assert run.config["stored"] is True
    assert run.config["network"] == {"channels": [8, 8, 8, 8], "blocks": 2, "scale": 400}
    assert run.config["solvers"]["fast"] == {"iterations": 7, "tolerance": 1e-3}
    assert run.methods["mine"]["parameters"] == {"prior": [1.5, {"b": 3, "c": "$x0"}]}
    assert run.methods["mine"]["timeout"] == 60


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"training": {"crop": "32.0"}}, "training.crop: expected integer, got 32.0"),
        ({"tuning": {"factors": ["1", ".nan"]}}, "tuning.factors.1: expected number, got NaN"),
        ({"trainin": {"crop": "32"}}, "trainin: unknown key; did you mean training?"),
        (
            {"deepinv": {"mine": argument("2e5")}},
            "deepinv.mine.parameters.prior: expected",
        ),
    ],
)
def test_a_fault_of_the_command_line_is_its_own(given, line):
    config = copy.deepcopy(CONFIG)
    update_config(config, given)
    with pytest.raises(InputError) as error:
        Run(config, ROOT, "mine.yaml", given)
    assert str(error.value).startswith(f"--config: {line}")


def test_text_of_a_file_stays_text():
    with pytest.raises(InputError, match=r"^mine.yaml: training.crop: expected integer, got \"32"):
        Run(changed("training.crop", "32"), ROOT, "mine.yaml")


def test_a_missing_key_is_named():
    config = copy.deepcopy(CONFIG)
    del config["solvers"]
    with pytest.raises(InputError, match=r"^mine.yaml: solvers: missing$"):
        Run(config, ROOT, "mine.yaml")


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


def test_a_fault_of_the_default_config_names_it(tmp_path):
    """Snakemake reads it too, and would name no file."""
    for name in ("Snakefile", "rerg", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("run: demo\n  seeds: [0\n")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "config/config.yaml: line 2: not YAML: mapping values are not "
        + ("allowed in this context")
    )


def test_every_shipped_config_is_sound():
    for name in ("config", "paper"):
        config = {**CONFIG, **yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())}
        assert Run(config, ROOT, name).problems_of("rerg") == config["problems"]


@pytest.fixture(scope="module")
def run():
    return Run(CONFIG, ROOT, "config")


def test_comparisons_restore_their_problems_only(run):
    block = CONFIG["comparisons"][0]
    assert run.problems_of(block["methods"][0]) == block["problems"] == ["com90"]
    assert "com90" in run.problems_of("rg-adam") and "den15" not in run.problems_of("rg-adam")
    batch = run.batch_of("com90")
    assert run.problems_in("rg-adam", batch) == ["com90"]
    assert len(run.problems_in("rg", batch)) > 1


def test_problems_are_grouped_in_their_order():
    problems = CONFIG["problems"]
    for n in (1, 3, len(problems), 100):
        run = Run(changed("problems_per_job", n), ROOT, "config")
        assert [p for group in run.batches.values() for p in group] == problems
        for name, group in run.batches.items():
            assert len(group) <= n
            assert name == (f"{group[0]}-{group[-1]}" if len(group) > 1 else group[0])
            assert all(run.batch_of(problem) == name for problem in group)


@pytest.mark.parametrize("names", [["a", "b", "a-b"], ["x-y", "z", "x", "y-z"]])
def test_groups_of_one_name_are_refused(names, tmp_path):
    """The second would silently take the place of the first."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    entry = {"label": "A", "short": "a", "operator": "identity", "noise": 9, "sigma": 9}
    registry = {name: {**entry, "trained": True} for name in names}
    (tmp_path / "config/problems.yaml").write_text(yaml.safe_dump(registry))
    config = {**CONFIG, "problems": names, "comparisons": [], "examples": [], "methods": ["rerg"]}
    with pytest.raises(
        InputError, match=r"^m.yaml: problems: two groups that share a job have one"
    ):
        Run({**config, "problems_per_job": 2}, tmp_path, "m.yaml")
    run = Run({**config, "problems_per_job": 9}, tmp_path, "m.yaml")
    assert [run.batch_of(name) for name in names] == [f"{names[0]}-{names[-1]}"] * len(names)


@pytest.mark.parametrize(
    ("file", "name", "line"),
    [
        ("weights", "rerg", "rerg: the name of a trained variant"),
        ("datasets", "all", "all: expected a name of letters, digits, - and _, other than all"),
        ("datasets", "50", "expected a name of letters, digits, - and _, other than all, got 50"),
    ],
)
def test_a_name_that_stands_for_something_else_is_refused(file, name, line, tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    path = tmp_path / "config" / f"{file}.yaml"
    entry = next(iter(yaml.safe_load(path.read_text()).values()))
    path.write_text(path.read_text() + f"\n{name}: {json.dumps(entry)}\n")
    with pytest.raises(InputError) as error:
        Run(CONFIG, tmp_path, "m.yaml")
    assert str(error.value) == f"{path}: {line}"


@pytest.mark.parametrize(
    ("dataset", "count", "images"),
    [
        ("embedded-test", 8, {"chelsea-1", "coffee-4"}),
        ("set5", 5, {"baby_GT", "woman_GT"}),
        ("cbsd68-64", 14, {"0000-1", "0065-1"}),
    ],
)
def test_the_images_of_a_test_set_are_those_of_the_registry(dataset, count, images):
    found = Run(changed("datasets.test", [dataset]), ROOT, "config").images[dataset]
    assert len(found) == count and images <= set(found)


def test_the_images_of_a_folder_without_digests_are_not_known(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    with (tmp_path / "config/datasets.yaml").open("a") as file:
        file.write("mine: {use: [test], licence: l, citation: c, source: folder, folder: f, ")
        file.write('pattern: "*"}\n')
        file.write("lost: {use: [test], licence: l, citation: c, source: http, urls: [http://a], ")
        file.write("manifest: config/manifests/lost.sha256}\n")
    assert Run(changed("datasets.test", ["mine"]), tmp_path, "m.yaml").images == {"mine": []}
    with pytest.raises(InputError, match=r"^\S*config/manifests/lost.sha256: no such file$"):
        Run(changed("datasets.test", ["lost"]), tmp_path, "m.yaml")


def test_every_variant_restores_by_every_solver_that_can():
    methods = trained_methods()
    expected = set()
    for name, about in variants().items():
        for solver in about.solvers or solvers():
            expected.add((name, solver))
    assert {(m["variant"], m["solver"]) for m in methods.values()} == expected
    assert methods["rerg"]["solver"] == "fast" and methods["rerg-gd"]["solver"] == "gd"
    assert methods["rerg"]["label"] == "RERG" and methods["rerg-gd"]["label"] == "RERG, GD"
    assert "mtdeq-gd" not in methods


def test_the_seeds_are_those_of_what_is_trained():
    run = Run(changed("seeds", [0, 7]), ROOT, "config")
    assert run.seeds_of("rerg") == run.seeds_of("pnp-admm") == run.seeds_of("dpir") == ["0", "7"]
    assert run.seeds_of("tv") == run.seeds_of("dpir-drunet") == ["all"]
    assert run.model_spec("rerg", 7).seed == 7


def test_a_run_trains_what_its_methods_need_and_where_these_start():
    config = {**CONFIG, "methods": ["tv", "dpir", "mtdeq"], "comparisons": []}
    assert Run(config, ROOT, "config").variants() == ["red", "rg", "mtdeq"]
    assert Run({**config, "methods": ["tv"]}, ROOT, "config").variants() == []


def test_a_table_of_trials_is_about_the_problems_of_its_methods():
    config = {**CONFIG, "methods": ["tv", "wiener"], "problems": ["den25", "sr2", "com80"]}
    config |= {"comparisons": [{"methods": ["rerg-gd", "rerg"], "problems": ["com80", "den25"]}]}
    run = Run({**config, "examples": []}, ROOT, "config")
    assert run.tuned("rerg-gd") == run.tuned("rerg") == ["rerg"]
    assert run.tuned("rerg-adam") == ["rerg", "rerg-adam"]
    assert run.tuned_problems("rerg") == ["den25", "com80"]
    assert run.tuned_problems("tv") == ["den25", "sr2", "com80"]
    assert run.tuned_problems("wiener") == ["den25"]  # all that it can do
    assert run.all_tuned() == ["rerg", "tv", "wiener"]
    other = {**config, "problems": ["sr2"], "comparisons": [], "examples": []}
    assert Run(other, ROOT, "config").all_tuned() == ["tv"]
    config["tuning"] = {**CONFIG["tuning"], "rounds": 0}
    assert Run({**config, "examples": []}, ROOT, "config").tuned("rerg-adam") == []


def test_a_problem_states_options_of_a_solver_and_the_solver_the_rest(run):
    assert run.options("rg-adam", "com90") == {"iterations": 300, "learning_rate": 0.025}
    assert run.options("rg-adam", "den25") == CONFIG["solvers"]["adam"]
    assert run.options("rerg", "com90") == CONFIG["solvers"]["fast"]


def test_what_does_not_change_a_model_does_not_change_its_spec(run):
    spec = run.model_spec("rerg", 0)
    for path, value in {
        "training.runtime": 7,
        "training.log_every": 7,
        "variants.rerg.threads": 7,
        "variants.rg.evaluations": 7,
        "solvers.fast.iterations": 7,
        "restoration.batch": 7,
        "methods": ["rerg"],
    }.items():
        assert Run(changed(path, value), ROOT, "config").model_spec("rerg", 0) == spec


def test_what_changes_a_model_changes_its_spec(run):
    digests = {digest(run.model_spec("rerg", 0)), digest(run.model_spec("rerg", 1))}
    changes = {
        "training.crop": 32,
        "training.batch": 8,
        "training.clip": 2.0,
        "training.precision": "tf32",
        "variants.rerg.evaluations": 7,
        "variants.rerg.learning_rate": 0.1,
        "variants.rerg.halve_every": 5,
        "variants.rerg.beta": 0.7,
        "network.blocks": 2,
        "equilibrium.lost_above": 0.5,
        "problems": CONFIG["problems"][::-1],
    }
    for path, value in changes.items():
        digests.add(digest(Run(changed(path, value), ROOT, "config").model_spec("rerg", 0)))
    assert len(digests) == 2 + len(changes)


def test_held_out_problems_are_not_trained_on(run):
    names = [problem.name for problem in run.model_spec("rerg", 0).problems]
    assert names == run.trained_problems() == [p for p in CONFIG["problems"] if p != "com95"]


def test_a_parameter_that_the_config_leaves_out_has_its_default():
    config = copy.deepcopy(CONFIG)
    del config["variants"]["rerg"]["beta"]
    spec = Run(config, ROOT, "config").model_spec("rerg", 0)
    assert spec.parameters == dict(variants()["rerg"].parameters)
    assert Run(config, ROOT, "config").model_spec("red", 0).parameters == {}


def test_parsing_needs_neither_torch_nor_pandas():
    modules = "rerg.run, rerg.code, rerg.expressions"
    code = f"import sys, {modules}; print({{'torch', 'pandas', 'scipy'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
