# Models: one training per variant and seed, by the same loop; all but the warm start begin from it.
# Published weights lie beside them, with the seed `all`.
TRAINING = run.config["training"]
NODES = TRAINING["nodes"]
# Over several nodes srun starts the processes, called by the script (Snakemake's `mpi`): a task of
# the job is a node's share.
SEVERAL_NODES = {"nodes": NODES, "tasks": NODES, "tasks_per_gpu": 0, "mpi": "srun"}


localrules:
    fetch_weights,


wildcard_constraints:
    published="|".join(run.weights),


rule fetch_weights:
    """Published weights, checked to the byte and held against their architecture."""
    output:
        weights="<results>/models/all/{published}.safetensors",
        about="<results>/models/all/{published}.json",
        # updated, not replaced: a digest locked on first sight holds for every later fetch
        lock=update("<results>/models/all/{published}.lock"),
    log:
        "<results>/logs/fetch_weights/{published}.log",
    conda:
        "../../environment.yml"
    params:
        entry=entry_of_weights,
        code=code_of("fetch_weights.py"),
    script:
        "../scripts/fetch_weights.py"


rule train:
    """One variant with one seed, trained until its budget of network evaluations is spent."""
    input:
        start=start_of,
        images=images_of("train"),
        validation=images_of("validation"),
        # made before, but of all splits: another test set trains and tunes nothing anew
        splits=ancient("<results>/images/splits.json"),
        kernels=kernels_of(run.trained_problems()),
    output:
        weights="<results>/models/{seed}/{variant}.safetensors",
        about="<results>/models/{seed}/{variant}.json",
        curve=report(
            "<results>/models/{seed}/{variant}.training.csv",
            caption="../report/training.rst",
            category="Models",
            labels={"variant": "{variant}", "seed": "{seed}"},
        ),
    log:
        "<results>/logs/train/{variant}.{seed}.log",
    benchmark:
        "<results>/benchmarks/train.{variant}.{seed}.tsv"
    priority: 100  # everything else waits for models
    conda:
        "../../environment.yml"
    threads: threads_of_variant
    resources:
        **(SEVERAL_NODES if NODES > 1 else {}),
        gpu=GPU * TRAINING["processes"] * NODES,
        mem_mb=4000 * TRAINING["processes"],
        runtime=TRAINING["runtime"],
    params:
        spec=spec_of_variant,
        device=run.config["device"],
        code=code_of_training,
    script:
        "../scripts/train.py"
