"""Train one variant."""

from pathlib import Path

import pandas as pd
import torch

from rerg.images import Crops
from rerg.networks import load_weights, save_weights
from rerg.script import logged
from rerg.training import build_networks, describe, train

with logged(snakemake.log[0]):
    torch.set_num_threads(snakemake.threads)
    spec, checkpoint = snakemake.params.spec, Path(snakemake.params.checkpoint)
    start = None
    if snakemake.input.start:
        start = build_networks({**spec, "variant": spec["settings"]["start"]})
        load_weights(snakemake.input.start[0], start, {"network": spec["network"]})
    crops = Crops(snakemake.input.images, spec["training"]["crop"], spec["training"]["batch"])
    networks, rows = train(
        spec,
        crops,
        start,
        checkpoint,
        kernels=snakemake.params.kernels,
        device=snakemake.params.device,
        log_every=snakemake.params.log_every,
        checkpoint_every=snakemake.params.checkpoint_every,
    )
    pd.DataFrame(rows).to_csv(snakemake.output.curve, index=False, float_format="%.6g")
    save_weights(snakemake.output.weights, networks, describe(spec, rows))
    checkpoint.unlink(missing_ok=True)
