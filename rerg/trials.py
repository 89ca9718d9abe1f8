"""The table of trials of a tuning: a row per problem and parameters.

`psnr` is the mean in dB over the validation images, `network_evaluations` the mean where it is
known, `key` stands for all that the trial depends on, `failed` is the reason where there is no
restoration.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from rerg.atomic import whole
from rerg.config import InputError

log = logging.getLogger(__name__)

COLUMNS = ["problem", "parameters", "psnr", "network_evaluations", "key", "failed"]

Parameters = dict[str, float]


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV table as text: a problem may be called 50, 1e3 or NA.

    Raises InputError, one line, where it is no CSV table, has no row or lacks one of the columns.
    """
    try:
        table = pd.read_csv(path, dtype="str", keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:  # pandas' own errors of parsing are ValueErrors
        reason = str(error).strip().splitlines()
        raise InputError(f"{path}: not a CSV table ({reason[0] if reason else error!r})") from None
    for column in columns:
        if column not in table:
            raise InputError(f"{path}: column '{column}' is missing")
    if table.empty:
        raise InputError(f"{path}: the table has no rows")
    return table


def read_trials(path: Path) -> pd.DataFrame:
    """A table of trials: `parameters` as mappings, numbers or nan, all else as text.

    Raises InputError, one line, as `read_table`, and where parameters are no JSON mapping.
    """
    table = read_table(path, COLUMNS[:3]).reindex(columns=COLUMNS, fill_value="")
    try:
        parameters = [dict(json.loads(cell)) for cell in table["parameters"]]
    except (ValueError, TypeError):
        raise InputError(f"{path}: column 'parameters': expected JSON mappings") from None
    numbers = table[["psnr", "network_evaluations"]].apply(pd.to_numeric, errors="coerce")
    return table.assign(parameters=parameters, **numbers)


def write_trials(rows: Iterable[Mapping], path: Path) -> None:
    """Write a table of trials, whole or not at all."""
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table["parameters"] = [json.dumps(parameters) for parameters in table["parameters"]]
    with whole(path) as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.6g", lineterminator="\n")


def best(path: Path, problem: str) -> Parameters:
    """The parameters of a problem's best trial; none where every trial failed."""
    table = read_trials(path)
    table = table[(table["problem"] == problem) & table["psnr"].notna()]
    if table.empty:
        log.warning("%s: %s: no trial succeeded; the declared parameters are used", path, problem)
        return {}
    return table.loc[table["psnr"].idxmax(), "parameters"]
