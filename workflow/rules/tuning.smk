# Tuning: the factor of σ of every variant, and what a baseline declares, on validation images.
TUNED = sorted({run.tuned(method) for method in run.all_methods()} - {None})


wildcard_constraints:
    tuned="|".join(TUNED) or "none",


localrules:
    draw_tuning,


def weights_of_tuned(wildcards):
    variant = run.variant_of(wildcards.tuned)
    return (
        [f"<results>/models/{wildcards.seed}/{variant}.safetensors"] if variant else []
    )


def baseline_of_tuned(wildcards):
    return baseline_file(wildcards.tuned)


def kernels_of_tuned(wildcards):
    return kernels_of(run.tuned_problems(wildcards.tuned))


def specs_of_tuned(wildcards):
    return [
        run.problem_spec(problem) for problem in run.tuned_problems(wildcards.tuned)
    ]


def settings_of_tuned(wildcards):
    return run.methods[wildcards.tuned]


def code_of_tuning(wildcards):
    variant = run.methods[wildcards.tuned].get("variant")
    modules = [f"variants.{variant}", "solvers.fast"] if variant else []
    return code_of("tune.py", *modules)(wildcards)


rule tune:
    """A coarse-to-fine search per problem; a trial that the table has is not repeated."""
    input:
        images=images_of("validation"),
        splits="<results>/images/splits.json",
        kernels=kernels_of_tuned,
        weights=weights_of_tuned,
        baseline=baseline_of_tuned,
    output:
        update("<results>/tuning/{seed}/{tuned}.csv"),
    log:
        "<results>/logs/tune/{tuned}.{seed}.log",
    benchmark:
        "<results>/benchmarks/tune.{tuned}.{seed}.tsv"
    priority: 50  # restorations wait for it
    conda:
        "../../environment.yml"
    threads: RESTORATION["threads"]
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=RESTORATION["runtime"],
    params:
        problems=specs_of_tuned,
        tuning=run.config["tuning"],
        settings=settings_of_tuned,
        batch=RESTORATION["batch"],
        precisions=RESTORATION["precision"],
        device=run.config["device"],
        code=code_of_tuning,
    script:
        "../scripts/tune.py"


def trials_of_all(wildcards):
    return [
        f"<results>/tuning/{seed_of(name, run.seeds[0])}/{name}.csv" for name in TUNED
    ]


rule draw_tuning:
    """PSNR on the validation images over what was tuned, for the first seed."""
    input:
        trials=trials_of_all,
    output:
        pdf="<results>/figures/tuning.pdf",
        png=report(
            "<results>/figures/tuning.png",
            caption="../report/figure_tuning.rst",
            category="Figures",
            labels={"dataset": "validation", "figure": "tuning"},
        ),
    log:
        "<results>/logs/draw_tuning.log",
    conda:
        "../../environment.yml"
    params:
        methods=METHODS,
        declared={name: run.methods[name].get("parameters", {}) for name in TUNED},
        problems=PROBLEMS,
        code=code_of("tuning_curves.py"),
    script:
        "../scripts/tuning_curves.py"
