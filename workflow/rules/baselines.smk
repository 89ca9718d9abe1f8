# Restorations by baselines: a Python function or a reconstructor of deepinv by one rule, another
# language by a rule of its own, a problem at a time.

# With this before its program, a baseline's own rule cannot stop the scores of the others.
GUARD = f"{shlex.quote(sys.executable)} -m rerg.guard"

for name in run.all_methods():
    if run.methods[name].get("baseline") == ".smk":

        include: (run.baselines[name] / f"{name}.smk").resolve()


rule restore_by_baseline:
    """The images of one dataset, restored by a baseline from a group of problems."""
    input:
        observations="<results>/observations/{dataset}/{batch}",
        weights=weights_of,
        tuning=tuning_of,
        baseline=baseline_of,
    output:
        directory("<results>/restorations/{dataset}/{method}/{seed}/{batch}"),
    log:
        "<results>/logs/restore/{dataset}.{method}.{seed}.{batch}.log",
    benchmark:
        "<results>/benchmarks/restore.{dataset}.{method}.{seed}.{batch}.tsv"
    wildcard_constraints:
        method=f"{restored_by('.py')}|{restored_by('reconstructor')}",
    conda:
        "../../environment.yml"
    threads: RESTORATION["threads"]
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=RESTORATION["runtime"],
    params:
        problems=problems_of,
        settings=settings_of,
        batch=RESTORATION["batch"],
        device=run.config["device"],
        code=code_of("baseline.py"),
    script:
        "../scripts/baseline.py"
