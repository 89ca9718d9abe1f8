"""images -> observations -> models -> restorations -> scores -> tables, figures, claims."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")

from rerg.config import InputError, Run
from rerg.expressions import read_claims


configfile: "config/config.yaml"


try:
    files = [*workflow.configfiles, *workflow.overwrite_configfiles]
    run = Run(config, Path(workflow.basedir), *files)
    read_claims(
        Path("config/claims.yaml"),
        Path("workflow/schemas/claims.schema.yaml"),
        list(run.methods),
        list(run.problems),
    )
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(1)

RUN, PROBLEMS, METHODS, DATASETS = run.config, run.problems, run.methods, run.datasets
RESULTS = f"results/{RUN['run']}"
TEST = RUN["datasets"]["test"]
TRAINED = run.trained_problems()
GPU = int(RUN["device"] == "cuda")


report: "workflow/report/workflow.rst"


wildcard_constraints:
    dataset="|".join(DATASETS),
    problem="|".join(PROBLEMS),
    method="|".join(METHODS),


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
        PROVENANCE,
