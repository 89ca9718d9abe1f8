# Images, kernels and the backbone of LPIPS: fetched once, prepared once.
IMAGE_SETS = [
    d for split in ("train", "validation", "test") for d in RUN["datasets"][split]
]
KERNEL_SETS = sorted(
    {
        PROBLEMS[problem]["kernel"]["file"]
        for problem in RUN["problems"]
        if "file" in PROBLEMS[problem].get("kernel", {})
    }
)
# SSIM has a window of 11 pixels, and AlexNet (LPIPS) needs 31.
SMALLEST_SCORED = 32


localrules:
    fetch,
    lpips_weights,
    inputs,


rule inputs:
    """Everything that needs the internet: after it, a cluster can work without."""
    input:
        expand(f"{RESULTS}/images/{{dataset}}.lock", dataset=IMAGE_SETS + KERNEL_SETS),
        f"{RESULTS}/images/lpips.safetensors",


rule fetch:
    """Files of a registry entry, checked to the byte; their digests are the output."""
    input:
        manifest=lambda w: DATASETS[w.dataset].get("manifest", []),
        code=["rerg/images.py", "rerg/downloads.py"],
    output:
        # updated, not replaced: digests locked on first sight hold for every later fetch
        update(f"{RESULTS}/images/{{dataset}}.lock"),
    log:
        f"{RESULTS}/logs/fetch/{{dataset}}.log",
    conda:
        "../../environment.yml"
    params:
        entry=lambda w: DATASETS[w.dataset],
    script:
        "../scripts/fetch_images.py"


rule prepare:
    """Images of one dataset as HDF5."""
    input:
        lock=f"{RESULTS}/images/{{dataset}}.lock",
        code=["rerg/images.py", "rerg/downloads.py"],
    output:
        f"{RESULTS}/images/{{dataset}}.h5",
    log:
        f"{RESULTS}/logs/prepare/{{dataset}}.log",
    conda:
        "../../environment.yml"
    params:
        entry=lambda w: DATASETS[w.dataset],
        smallest=lambda w: (
            RUN["training"]["crop"]
            if w.dataset in RUN["datasets"]["train"]
            else SMALLEST_SCORED
        ),
    script:
        "../scripts/prepare.py"


rule prepare_kernels:
    """Kernels of one file as arrays."""
    input:
        lock=f"{RESULTS}/images/{{dataset}}.lock",
        code=["rerg/images.py", "rerg/downloads.py"],
    output:
        f"{RESULTS}/images/{{dataset}}.npz",
    log:
        f"{RESULTS}/logs/prepare/{{dataset}}.log",
    conda:
        "../../environment.yml"
    params:
        entry=lambda w: DATASETS[w.dataset],
    script:
        "../scripts/prepare.py"


rule splits:
    """Image ids of train, validation and test, held disjoint by pixel content."""
    input:
        expand(f"{RESULTS}/images/{{dataset}}.h5", dataset=IMAGE_SETS),
        code="rerg/images.py",
    output:
        f"{RESULTS}/images/splits.json",
    log:
        f"{RESULTS}/logs/splits.log",
    conda:
        "../../environment.yml"
    params:
        splits={
            split: [
                f"{RESULTS}/images/{dataset}.h5" for dataset in RUN["datasets"][split]
            ]
            for split in ("train", "validation", "test")
        },
    script:
        "../scripts/check_splits.py"


rule lpips_weights:
    """Convolutions of AlexNet under LPIPS, or the reason why they could not be had."""
    input:
        code=["rerg/perceptual.py", "rerg/downloads.py"],
    output:
        f"{RESULTS}/images/lpips.safetensors",
    log:
        f"{RESULTS}/logs/lpips_weights.log",
    conda:
        "../../environment.yml"
    script:
        "../scripts/fetch_lpips.py"
