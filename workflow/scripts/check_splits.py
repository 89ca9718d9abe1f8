"""Hold train, validation and test disjoint, kernels against images, and write the image ids."""

import json
from pathlib import Path

from rerg.atomic import whole
from rerg.images import check_disjoint, check_kernels
from rerg.script import logged

with logged(snakemake.log[0]):
    params, source = snakemake.params, snakemake.input
    prepared = {Path(path).stem: Path(path) for path in source.images}
    splits = check_disjoint(
        {split: [prepared[name] for name in names] for split, names in params.splits.items()}
    )
    check_kernels(
        {Path(path).stem: path for path in source.kernels},
        params.trained,
        params.crop,
        params.restored,
        [prepared[name] for split in ("validation", "test") for name in params.splits[split]],
    )
    with whole(Path(snakemake.output[0])) as partial:
        partial.write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")
