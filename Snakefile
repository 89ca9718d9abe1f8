"""images -> observations -> models -> restorations -> scores -> tables, figures, claims."""

import os
import shlex
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")

from rerg.checks import smallest
from rerg.code import code_digest
from rerg.config import ending_in_a_line, read_mapping
from rerg.expressions import read_claims
from rerg.labels import color_of, line_of_solver
from rerg.run import Run

# Of the repository, from the working directory: "." but for a module of another workflow.
ROOT = Path(os.path.relpath(workflow.current_basedir))


DEFAULTS = ROOT / "config/config.yaml"

with ending_in_a_line():
    read_mapping(DEFAULTS)  # first, as Snakemake would not name the file


configfile: str(DEFAULTS)


with ending_in_a_line():
    files = [*workflow.configfiles, *workflow.overwrite_configfiles]
    run = Run(config, ROOT, *files, workflow.config_settings.config)
    config.update(run.config)  # with the numbers of --config, for the scripts
    read_claims(
        ROOT / "config/claims.yaml",
        ROOT / "workflow/schemas/claims.schema.yaml",
        list(run.methods),
        list(run.problems),
    )


pathvars:
    results=f"results/{run.name}",


report: "workflow/report/workflow.rst"


wildcard_constraints:
    dataset="|".join(run.datasets),
    problem="|".join(run.problems),
    batch="|".join(run.batches),
    method="|".join(run.methods),
    variant="|".join(run.config["variants"]),
    seed=r"all|\d+",


include: "workflow/rules/common.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/observations.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/tuning.smk"
include: "workflow/rules/restorations.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/scores.smk"
include: "workflow/rules/artefacts.smk"
include: "workflow/rules/provenance.smk"


rule all:
    """The whole benchmark: restorations, scores, tables, figures, claims and provenance."""
    default_target: True
    input:
        ARTEFACTS,
