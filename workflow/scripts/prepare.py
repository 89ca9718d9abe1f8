"""Write the images of a fetched dataset as HDF5, or the kernels of a fetched file as arrays."""

from pathlib import Path

from rerg.images import prepare, prepare_kernels
from rerg.script import logged

with logged(snakemake.log[0]):
    lock, target = Path(snakemake.input.lock), Path(snakemake.output[0])
    what = snakemake.wildcards.dataset, snakemake.params.entry, lock, target
    if target.suffix == ".npz":
        prepare_kernels(*what)
    else:
        prepare(*what, snakemake.params.smallest)
