"""A stored table that was damaged: the same numbers, an empty cell with a line, or one line.

Every mutation of a table of scores goes through all that draws from it. What changes a number
without making it unreadable is said by the provenance that lies beside the table.
"""

import hashlib
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import expected_of, synthetic_scores

from rerg import figures
from rerg.claims import UNDECIDED, judge, scorecard
from rerg.config import InputError
from rerg.expressions import parse
from rerg.scores import load_scores, write_scores
from rerg.statistics import Evidence
from rerg.tables import quality, regret, solvers, write_tables

METHODS = {
    "rg": {"label": "RG", "variant": "rg", "solver": "fast"},
    "rerg": {"label": "RERG", "variant": "rerg", "solver": "fast"},
    "rerg-adam": {"label": "RERG, Adam-GD", "variant": "rerg", "solver": "adam"},
    "tv": {"label": "TV"},
}
PROBLEMS = {
    "den15": {"label": "Denoising", "short": "den", "trained": True},
    "50": {"label": "Fifty", "short": "50", "trained": False},
}
# Decided on the whole table, whatever the width of an interval over two images.
EXPRESSION = "worst_regret(rerg) < worst_regret(rg) + 1000"
CLAIM = {"id": "c", "text": "t", "source": "ours", "reading": "r", "expression": EXPRESSION}
CLAIM["comparison"] = parse(EXPRESSION, METHODS, PROBLEMS)
EXPECTED = expected_of(METHODS, PROBLEMS, seeds=(0, 1))
SCORES = synthetic_scores(METHODS, PROBLEMS, images=2, seeds=(0, 1))
with tempfile.TemporaryDirectory() as _folder:
    write_scores(SCORES, Path(_folder, "scores.csv"))
    TEXT = Path(_folder, "scores.csv").read_text()
LINES = TEXT.splitlines(keepends=True)
HEAD = LINES[0].strip().split(",")


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def numbers(content: str, folder: Path) -> tuple[list, list[str], dict]:
    """All tables of a file's content, the lines of the log, and the claim."""
    path, about = folder / "scores.csv", folder / "provenance.json"
    path.write_text(content, encoding="utf-8", newline="")
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    about.write_text(json.dumps({"scores": {"rows": len(LINES) - 1, "sha256": sha256}}))
    handler = Lines()
    logging.getLogger("rerg").addHandler(handler)
    try:
        evidence = Evidence(
            load_scores(path, EXPECTED, about), METHODS, list(PROBLEMS), resamples=50
        )
        tables = [t for metric in ("psnr", "ssim", "lpips") for t in quality(evidence, metric)]
        tables += [*regret(evidence), solvers(evidence)]
        write_tables(evidence, folder, PROBLEMS)
        result = judge([CLAIM], Evidence(evidence.scores, METHODS, list(PROBLEMS)))
        scorecard(result)
        figures.iterations(evidence, "50", PROBLEMS)
        figures.regret(evidence, PROBLEMS)
        figures.bound(evidence)
        figures.evaluations(evidence, PROBLEMS)
    finally:
        logging.getLogger("rerg").removeHandler(handler)
    return tables, handler.lines, result["claims"][0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    tables, lines, claim = numbers(TEXT, tmp_path_factory.mktemp("whole"))
    assert lines == []
    assert claim["verdict"] != UNDECIDED
    return tables


# Where the last cell is broken off the numbers of the rest must not be taken for whole.
rows = st.integers(1, len(LINES) - 1)
columns = st.integers(0, len(HEAD) - 1)
cells = st.one_of(
    st.sampled_from(["", "NA", "nan", "inf", "-inf", "1e400", "-3", "0", "1.5", "True", "[]"]),
    st.sampled_from(["50", "moon", '"', ",", "truth", "2", "[[1,null]]", "converged", "ü", "\x00"]),
    st.text(max_size=6),
)


def dropped_rows(some):
    return "".join(line for i, line in enumerate(LINES) if i not in some)


def dropped_columns(some):
    split = [line.rstrip("\n").split(",") for line in LINES if "[" not in line]
    kept = [[cell for i, cell in enumerate(row) if i not in some] for row in split]
    return "".join(",".join(row) + "\n" for row in kept)


def changed(row, column, cell):
    import csv
    import io

    table = list(csv.reader(io.StringIO(TEXT, newline="")))
    table[row][column] = cell
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


def spliced(at, cell):
    return TEXT[:at] + cell + TEXT[at:]


def shuffled(seed):
    order = np.random.default_rng(seed).permutation(len(LINES) - 1) + 1
    return LINES[0] + "".join(LINES[i] for i in order)


MUTATIONS = st.one_of(
    st.builds(dropped_rows, st.sets(rows, max_size=8)),
    st.builds(dropped_rows, st.builds(lambda a, b: set(range(min(a, b), max(a, b))), rows, rows)),
    st.builds(dropped_columns, st.sets(columns, min_size=1, max_size=3)),
    st.builds(changed, rows, columns, cells),
    st.builds(lambda column, cell: changed(0, column, cell), columns, cells),
    st.builds(spliced, st.integers(0, len(TEXT)), cells),
    st.builds(lambda i, j: "".join([*LINES[:i], LINES[j], *LINES[i:]]), rows, rows),
    st.builds(shuffled, st.integers(0, 99)),
    st.builds(lambda sign: TEXT.replace(",", sign), st.sampled_from([";", "\t", "|", " "])),
    st.builds(lambda end: TEXT[:end], st.integers(0, len(TEXT))),
    st.builds(lambda end: TEXT.replace("\n", end), st.sampled_from(["\r\n", "\r", "\n\n", ""])),
)


def same(one, two):
    return all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-6, equal_nan=True)
        for a, b in zip(one, two, strict=True)
    )


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(MUTATIONS)
def test_every_mutation_is_the_same_numbers_or_said(whole, content):
    with tempfile.TemporaryDirectory() as folder:
        try:
            tables, lines, claim = numbers(content, Path(folder))
        except InputError as error:
            assert str(error) and "\n" not in str(error)
            return
        assert lines or same(tables, whole)
        assert not any("\n" in line for line in lines)
        # Rows that are missing never leave a verdict by the survivors on what the claim reads.
        if any(" missing" in line and ("rerg on" in line or "rg on" in line) for line in lines):
            assert claim["verdict"] == UNDECIDED
