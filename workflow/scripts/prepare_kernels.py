"""Write the kernels of a fetched file as arrays."""

from pathlib import Path

from rerg.images import prepare_kernels
from rerg.script import logged

with logged(snakemake.log[0]):
    prepare_kernels(
        snakemake.wildcards.dataset,
        snakemake.params.entry,
        Path(snakemake.input.lock),
        Path(snakemake.output[0]),
    )
