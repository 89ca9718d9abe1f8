"""Write the images of a fetched dataset as HDF5."""

from pathlib import Path

from rerg.images import prepare
from rerg.script import logged

with logged(snakemake.log[0]):
    prepare(
        snakemake.wildcards.dataset,
        snakemake.params.entry,
        Path(snakemake.input.lock),
        Path(snakemake.output[0]),
        snakemake.params.smallest,
    )
