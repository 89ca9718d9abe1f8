"""Models: seeds, starts, and weights that survive their file or are refused in one line."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import observe, spec_of, white

from rerg.config import InputError
from rerg.maps import ADMM, GradientDescent, ProximalGradient
from rerg.models import Model, build, load_model, save, start_from
from rerg.registry import solvers, variants
from rerg.specs import NetworkSpec, digest

SPEC = spec_of("rg1", 100)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_seed_decides_the_weights():
    state = torch.random.get_rng_state()
    a, b, c = (build(replace(SPEC, seed=seed)) for seed in (0, 0, 1))
    assert same(a, b) and not same(a, c)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("variant", variants())
def test_variants_differ_by_their_noise_maps_only(variant):
    """The same body from the same seed, and the networks that the module names."""
    networks = build(spec_of(variant, 100))
    described = variants()[variant].networks
    assert {name: network.conditioned for name, network in networks.items()} == described
    reference = build(spec_of("red", 100))["rg"].state_dict()
    for network in networks.values():
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        different = {key for key in reference if shapes[key] != reference[key].shape}
        assert different == ({"unet.m_head.weight"} if network.conditioned else set())
        if not network.conditioned:
            assert all(torch.equal(reference[k], v) for k, v in network.state_dict().items())


def test_a_noise_map_starts_without_effect():
    source, target = build(spec_of("red", 100)), build(spec_of("mtdeq", 100, seed=1))
    start_from(target, source)
    x = white((1, 3, 16, 16))
    torch.testing.assert_close(target["denoiser"](x, 0.2), source["rg"](x), rtol=0, atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    networks, path = build(SPEC), tmp_path / "rg1.safetensors"
    save(path, networks, SPEC, {"evaluations": 7})
    return networks, path


def refusal(path, expected=None):
    with pytest.raises(InputError) as caught:
        load_model(path, expected)
    message = str(caught.value)
    assert "\n" not in message and path.stem in message
    return message


def test_weights_and_their_spec_survive_their_file(saved):
    networks, path = saved
    model = load_model(path, SPEC)
    assert same(model.networks, networks)
    assert model.spec == SPEC and model.about["evaluations"] == 7
    assert not any(p.requires_grad for p in model.networks.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"network": NetworkSpec((8, 8, 8, 8), 1, 400.0)},
        {"variant": "mtdeq"},
        {"network": NetworkSpec((8, 8, 16, 16), 2, 400.0)},
    ],
)
def test_weights_of_another_architecture_are_refused(saved, change):
    _, path = saved
    about = json.loads(path.with_suffix(".json").read_text())
    save(path.with_name("other.safetensors"), build(replace(SPEC, **change)), SPEC, {})
    other = json.loads(path.with_name("other.json").read_text())
    path.write_bytes(path.with_name("other.safetensors").read_bytes())
    path.with_suffix(".json").write_text(json.dumps({**about, "sha256": other["sha256"]}))
    assert "weights of another architecture" in refusal(path)


def test_weights_of_another_spec_are_refused(saved):
    _, path = saved
    reordered = replace(SPEC, problems=SPEC.problems[::-1])
    for other in (replace(SPEC, seed=1), reordered):
        message = refusal(path, other)
        assert f"config is {digest(SPEC)}, expected {digest(other)}" in message


def test_altered_weights_are_refused(saved):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "not those that rg1.json describes" in refusal(path)
    path.write_bytes(content[: len(content) // 2])
    assert "not those that rg1.json describes" in refusal(path)


def test_missing_or_broken_descriptions_are_refused(saved):
    _, path = saved
    about = path.with_suffix(".json")
    text = about.read_text()
    about.write_text(text[:20])
    assert "expected a JSON description" in refusal(path)
    for content in ("[]", '{"sha256": "0"}'):
        about.write_text(content)
        assert "spec: missing" in refusal(path)
    spec = json.loads(text)["spec"]
    about.write_text(json.dumps({**json.loads(text), "spec": {**spec, "batch": "many"}}))
    assert "spec.batch" in refusal(path)
    about.unlink()
    assert "no such file" in refusal(path)


def test_what_this_machine_lacks_is_a_line(saved):
    _, path = saved
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"^device cuda: "):
            load_model(path, device="cuda")
    text = path.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(text.replace('"variant": "rg1"', '"variant": "rg7"'))
    assert "trained by rg7, a variant that is not here; did you mean rg" in refusal(path)


@pytest.mark.parametrize("variant", variants())
def test_every_variant_restores_by_each_of_its_solvers(variant):
    model = Model(build(spec_of(variant, 100)), spec_of(variant, 100), {})
    _, observation = observe("den25", 16, 16)
    descent = {"gd": GradientDescent, "adam": GradientDescent}
    kinds = {"fast": ProximalGradient, "turns": ProximalGradient} | descent
    for solver in variants()[variant].solvers or solvers():
        T = model.restoring_map(observation, solver)
        assert type(T) is (ADMM if variant == "mtdeq" else kinds[solver])
        assert T.scale == 400 and T.observation is observation


def test_a_denoiser_is_the_network_that_the_variant_names():
    for variant, network in {"red": "rg", "rg": "denoiser", "mtdeq": "denoiser"}.items():
        model = Model(build(spec_of(variant, 100)), spec_of(variant, 100), {})
        assert model.denoiser() is model.networks[network]
    with pytest.raises(InputError, match=r"^rg1: trains no denoiser$"):
        Model(build(SPEC), SPEC, {}).denoiser()
