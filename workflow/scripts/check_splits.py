"""Hold train, validation and test disjoint, and write their image ids."""

import json
from pathlib import Path

from rerg.downloads import whole
from rerg.images import check_disjoint
from rerg.script import logged

with logged(snakemake.log[0]):
    splits = check_disjoint(snakemake.params.splits)
    with whole(Path(snakemake.output[0])) as partial:
        partial.write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")
