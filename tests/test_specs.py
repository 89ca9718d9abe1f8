"""Typed specs: what a digest depends on, and that a spec survives JSON or is refused in a line."""

import json
from dataclasses import asdict, fields, is_dataclass, replace

import pytest
from conftest import PROBLEMS, spec_of

from rerg.config import InputError
from rerg.specs import ModelSpec, ProblemSpec, digest

SPEC = spec_of("rerg", 100)


def other(value):
    """Another value of the same type."""
    if is_dataclass(value):
        return changed(value)[0]
    if isinstance(value, tuple):
        return value[::-1]
    if isinstance(value, dict):
        return {**value, "beta": 7.0}
    return {str: "x", int: 7, float: 7.0}[type(value)]


def changed(spec):
    """The spec with each of its fields changed in turn."""
    return [replace(spec, **{f.name: other(getattr(spec, f.name))}) for f in fields(spec)]


def test_the_digest_depends_on_every_field():
    nested = [
        *(replace(SPEC, network=network) for network in changed(SPEC.network)),
        *(replace(SPEC, equilibrium=spec) for spec in changed(SPEC.equilibrium)),
    ]
    digests = {digest(spec) for spec in (SPEC, *changed(SPEC), *nested)}
    # the first field of a nested spec is changed twice
    assert len(digests) == 1 + len(changed(SPEC)) + len(nested) - 2


def test_the_digest_depends_on_every_field_of_a_problem():
    problem = ProblemSpec("b", "blur", 1.0, 2.0, kernel={"motion": 9, "angle": 45})
    others = [p for p in changed(problem) if p.kernel] + [replace(problem, kernel=None)]
    assert len({digest(p) for p in (problem, *others)}) == 1 + len(others) >= 8


def test_the_digest_depends_on_the_order_of_the_problems_and_not_of_keys():
    swapped = (SPEC.problems[1], SPEC.problems[0], *SPEC.problems[2:])
    assert digest(replace(SPEC, problems=swapped)) != digest(SPEC)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert digest(SPEC) == digest(spec_of("rerg", 100)) == digest(asdict(SPEC))


@pytest.mark.parametrize("variant", ["red", "rerg"])
def test_a_spec_survives_json(variant):
    spec = spec_of(variant, 100, start="red")
    read = ModelSpec.read(json.loads(json.dumps(asdict(spec))), "a.json")
    assert read == spec and digest(read) == digest(spec)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"batch": "many"}, "spec.batch: "),
        ({"network": {"channels": [8, 8, 16, 16], "blocks": 1}}, "spec.network.scale: "),
        ({"problems": [{"name": "den25"}]}, "spec.problems.0.operator: "),
        ({"parameters": {"beta": "large"}}, "spec.parameters.beta: "),
        ({"equilibrium": None}, "spec.equilibrium: "),
    ],
)
def test_bad_content_is_one_line(change, key):
    with pytest.raises(InputError) as error:
        ModelSpec.read({**json.loads(json.dumps(asdict(SPEC))), **change}, "a.json")
    assert str(error.value).startswith(f"a.json: {key}") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, [], "spec", {}])
def test_content_that_is_no_spec_is_one_line(content):
    with pytest.raises(InputError, match=r"^a\.json: spec[.:]") as error:
        ModelSpec.read(content, "a.json")
    assert "\n" not in str(error.value)


def test_a_spec_of_a_problem_has_what_its_observations_depend_on():
    for name, entry in PROBLEMS.items():
        spec = ProblemSpec.of(name, entry)
        shown = {"label", "short", "trained", "learning_rate", "iterations"}
        for key, value in entry.items():
            if key not in shown:
                assert getattr(spec, key) == value
        assert spec == ProblemSpec.of(name, entry | dict.fromkeys(shown, "another"))
