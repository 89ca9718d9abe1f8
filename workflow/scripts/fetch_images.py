"""Fetch the files of a registry entry into the cache, and write their digests."""

from pathlib import Path

from rerg.images import fetch
from rerg.script import logged

with logged(snakemake.log[0]):
    entry = dict(snakemake.params.entry)
    for path in snakemake.input.manifest:
        entry["manifest"] = path  # from where this runs; the registry has it from the root
    fetch(snakemake.wildcards.dataset, entry, Path(snakemake.output[0]))
