"""The variants: ways to train an RG, a module each, found by being there (rerg.registry).

A module has the constants LABEL, COLOR and NETWORKS, at need REGULARIZING_GRADIENT, DENOISER,
SOLVERS and PARAMETERS, and a function `loss(networks, batch, spec) -> (loss, log)`. One whose
networks are no RG also has `restoring_map(networks, observation, scale)`. Nothing else differs
between variants, and no other file knows their names (docs/add-a-variant.md).
"""
