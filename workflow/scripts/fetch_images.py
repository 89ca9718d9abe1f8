"""Fetch the files of a registry entry into the cache, and write their digests."""

from pathlib import Path

from rerg.images import fetch
from rerg.script import logged

with logged(snakemake.log[0]):
    fetch(snakemake.wildcards.dataset, snakemake.params.entry, Path(snakemake.output[0]))
