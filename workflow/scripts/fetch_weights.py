"""Fetch published weights into the cache, and write them as our own are."""

from pathlib import Path

from rerg.published import convert, fetch
from rerg.script import logged

with logged(snakemake.log[0]):
    name, entry = snakemake.wildcards.published, snakemake.params.entry
    source = fetch(name, entry, Path(snakemake.output.lock))
    convert(name, entry, source, Path(snakemake.output.weights))
