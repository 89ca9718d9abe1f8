# Models: one training per variant, by the same loop; all but the warm start begin from it.
# Over several nodes srun starts the processes, called by the script (Snakemake's `mpi`): a task of
# the job is a node's share.
NODES = RUN["training"]["nodes"]
SEVERAL_NODES = {"nodes": NODES, "tasks": NODES, "tasks_per_gpu": 0, "mpi": "srun"}


rule train:
    """One variant, trained until its budget of network evaluations is spent."""
    input:
        start=warm_start,
        images=expand(
            f"{RESULTS}/images/{{dataset}}.h5", dataset=RUN["datasets"]["train"]
        ),
        splits=f"{RESULTS}/images/splits.json",
        kernels=list(kernel_files(TRAINED).values()),
        code=[
            "rerg/training.py",
            "rerg/parallel.py",
            "rerg/variants/__init__.py",
            "rerg/variants/{variant}.py",
            "rerg/networks.py",
            "rerg/equilibrium.py",
            "rerg/bound.py",
            "rerg/problems.py",
        ],
    output:
        weights=f"{RESULTS}/models/{{variant}}.safetensors",
        about=f"{RESULTS}/models/{{variant}}.json",
        curve=report(
            f"{RESULTS}/models/{{variant}}.training.csv",
            caption="../report/training.rst",
            category="Models",
            labels={"variant": "{variant}"},
        ),
    log:
        f"{RESULTS}/logs/train/{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train.{{variant}}.tsv"
    wildcard_constraints:
        variant="|".join(RUN["variants"]),
    priority: 100  # everything else waits for models
    conda:
        "../../environment.yml"
    threads: lambda w: RUN["variants"][w.variant]["threads"]
    resources:
        **(SEVERAL_NODES if NODES > 1 else {}),
        gpu=GPU * RUN["training"]["processes"] * NODES,
        mem_mb=4000 * RUN["training"]["processes"],
        runtime=RUN["training"]["runtime"],
    params:
        spec=lambda w: training_spec(w.variant),
        kernels=kernel_files(TRAINED),
        device=RUN["device"],
        compile=RUN["training"]["compile"],
        processes=RUN["training"]["processes"],
        nodes=NODES,
        # No output: Snakemake deletes the outputs of a job that was killed.
        checkpoint=f"{RESULTS}/checkpoints/{{variant}}.ckpt",
        log_every=RUN["training"]["log_every"],
        checkpoint_every=RUN["training"]["checkpoint_every"],
    script:
        "../scripts/train.py"
