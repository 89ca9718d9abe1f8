"""Training in two processes: the same batch, and the weights of one process within rounding."""

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import clean_images, spec_of, write_images

from rerg.config import InputError
from rerg.group import Group, Part
from rerg.models import build, save, start_from
from rerg.parallel import spread
from rerg.training import TrainingJob, evaluations_of, train_job

BUDGET = {"rg": 60, "rerg": 240}
LONG = 600  # seconds, for what takes few on a machine that does nothing else
DRIVER = """
import json, sys
from pydantic import TypeAdapter
from rerg.parallel import spread
from rerg.training import TrainingJob
spread(TypeAdapter(TrainingJob).validate_python(json.loads(sys.argv[1])), 2)
"""


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """Prepared images, and weights to start from: a DEQ needs an RG that has fixed points."""
    folder = tmp_path_factory.mktemp("parallel")
    write_images(folder / "images.h5", clean_images(6, 40, 44))
    save(folder / "red.safetensors", trained, spec_of("red", 400), {})
    return folder


@pytest.fixture(scope="module")
def shared(files):
    """The job of a variant that two processes have done, done once."""
    pytest.importorskip("lightning_fabric")

    @functools.cache
    def done(variant):
        job = job_of(variant, files, files / "shared")
        spread(job, 2)
        return job

    return done


def job_of(variant, files, folder):
    return TrainingJob(
        spec=spec_of(variant, BUDGET[variant], start="red"),
        code="",
        start=str(files / "red.safetensors"),
        images=(str(files / "images.h5"),),
        checkpoint=str(folder / f"{variant}.ckpt"),
        kernels={},
        device="cpu",
        threads=1,
        launch="plain",
        log_every=1,
        checkpoint_every=0,
        log=str(folder / f"{variant}.log"),
    )


def state_of(job):
    """What the checkpoint of a job holds."""
    return torch.load(job.checkpoint, weights_only=True)


def vector(networks):
    return torch.cat([p.detach().flatten() for p in networks.parameters()])


def test_parts_are_the_draws_of_one_process():
    def draws(rng):
        n = 3 if isinstance(rng, Part) else 6
        noise = rng.standard_normal((n, 2, 4), "float32")
        return noise, rng.uniform(0, 2, (n, 1)), rng.integers(1000)

    whole = draws(np.random.default_rng(5))
    parts = [draws(Part(np.random.default_rng(5), Group(rank, 2))) for rank in range(2)]
    for kind in range(2):
        joined = np.concatenate([part[kind] for part in parts])
        np.testing.assert_array_equal(joined, whole[kind])
    assert parts[0][2] == parts[1][2] == whole[2]


@pytest.mark.parametrize("variant", BUDGET)
def test_two_processes_train_what_one_trains(variant, files, trained, shared, tmp_path):
    one, one_rows = train_job(job_of(variant, files, tmp_path))
    job = shared(variant)
    assert state_of(job)["step"] == one_rows[-1]["step"]  # all was done by the two
    assert "step 1 evaluations" in Path(job.log).read_text()
    two, two_rows = train_job(job)

    assert evaluations_of(two) == evaluations_of(one)
    for a, b in zip(one_rows, two_rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)
    moved = vector(one) - vector(begun(job, trained))
    assert (vector(two) - vector(one)).norm() < 0.02 * moved.norm()


def begun(job, start):
    """The networks of a job before their first step."""
    networks = build(job.spec)
    start_from(networks, start)
    return networks


def test_sigterm_stops_two_processes_at_one_step(files, shared, tmp_path):
    whole = shared("rerg")
    job = job_of("rerg", files, tmp_path)
    checkpoint = Path(job.checkpoint)
    with subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(asdict(job))]) as process:
        end = time.monotonic() + LONG
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 143
    stopped, unbroken = state_of(job), state_of(whole)
    assert 0 < stopped["step"] < unbroken["step"]
    spread(job, 2)
    resumed = state_of(job)
    assert resumed["step"] == unbroken["step"]
    for key, value in unbroken["networks"].items():
        assert torch.equal(value, resumed["networks"][key]), key


def test_a_fault_of_the_processes_is_a_line_of_the_log(files, shared, tmp_path, capfd):
    """Here the checkpoint of another code."""
    job = job_of("rg", files, tmp_path)
    shutil.copy(shared("rg").checkpoint, job.checkpoint)
    with pytest.raises(SystemExit) as ended:
        spread(replace(job, code="another"), 2)
    assert ended.value.code  # the process that fails first ends the other
    faults = [line for line in Path(job.log).read_text().splitlines() if " ERROR " in line]
    assert faults and all(f"{job.checkpoint}: checkpoint of another config" in f for f in faults)
    assert "Traceback" not in capfd.readouterr().err + Path(job.log).read_text()


def test_several_nodes_are_slurms(files, tmp_path, monkeypatch):
    """That they train what one does is tested on a Slurm, in tests/cluster."""
    pytest.importorskip("lightning_fabric")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(InputError, match=r"^training\.nodes is 2: expected a Slurm job"):
        spread(job_of("rg", files, tmp_path), 1, nodes=2)


def test_a_log_takes_the_lines_of_other_processes(tmp_path):
    path = tmp_path / "train.log"
    code = (
        "import logging, sys\nfrom pathlib import Path\nfrom rerg.script import logged\n"
        "with logged(sys.argv[1]):\n"
        "    with Path(sys.argv[1]).open('a') as other:\n"
        "        other.write('of another process\\n')\n"
        "    logging.info('of this one')\n"
    )
    path.write_text("of an earlier attempt, long enough to be seen where it is not removed\n")
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    first, second = path.read_text().splitlines()
    assert first == "of another process" and second.endswith("of this one")
