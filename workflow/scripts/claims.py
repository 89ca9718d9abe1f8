"""Judge the claims on the scores."""

import json
from pathlib import Path

from rerg.claims import judge, page, scorecard
from rerg.expressions import read_claims
from rerg.scores import read_scores
from rerg.script import logged

with logged(snakemake.log[0]):
    params, output = snakemake.params, snakemake.output
    claims = read_claims(
        Path(snakemake.input.claims), Path(snakemake.input.schema), params.methods, params.problems
    )
    result = judge(claims, read_scores(Path(snakemake.input.scores)), params.seed)
    Path(output.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    Path(output.md).write_text(scorecard(result))
    Path(output.html).write_text(page(result))
