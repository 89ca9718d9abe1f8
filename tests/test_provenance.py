"""Where scores come from: the commit that a row names."""

import subprocess

import pytest

from rerg.provenance import commit


@pytest.fixture
def checkout(tmp_path):
    """A repository of one commit that tracks code and stored results."""
    for name in ("rerg/code.py", "results/study/scores.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1\n")
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "Start")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    return tmp_path


def test_a_commit_is_named_by_twelve_digits(checkout):
    git = ["git", "-C", checkout, "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    assert commit(checkout) == head[:12]


def test_changed_code_is_said_and_changed_results_are_none(checkout):
    (checkout / "results/study/scores.csv").write_text("2\n")
    (checkout / "untracked.txt").write_text("notes")
    assert "+" not in commit(checkout)
    (checkout / "results/study/scores.csv").unlink()
    assert "+" not in commit(checkout)
    (checkout / "rerg/code.py").write_text("2\n")
    assert commit(checkout).endswith("+changes")


def test_outside_a_checkout_there_is_no_commit(tmp_path):
    assert commit(tmp_path) is None
