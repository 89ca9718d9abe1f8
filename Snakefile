"""images -> observations -> models -> restorations -> scores -> tables, figures, claims."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")

from rerg.config import InputError, Run


configfile: "config/config.yaml"


try:
    run = Run(config, Path(workflow.basedir), str(workflow.configfiles[-1]))
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(1)

RUN, PROBLEMS, METHODS, DATASETS = run.config, run.problems, run.methods, run.datasets
RESULTS = f"results/{RUN['run']}"
TEST = RUN["datasets"]["test"]
TRAINED = run.trained_problems()
GPU = int(RUN["device"] == "cuda")


def batched(problems):
    """Groups of problems that share a job."""
    n = RUN["problems_per_job"]
    return [list(problems)[i : i + n] for i in range(0, len(problems), n)]


wildcard_constraints:
    dataset="|".join(DATASETS),
    problem="|".join(PROBLEMS),
    method="|".join(METHODS),


rule all:
    """The whole benchmark: restorations, scores, tables, figures, claims and provenance."""
    input:
        [
            f"{RESULTS}/restorations/{dataset}/{problem}/{method}.npz"
            for dataset in TEST
            for method in run.all_methods()
            for problem in run.problems_of(method)
        ],


include: "workflow/rules/images.smk"
include: "workflow/rules/observations.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/restorations.smk"
