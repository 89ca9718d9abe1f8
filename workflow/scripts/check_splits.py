"""Hold train, validation and test disjoint, and write their image ids."""

import json
from pathlib import Path

from rerg.atomic import whole
from rerg.images import check_disjoint
from rerg.script import logged

with logged(snakemake.log[0]):
    prepared = {Path(path).stem: Path(path) for path in snakemake.input}
    splits = check_disjoint(
        {
            split: [prepared[name] for name in names]
            for split, names in snakemake.params.splits.items()
        }
    )
    with whole(Path(snakemake.output[0])) as partial:
        partial.write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")
