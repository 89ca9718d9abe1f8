# Models: one training per variant and seed, by the same loop; all but the warm start begin from it.
TRAINING = run.config["training"]
NODES = TRAINING["nodes"]
# Over several nodes srun starts the processes, called by the script (Snakemake's `mpi`): a task of
# the job is a node's share.
SEVERAL_NODES = {"nodes": NODES, "tasks": NODES, "tasks_per_gpu": 0, "mpi": "srun"}


rule train:
    """One variant with one seed, trained until its budget of network evaluations is spent."""
    input:
        start=start_of,
        images=images_of("train"),
        validation=images_of("validation"),
        splits="<results>/images/splits.json",
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
        training={k: TRAINING[k] for k in ("compile", "log_every", "checkpoint_every")},
        validation={
            key: run.config["tuning"][key]
            for key in ("images", "iterations", "tolerance")
        },
        processes=TRAINING["processes"],
        nodes=NODES,
        code=code_of_training,
    script:
        "../scripts/train.py"
