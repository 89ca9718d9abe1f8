"""The training loop: deterministic, resumed bit for bit, and safe when it is killed."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAINED, clean_images, crops, problem_of, spec_of, write_images

from rerg.batch import Batch
from rerg.checkpoints import load_checkpoint, save_checkpoint
from rerg.config import InputError
from rerg.images import Crops, prefetch
from rerg.models import build, save, start_from
from rerg.networks import Graphs
from rerg.specs import NetworkSpec
from rerg.training import (
    TrainingJob,
    draw_batch,
    evaluations_of,
    train,
    train_job,
)

TESTS = Path(__file__).parent
INPUTS = {"spec": {"seed": 0}}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


class Interrupted(Exception):
    pass


def breaking(after):
    """Crops that fail at the call after `after` ones."""
    calls = []

    def draw(rng):
        calls.append(1)
        if len(calls) > after:
            raise Interrupted
        return crops(rng)

    return draw


@pytest.mark.parametrize("variant", TRAINED)
def test_resumes_bit_for_bit(variant, trained, tmp_path):
    spec = spec_of(variant, 30 if variant in ("red", "rg") else 160)
    unbroken, rows = train(spec, crops, trained, tmp_path / "a", log_every=2)

    broken = tmp_path / "b"
    with pytest.raises(Interrupted):
        train(spec, breaking(3), trained, broken, log_every=2, checkpoint_every=0)
    assert load_checkpoint(broken, {"spec": asdict(spec)})["step"] == 3
    resumed, resumed_rows = train(spec, crops, trained, broken, log_every=2)
    assert equal(unbroken, resumed)
    assert evaluations_of(resumed) == evaluations_of(unbroken) >= spec.evaluations
    for row, other in zip(rows, resumed_rows, strict=True):
        measured = {"seconds": 0, "memory_mb": 0}
        assert {**row, **measured} == {**other, **measured}


SCRIPT = """
import logging, sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from conftest import crops, spec_of
from rerg.training import train
def slow(rng):
    print("step", flush=True)
    time.sleep(0.2)
    return crops(rng)
train(spec_of("red", 60), slow, None, Path(sys.argv[2]), checkpoint_every=1e9)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_keeps_a_checkpoint_that_resumes_bit_for_bit(number, tmp_path):
    checkpoint = tmp_path / "red"
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-c", SCRIPT, str(TESTS), str(checkpoint)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        for _ in range(4):
            assert process.stdout.readline() == "step\n"
        process.send_signal(number)
        assert process.wait(120) == 143
    spec = spec_of("red", 60)
    assert 3 <= load_checkpoint(checkpoint, {"spec": asdict(spec)})["step"] < 20
    resumed, _ = train(spec, crops, None, checkpoint)
    unbroken, _ = train(spec, crops, None, tmp_path / "unbroken")
    assert equal(resumed, unbroken)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"network": NetworkSpec((4, 4, 4, 4), 1, 400.0)}, "network.channels is (8, 8, 16, 16)"),
        ({"batch": 5}, "batch is 4 there"),
        ({"problems": spec_of("red", 20).problems[::-1]}, "problems is "),
    ],
)
def test_checkpoint_of_another_config_is_refused(change, key, tmp_path):
    spec = spec_of("red", 20)
    train(spec, crops, None, tmp_path / "red", checkpoint_every=0)
    with pytest.raises(InputError, match="checkpoint of another config or code") as caught:
        train(replace(spec, **change), crops, None, tmp_path / "red")
    assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def job(trained, tmp_path):
    """A training of `rg1` on prepared images, from weights in a file."""
    spec = spec_of("rg1", 8, start="red")
    for name, seed in (("a", 0), ("b", 1)):
        write_images(tmp_path / f"{name}.h5", clean_images(4, 40, 44, seed))
    save(tmp_path / "red.safetensors", trained, spec_of("red", 400), {})
    return TrainingJob(
        spec=spec,
        code="",
        start=str(tmp_path / "red.safetensors"),
        images=(str(tmp_path / "a.h5"),),
        checkpoint=str(tmp_path / "rg1.ckpt"),
        kernels={},
        device="cpu",
        threads=1,
        launch="plain",
        log_every=1,
        checkpoint_every=0,
        log="",
    )


def test_a_job_resumes_with_its_images_and_its_start_alone(job, tmp_path):
    networks, _ = train_job(job)
    assert equal(networks, train_job(job)[0])  # from its checkpoint
    with pytest.raises(InputError, match=r"checkpoint of another config or code: images is "):
        train_job(replace(job, images=(str(tmp_path / "b.h5"),)))
    with pytest.raises(InputError, match=r"checkpoint of another config or code: code is "):
        train_job(replace(job, code="edited"))
    save(Path(job.start), build(spec_of("red", 400)), spec_of("red", 400), {})
    with pytest.raises(InputError, match=r"checkpoint of another config or code: start is "):
        train_job(job)


def test_a_start_of_another_architecture_is_refused_in_one_line(job):
    other = spec_of("red", 400, network=NetworkSpec((4, 4, 4, 4), 1, 400.0))
    save(Path(job.start), build(other), other, {})
    with pytest.raises(InputError, match=r"red.safetensors: expected NetworkSpec") as caught:
        train_job(job)
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "state"
    save_checkpoint(path, {"inputs": INPUTS, "step": 7})
    whole = path.read_bytes()

    def half(state, file):
        file.write(whole[: len(whole) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(InputError, match="state: cannot be written: no space"):
        save_checkpoint(path, {"inputs": INPUTS, "step": 8})
    assert path.read_bytes() == whole
    assert load_checkpoint(path, INPUTS)["step"] == 7


WRITER = """
import sys
from pathlib import Path
import torch
from rerg.checkpoints import save_checkpoint
for step in range(10**6):
    state = {"inputs": {}, "step": step, "weights": torch.full((10**6,), float(step))}
    save_checkpoint(Path(sys.argv[1]), state)
"""


def test_a_sigkill_in_mid_write_leaves_the_last_checkpoint(tmp_path):
    path, partial = tmp_path / "state.ckpt", tmp_path / "state.ckpt.partial"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)  # a look at it must not race with it
        if path.exists() and partial.exists() and 0 < partial.stat().st_size < 3 * 10**6:
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    state = load_checkpoint(path, {})
    assert bool((state["weights"] == state["step"]).all())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_broken_checkpoint_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "state"
    save_checkpoint(path, {"inputs": INPUTS, "step": 7})
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(InputError, match="not a whole checkpoint") as caught:
        load_checkpoint(path, INPUTS)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_depends_on_seed_and_step():
    problems = [problem_of(name) for name in ("den15", "sr2", "blur16", "com80")]
    first = draw_batch(crops, problems, 0, 5)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (global states must not matter)
    again = draw_batch(crops, problems, 0, 5)
    assert torch.equal(first.truth, again.truth)
    assert torch.equal(first.observation.y, again.observation.y)
    assert torch.equal(first.noise, again.noise)
    for seed, step in ((0, 6), (1, 5)):
        assert not torch.equal(draw_batch(crops, problems, seed, step).truth, first.truth)
    drawn = {draw_batch(crops, problems, 0, step).observation.sigma for step in range(20)}
    assert len(drawn) == len({problem.sigma for problem in problems})


def test_starts_from_the_given_rg(trained, tmp_path):
    """Without a budget the weights are the start's."""
    networks, _ = train(spec_of("deqgd", 0), crops, trained, tmp_path / "a")
    assert equal(networks, trained)
    anew, _ = train(spec_of("deqgd", 0), crops, None, tmp_path / "a")
    assert not equal(anew, trained)
    start_from(anew, trained)
    assert equal(anew, trained)


def test_a_gpu_gets_pinned_images_without_a_wait(monkeypatch):
    """Pinning itself needs a GPU: which images are pinned, and how they are copied, does not."""
    batch = draw_batch(crops, [problem_of("com80")], 0, 1)
    o = batch.observation
    images = [batch.truth, batch.noise, o.y, o.x0, *o.physics.buffers()]
    assert any(x is o.physics.mask for x in images)
    pinned, copied, real = [], [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x.clone())
    other = batch.pinned()
    assert {id(x) for x in pinned} == {id(x) for x in images}

    def to(x, *arguments, **options):
        if options.get("non_blocking") and arguments == ("meta",):
            copied.append(x)
        return real(x, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    other.to("meta")
    o = other.observation
    wanted = (other.truth, other.noise, o.y, o.x0, *o.physics.buffers())
    assert {id(x) for x in copied} == {id(x) for x in wanted}
    for a, b in zip(images, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("problem", ["sr2", "blur16", "com80"])
def test_a_batch_that_goes_to_a_device_stays_where_it_is(problem):
    batch = draw_batch(crops, [problem_of(problem)], 0, 1)
    expected = batch.observation.gradient(batch.truth)
    moved = batch.to("meta")
    assert moved.truth.device.type == moved.observation.y.device.type == "meta"
    assert moved.observation.prox(moved.truth, 2.0).device.type == "meta"
    assert torch.equal(batch.observation.gradient(batch.truth), expected)


def test_a_batch_is_the_same_by_however_many_threads(tmp_path):
    """Bit for bit, of mapped images and of physics that the threads share."""
    write_images(tmp_path / "a.h5", clean_images(5, 40, 44))
    crops = Crops(tmp_path / "a.h5", 32, 4)
    names = ("sr2", "blur16", "com80")

    def batches(threads: int) -> list[Batch]:
        problems = [problem_of(name) for name in names]
        return list(prefetch(lambda step: draw_batch(crops, problems, 0, step), range(24), threads))

    for one, other in zip(batches(1), batches(4), strict=True):
        assert torch.equal(one.truth, other.truth) and torch.equal(one.noise, other.noise)
        a, b = one.observation, other.observation
        assert torch.equal(a.y, b.y) and torch.equal(a.x0, b.x0)
        assert torch.equal(a.prox(one.truth, 2.0), b.prox(other.truth, 2.0))
        assert one.rng.integers(2**30) == other.rng.integers(2**30)


def test_a_physics_goes_to_a_device_once():
    problem = problem_of("blur16")
    first, second = (draw_batch(crops, [problem], 0, step).to("meta") for step in (0, 1))
    assert first.observation.physics is second.observation.physics
    assert first.observation.physics.filter.device.type == "meta"


def test_graphs_launch_the_passes_of_solves_and_change_nothing(trained, tmp_path, monkeypatch):
    """Recording itself needs a GPU: here a recorded pass is a plain one."""
    recorded = []

    def record(self, z):
        recorded.append(z.shape)
        return self.body

    monkeypatch.setattr(Graphs, "record", record)
    plain, rows = train(spec_of("rerg", 60), crops, trained, tmp_path / "a", log_every=1)
    graphs, others = train(
        spec_of("rerg", 60), crops, trained, tmp_path / "b", log_every=1, way="graphs"
    )
    assert recorded and len(recorded) == len({*recorded})
    assert [row["evaluations"] for row in rows] == [row["evaluations"] for row in others]
    for a, b in zip(plain.parameters(), graphs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_progress_is_logged(tmp_path, caplog):
    with caplog.at_level("INFO"):
        _, rows = train(spec_of("red", 24), crops, None, tmp_path / "a", log_every=4)
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert all(math.isfinite(row["loss"]) for row in rows)
    lines = [r.message for r in caplog.records if r.message.startswith("step 4 ")]
    assert len(lines) == 1 and "evaluations 8/24" in lines[0] and "remaining" in lines[0]


def test_sigterm_is_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(spec_of("red", 4), crops, None, tmp_path / "a")
    assert signal.getsignal(signal.SIGTERM) is before
