# Tuning, on validation images: the factor of σ of every variant, then that of Adam's step, and what a
# baseline declares.
TUNED = run.all_tuned()


localrules:
    draw_tuning,


rule tune:
    """A coarse-to-fine search per problem; a trial that the table has is not repeated."""
    input:
        images=images_of("validation"),
        # made before, but of all splits: another test set trains and tunes nothing anew
        splits=ancient("<results>/images/splits.json"),
        kernels=kernels_of_tuned,
        weights=weights_of,
        baseline=baseline_of,
        sigma=trials_of_sigma,
    output:
        update("<results>/tuning/{seed}/{method}.csv"),
    log:
        "<results>/logs/tune/{method}.{seed}.log",
    benchmark:
        "<results>/benchmarks/tune.{method}.{seed}.tsv"
    wildcard_constraints:
        method="|".join(TUNED) or "none",
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
        settings=settings_of,
        options=options_of_tuned,
        batch=RESTORATION["batch"],
        precisions=RESTORATION["precision"],
        launch=RESTORATION["launch"],
        device=run.config["device"],
        code=code_of_tuning,
    script:
        "../scripts/tune.py"


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
