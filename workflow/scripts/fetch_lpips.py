"""Fetch the backbone of LPIPS, or write down why it could not be had."""

from pathlib import Path

from rerg.perceptual import fetch_backbone
from rerg.script import logged

with logged(snakemake.log[0]):
    fetch_backbone(Path(snakemake.output[0]))
