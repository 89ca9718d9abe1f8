"""What is shown of a run: of the lines that snakemake prints."""

import sys

import pytest

from rerg.watch import watch

STARTED = """host: machine
Job stats:
job      count
-----  -------
total        2

[Sat Nov 28 09:54:53 2026]
rule train:
    input: a.h5
    output: results/demo/models/0/red.safetensors
    log: results/demo/logs/train/red.0.log
    jobid: 7
    reason: Missing output files: results/demo/models/0/red.safetensors
    wildcards: seed=0, variant=red
    resources: tmpdir=/tmp
2026-11-28 10:00:24,617 WARNING red: a warning of a job
2026-11-28 10:00:25,617 WARNING red: a warning of a job
"""
FINISHED = """[Sat Nov 28 09:55:25 2026]
Finished jobid: 7 (Rule: train)
1 of 2 steps (50%) done
"""
FAILED = """2026-11-28 10:00:24,617 ERROR images: a.png: no such file
[Sat Nov 28 09:56:24 2026]
Error in rule train:
    log: results/demo/logs/train/red.0.log (check log file(s) for error details)
"""


def shown(capfd, text: str, status: int) -> list[str]:
    code = f"import sys; print({text!r}, end=''); sys.exit({status})"
    assert watch([sys.executable, "-c", code]) == status
    return capfd.readouterr().err.splitlines()


def test_a_job_is_a_line_and_a_warning_comes_once_at_the_end(capfd):
    lines = shown(capfd, STARTED + FINISHED, 0)
    assert lines == ["train red 0 (0 s)", "warning: red: a warning of a job"]


def test_an_error_is_shown_in_full(capfd):
    *lines, warning = shown(capfd, STARTED + FAILED, 1)
    assert lines == FAILED.splitlines() and warning.startswith("warning: ")


def test_what_a_program_says_in_another_encoding_stops_nothing(capfd):
    code = "import sys; sys.stdout.buffer.write(b'Error in rule a:\\n  caf\\xe9\\n')"
    assert watch([sys.executable, "-c", code]) == 0
    assert capfd.readouterr().err.splitlines() == ["Error in rule a:", "  caf\ufffd"]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("Config file a.yaml is extended.\n", "mine.yaml: trainin: unknown key"),
        ("usage: snakemake [-h]\n\n", "snakemake: error: unrecognized arguments: --nonsense"),
    ],
)
def test_why_a_run_does_not_start_is_shown(capfd, said, line):
    assert shown(capfd, f"{said}{line}\n\n", 2) == [line]
