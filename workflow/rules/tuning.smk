# Tuning: the factor of σ of every variant, and what a baseline declares, on validation images.
TUNING = RUN["tuning"] if RUN["tuning"]["rounds"] else None


TUNED = sorted({Path(f).stem for m in run.all_methods() for f in tuning_of(m)})

if TUNED:

    localrules:
        draw_tuning,

    rule tune:
        """A coarse-to-fine search per problem; a trial that the table has is not repeated."""
        input:
            images=[
                f"{RESULTS}/images/{dataset}.h5"
                for dataset in RUN["datasets"]["validation"]
            ],
            splits=f"{RESULTS}/images/splits.json",
            kernels=lambda w: list(kernel_files(tuned_problems(w.tuned)).values()),
            weights=lambda w: weights_of(w.tuned),
            baseline=lambda w: (
                [] if w.tuned in RUN["variants"] else baseline_code(w.tuned)
            ),
            code=[
                "rerg/tuning.py",
                "rerg/baselines.py",
                "rerg/restoration.py",
                "rerg/networks.py",
                "rerg/equilibrium.py",
                "rerg/problems.py",
            ],
        output:
            update(f"{RESULTS}/tuning/{{tuned}}.csv"),
        log:
            f"{RESULTS}/logs/tune/{{tuned}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/tune.{{tuned}}.tsv"
        wildcard_constraints:
            tuned="|".join(TUNED),
        priority: 50  # restorations wait for it
        conda:
            "../../environment.yml"
        threads: RUN["restoration"]["threads"]
        resources:
            gpu=GPU,
            mem_mb=4000,
            runtime=RUN["restoration"]["runtime"],
        params:
            problems=lambda w: {p: PROBLEMS[p] for p in tuned_problems(w.tuned)},
            kernels=lambda w: kernel_files(tuned_problems(w.tuned)),
            datasets=RUN["datasets"]["validation"],
            tuning=TUNING,
            settings=lambda w: {} if w.tuned in RUN["variants"] else METHODS[w.tuned],
            spec=lambda w: spec_of(w.tuned),
            batch=RUN["restoration"]["batch"],
            device=RUN["device"],
        script:
            "../scripts/tune.py"

    rule draw_tuning:
        """PSNR on the validation images over what was tuned."""
        input:
            trials=expand(f"{RESULTS}/tuning/{{tuned}}.csv", tuned=TUNED),
            code=["rerg/figures.py", "rerg/tuning.py"],
        output:
            pdf=f"{RESULTS}/figures/tuning.pdf",
            png=report(
                f"{RESULTS}/figures/tuning.png",
                caption="../report/figure_tuning.rst",
                category="Figures",
                labels={"dataset": "validation", "figure": "tuning"},
            ),
        log:
            f"{RESULTS}/logs/draw_tuning.log",
        conda:
            "../../environment.yml"
        params:
            methods=lambda w: {
                m: {**METHOD_LABELS[m], "parameters": METHODS[m].get("parameters", {})}
                for m in run.all_methods()
            },
            problems=lambda w: PROBLEM_LABELS,
        script:
            "../scripts/tuning_curves.py"
