"""Judge the claims on the scores."""

import json
from pathlib import Path

from rerg.claims import judge, page, scorecard
from rerg.expressions import read_claims
from rerg.scores import load_scores
from rerg.script import logged
from rerg.statistics import Evidence

with logged(snakemake.log[0]):
    params, source, output = snakemake.params, snakemake.input, snakemake.output
    claims = read_claims(
        Path(source.claims), Path(source.schema), params.known_methods, params.known_problems
    )
    scores = load_scores(source.scores, params.expected, source.get("provenance") or None)
    result = judge(claims, Evidence(scores, params.methods, list(params.problems)))
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    Path(output.json).write_text(text, encoding="utf-8")
    Path(output.md).write_text(scorecard(result), encoding="utf-8")
    Path(output.html).write_text(page(result), encoding="utf-8")
