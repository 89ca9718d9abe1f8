"""Published weights: random ones of their shapes from a server on this machine, and what is not."""

import hashlib
import io
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from deepinv.models import DRUNet, GSDRUNet

from rerg.baselines import load_baseline
from rerg.config import InputError
from rerg.models import load_model
from rerg.provenance import describe
from rerg.published import convert, fetch, load_denoiser, network_of, read_state
from rerg.run import Run

ROOT = Path(__file__).parents[1]
WEIGHTS = yaml.safe_load((ROOT / "config" / "weights.yaml").read_text())
SMALL = {"channels": [4, 4, 8, 8], "blocks": 1, "licence": "none", "citation": "of a test"}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:8ad8\nsize 130587453\n"


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def published(network: str) -> torch.nn.Module:
    """A network as its authors have it, with random weights."""
    torch.manual_seed(0)
    if network == "rg":  # a noise map would be its fourth channel
        return DRUNet(in_channels=2, out_channels=3, nc=(4, 4, 8, 8), nb=1, pretrained=None)
    options = {"nc": tuple(SMALL["channels"]), "nb": SMALL["blocks"], "pretrained": None}
    return (DRUNet if network == "drunet" else GSDRUNet)(**options)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Files by their path, and the addresses of them; the cache is empty."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            content = files.get(self.path.strip("/"))
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("RERG_CACHE", str(tmp_path / "cache"))

    def serve(name: str, content: bytes) -> list[str]:
        files[name] = content
        return [f"http://127.0.0.1:{running.server_port}/{name}"]

    yield serve
    running.shutdown()
    running.server_close()


def test_the_rg_says_what_the_file_says(server, tmp_path):
    """scale · N is the published network, and the model loads as one that was trained here."""
    network = published("rg")
    content = saved(network.state_dict())
    digest = hashlib.sha256(content).hexdigest()
    entry = {"network": "rg", "scale": 1600, **SMALL, "sha256": digest}
    entry["urls"] = server("ReG.pth", content)
    lock, target = tmp_path / "rg-published.lock", tmp_path / "rg-published.safetensors"
    convert("rg-published", entry, fetch("rg-published", entry, lock), target)
    assert lock.read_text() == f"{digest}  ReG.pth\n"
    model = load_model(target)
    x = torch.rand(2, 3, 24, 32)
    with torch.no_grad():
        expected = network.forward_unet(x)
        torch.testing.assert_close(model.spec.scale * model.networks["rg"](x), expected)
    assert model.spec.variant == "rg-published"
    assert model.about["file"] == {"name": "ReG.pth", "sha256": digest}
    assert model.about["published"]["licence"] == "none"


@pytest.mark.parametrize("network", ["drunet", "gsdrunet"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_denoiser_denoises_as_the_published_one(server, tmp_path, network, wrapped):
    denoiser, entry = published(network), {"network": network, **SMALL}
    state = denoiser.state_dict()
    entry["urls"] = server("net.ckpt", saved({"state_dict": state} if wrapped else state))
    target = tmp_path / "net.safetensors"
    convert("net", entry, fetch("net", entry, tmp_path / "net.lock"), target)
    u = torch.rand(2, 3, 16, 16)
    settings = {"denoiser": "net", "parameters": {}, "timeout": 1, "reconstructor": "optim.DPIR"}
    baseline = load_baseline("mine", settings, None, target, "cpu")
    for loaded in (load_denoiser(target), baseline.denoiser):
        with torch.no_grad():
            torch.testing.assert_close(loaded(u, 0.1), denoiser(u, 0.1))


def test_the_provenance_of_a_run_names_a_published_denoiser(tmp_path):
    source, target = tmp_path / "net.pth", tmp_path / "models" / "all" / "net.safetensors"
    source.write_bytes(saved(published("drunet").state_dict()))
    convert("net", {"network": "drunet", **SMALL}, source, target)
    (tmp_path / "scores.csv").write_text("run\n")
    about = describe({"run": "test", "seeds": [0]}, {}, tmp_path / "scores.csv")
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert about["models"]["all/net"]["sha256"] == digest


@pytest.mark.parametrize("left", [None, ""])
def test_a_digest_is_locked_on_first_sight(server, tmp_path, left):
    """Where no run has left a lock, or an empty one."""
    entry, lock = {"network": "drunet", **SMALL}, tmp_path / "net.lock"
    if left is not None:
        lock.write_text(left)
    entry["urls"] = server("net.pth", b"first")
    path = fetch("net", entry, lock)
    assert lock.read_text().split()[0] == hashlib.sha256(b"first").hexdigest()
    path.unlink()
    server("net.pth", b"second")
    with pytest.raises(InputError, match=r"expected sha256 a7937b64.*found"):
        fetch("net", entry, lock, backoff=0)


def test_a_file_of_the_user_comes_first(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RERG_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "net.pth").write_bytes(b"mine")
    entry = {"network": "drunet", **SMALL, "folder": "$RERG_DATA/mine"}
    entry["urls"] = ["http://127.0.0.1:9/net.pth"]
    assert fetch("net", entry, tmp_path / "net.lock").read_bytes() == b"mine"
    entry["sha256"] = 64 * "0"
    with pytest.raises(InputError, match=r"mine/net.pth: expected sha256 0{64}, found"):
        fetch("net", entry, tmp_path / "net.lock")


def test_a_pointer_of_git_lfs_is_recognised(server, tmp_path, monkeypatch):
    """In a clone without it, at an address that gives it, with a digest and without."""
    entry = {"network": "rg", "scale": 1, **SMALL, "urls": server("ReG.pth", POINTER)}
    with pytest.raises(InputError, match=r"ReG.pth: a Git LFS pointer in place of the file"):
        fetch("a", entry, tmp_path / "a.lock")
    with pytest.raises(InputError, match=r"a Git LFS pointer; to go on without, put the file at"):
        fetch("b", {**entry, "sha256": 64 * "0"}, tmp_path / "b.lock", backoff=0)
    (tmp_path / "ReG.pth").write_bytes(POINTER)
    with pytest.raises(InputError, match=r"a Git LFS pointer in place of the file; `git lfs pull`"):
        fetch("c", {**entry, "folder": str(tmp_path)}, tmp_path / "c.lock")
    assert not list(tmp_path.glob("*.lock"))


class Harmful:
    """A pickle that would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_what_does_not_fit_is_refused_in_a_line(tmp_path):
    entry = {"network": "rg", "scale": 1600, **SMALL}
    whole = published("rg").state_dict()
    lacking = {key: value for key, value in whole.items() if key != "m_tail.weight"}
    conditioned = published("drunet").state_dict()
    for content, fault in [
        (saved(lacking), "weights of another architecture: Missing key"),
        (saved(conditioned), "weights of another architecture: size mismatch for m_head.weight"),
        (saved([1, 2]), "expected a dictionary of tensors"),
        (saved({"epoch": 3}), "expected a dictionary of tensors"),
        (saved(Harmful(tmp_path / "harm")), "expected weights of torch.save: "),
        (b"<html>not found</html>", "expected weights of torch.save: "),
        (saved(whole)[:500], "expected weights of torch.save: "),
    ]:
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(InputError) as error:
            convert("rg-published", entry, tmp_path / "a.pth", tmp_path / "a.safetensors")
        text = str(error.value)
        assert text.startswith(f"{tmp_path}/a.pth: {fault}") and "\n" not in text, text
    assert not (tmp_path / "harm").exists() and not (tmp_path / "a.safetensors").exists()
    assert set(read_state_of(tmp_path, whole)) == set(whole)


def read_state_of(folder: Path, state: dict) -> dict:
    (folder / "b.pth").write_bytes(saved(state))
    return read_state(folder / "b.pth")


def test_the_registry_states_networks_of_the_published_size():
    """130587453 and 130590113 bytes: the weights in float32 and some kilobytes of the format."""
    with torch.device("meta"):
        rg, denoiser = (network_of(WEIGHTS[name]) for name in ("rg-published", "drunet-pnp-reg"))
    for network, size in ((rg, 130587453), (denoiser, 130590113)):
        weights = 4 * sum(parameter.numel() for parameter in network.parameters())
        assert 0 < size - weights < 2**16


def test_a_run_knows_what_is_published():
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["comparisons"] = []
    config["methods"] = ["rg", "rg-published", "rg-published-adam", "dpir-drunet"]
    run = Run(config, ROOT, "config")
    assert run.published() == ["rg-published", "drunet"]
    assert run.variants() == ["red", "rg"]
    assert [run.seeds_of(m) for m in config["methods"]] == [["0"], ["all"], ["all"], ["all"]]
    config["variants"]["rg-published"] = config["variants"]["red"]
    with pytest.raises(InputError, match=r"variants.rg-published: unknown key"):
        Run(config, ROOT, "config")
