# Images, kernels and the backbone of LPIPS: fetched once, prepared once.
IMAGE_SETS = [name for split in DATASETS.values() for name in split]
KERNEL_SETS = run.kernel_sets(run.config["problems"])


localrules:
    fetch,
    lpips_weights,
    inputs,


rule inputs:
    """Everything that needs the internet: after it, a cluster can work without."""
    input:
        expand("<results>/images/{dataset}.lock", dataset=IMAGE_SETS + KERNEL_SETS),
        "<results>/images/lpips.safetensors",
        expand("<results>/models/all/{published}.json", published=run.published()),


rule fetch:
    """Files of a registry entry, checked to the byte; their digests are the output."""
    input:
        manifest=manifest_of,
    output:
        # updated, not replaced: digests locked on first sight hold for every later fetch
        update("<results>/images/{dataset}.lock"),
    log:
        "<results>/logs/fetch/{dataset}.log",
    priority: 100  # trainings wait for it
    conda:
        "../../environment.yml"
    params:
        entry=entry_of,
        code=code_of("fetch_images.py"),
    script:
        "../scripts/fetch_images.py"


rule prepare:
    """Images of one dataset as HDF5."""
    input:
        lock="<results>/images/{dataset}.lock",
    output:
        "<results>/images/{dataset}.h5",
    log:
        "<results>/logs/prepare/{dataset}.log",
    priority: 100  # trainings wait for it
    conda:
        "../../environment.yml"
    params:
        entry=entry_of,
        smallest=smallest_of,
        code=code_of("prepare.py"),
    script:
        "../scripts/prepare.py"


rule prepare_kernels:
    """Kernels of one file as arrays."""
    input:
        lock="<results>/images/{dataset}.lock",
    output:
        "<results>/images/{dataset}.npz",
    log:
        "<results>/logs/prepare/{dataset}.log",
    priority: 100  # trainings wait for it
    conda:
        "../../environment.yml"
    params:
        entry=entry_of,
        code=code_of("prepare.py"),
    script:
        "../scripts/prepare.py"


rule splits:
    """Image ids of train, validation and test, held disjoint by pixel content.

    Kernels of files are held against images and crops, as all trainings wait for this rule.
    """
    input:
        images=expand("<results>/images/{dataset}.h5", dataset=IMAGE_SETS),
        kernels=kernels_of(run.config["problems"]),
    output:
        "<results>/images/splits.json",
    log:
        "<results>/logs/splits.log",
    priority: 100  # trainings wait for it
    conda:
        "../../environment.yml"
    params:
        splits=DATASETS,
        trained=specs_with_file(run.trained_problems() if run.variants() else []),
        crop=run.config["training"]["crop"],
        restored=specs_with_file(run.config["problems"]),
        code=code_of("check_splits.py"),
    script:
        "../scripts/check_splits.py"


rule lpips_weights:
    """Convolutions of AlexNet under LPIPS, or the reason why they could not be had."""
    output:
        "<results>/images/lpips.safetensors",
    log:
        "<results>/logs/lpips_weights.log",
    conda:
        "../../environment.yml"
    params:
        code=code_of("fetch_lpips.py"),
    script:
        "../scripts/fetch_lpips.py"
