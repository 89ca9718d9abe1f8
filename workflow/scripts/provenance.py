"""Write the provenance of the run."""

import json
from pathlib import Path

from rerg.provenance import describe
from rerg.script import logged

with logged(snakemake.log[0]):
    params, scores = snakemake.params, Path(snakemake.input.scores)
    about = describe(params.config, params.registries, scores)
    Path(snakemake.output[0]).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
