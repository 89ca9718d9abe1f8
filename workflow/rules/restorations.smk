# Restorations: a folder per dataset, method, seed and group of problems, so that a job loads its
# network once. By a variant and a solver here, by baselines in the next file.
rule restore:
    """The images of one dataset, restored by a variant and a solver from a group of problems."""
    input:
        observations="<results>/observations/{dataset}/{batch}",
        images="<results>/images/{dataset}.h5",
        weights=weights_of,
        tuning=tuning_of,
    output:
        directory("<results>/restorations/{dataset}/{method}/{seed}/{batch}"),
    log:
        "<results>/logs/restore/{dataset}.{method}.{seed}.{batch}.log",
    benchmark:
        "<results>/benchmarks/restore.{dataset}.{method}.{seed}.{batch}.tsv"
    wildcard_constraints:
        method=restored_by("variant"),
    conda:
        "../../environment.yml"
    threads: RESTORATION["threads"]
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=RESTORATION["runtime"],
    params:
        problems=problems_of,
        method=settings_of,
        spec=spec_of,
        options=options_of,
        device=run.config["device"],
        restoration={
            k: RESTORATION[k]
            for k in ("batch", "bound_iterates", "launch", "precision")
        },
        code=code_of_restoration,
    script:
        "../scripts/restore.py"
