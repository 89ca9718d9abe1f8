# Tables, figures and claims, from the table of scores; two figures need more than it.
TABLES = ["psnr", "ssim", "lpips", "regret", "solvers"]
FIGURES = ["iterations", "regret", "bound", "evaluations"]
# Only what an artefact shows of a method: another tuning grid must not make the tables stale.
METHOD_LABELS = {
    method: {
        key: value
        for key, value in METHODS[method].items()
        if key in ("label", "variant", "solver")
    }
    for method in run.all_methods()
}
PROBLEM_LABELS = {
    problem: {key: PROBLEMS[problem][key] for key in ("label", "short", "trained")}
    for problem in RUN["problems"]
}
ARTEFACTS = [
    *expand(
        f"{RESULTS}/tables/{{dataset}}/{{table}}.{{suffix}}",
        dataset=TEST,
        table=TABLES,
        suffix=["csv", "md", "tex", "html"],
    ),
    *expand(
        f"{RESULTS}/figures/{{dataset}}/{{figure}}.{{suffix}}",
        dataset=TEST,
        figure=FIGURES,
        suffix=["pdf", "png"],
    ),
    *expand(f"{RESULTS}/claims.{{suffix}}", suffix=["json", "md", "html"]),
]
if STORED:
    if workflow.is_main_process:
        print(
            f"{SCORES} lies alone: figures/*/examples needs restorations and figures/training"
            " the training curves, so they are left out",
            file=sys.stderr,
        )
else:
    ARTEFACTS += expand(
        f"{RESULTS}/figures/{{dataset}}/examples.{{suffix}}",
        dataset=TEST,
        suffix=["pdf", "png"],
    )
    ARTEFACTS += expand(f"{RESULTS}/figures/training.{{suffix}}", suffix=["pdf", "png"])
    if TUNED:
        ARTEFACTS += expand(
            f"{RESULTS}/figures/tuning.{{suffix}}", suffix=["pdf", "png"]
        )


localrules:
    figures,
    tables,
    draw_scores,
    draw_examples,
    draw_training,
    claims,


rule figures:
    """All tables, figures and claims."""
    input:
        ARTEFACTS,


rule tables:
    """Quality, regret and solvers of one dataset, as CSV, Markdown, LaTeX and HTML."""
    input:
        scores=SCORES,
        code=["rerg/tables.py", "rerg/scores.py"],
    output:
        [
            report(
                f"{RESULTS}/tables/{{dataset}}/{table}.html",
                caption=f"../report/{table}.rst",
                category="Tables",
                labels={"dataset": "{dataset}", "table": table},
            )
            for table in TABLES
        ],
        expand(
            f"{RESULTS}/tables/{{dataset}}/{{table}}.{{suffix}}",
            table=TABLES,
            suffix=["csv", "md", "tex"],
            allow_missing=True,
        ),
    log:
        f"{RESULTS}/logs/tables/{{dataset}}.log",
    conda:
        "../../environment.yml"
    params:
        methods=METHOD_LABELS,
        problems=PROBLEM_LABELS,
        seed=RUN["seed"],
    script:
        "../scripts/tables.py"


rule draw_scores:
    """The figures of one dataset that need its scores alone."""
    input:
        scores=SCORES,
        code=["rerg/figures.py", "rerg/tables.py", "rerg/scores.py"],
    output:
        [
            report(
                f"{RESULTS}/figures/{{dataset}}/{figure}.png",
                caption=f"../report/figure_{figure}.rst",
                category="Figures",
                labels={"dataset": "{dataset}", "figure": figure},
            )
            for figure in FIGURES
        ],
        expand(
            f"{RESULTS}/figures/{{dataset}}/{{figure}}.pdf",
            figure=FIGURES,
            allow_missing=True,
        ),
    log:
        f"{RESULTS}/logs/draw_scores/{{dataset}}.log",
    conda:
        "../../environment.yml"
    params:
        methods=METHOD_LABELS,
        problems=PROBLEM_LABELS,
        seed=RUN["seed"],
        iterations_of="com90",  # Figure 2 of the paper
    script:
        "../scripts/figures.py"


rule draw_examples:
    """Restorations of one dataset side by side."""
    input:
        images=f"{RESULTS}/images/{{dataset}}.h5",
        observations=expand(
            f"{RESULTS}/observations/{{dataset}}/{{problem}}.npz",
            problem=RUN["examples"],
            allow_missing=True,
        ),
        restorations=[
            f"{RESULTS}/restorations/{{dataset}}/{problem}/{method}.npz"
            for problem in RUN["examples"]
            for method in run.methods_of(problem)
            if method in RUN["methods"]
        ],
        code=["rerg/figures.py", "rerg/tables.py", "rerg/scores.py"],
    output:
        pdf=f"{RESULTS}/figures/{{dataset}}/examples.pdf",
        png=report(
            f"{RESULTS}/figures/{{dataset}}/examples.png",
            caption="../report/figure_examples.rst",
            category="Figures",
            labels={"dataset": "{dataset}", "figure": "examples"},
        ),
    log:
        f"{RESULTS}/logs/draw_examples/{{dataset}}.log",
    conda:
        "../../environment.yml"
    params:
        methods=METHOD_LABELS,
        problems=PROBLEM_LABELS,
    script:
        "../scripts/examples.py"


rule draw_training:
    """Training curves of all variants."""
    input:
        curves=expand(
            f"{RESULTS}/models/{{variant}}.training.csv", variant=run.variants()
        ),
        code=["rerg/figures.py", "rerg/tables.py", "rerg/scores.py"],
    output:
        pdf=f"{RESULTS}/figures/training.pdf",
        png=report(
            f"{RESULTS}/figures/training.png",
            caption="../report/figure_training.rst",
            category="Figures",
            labels={"dataset": "training", "figure": "training"},
        ),
    log:
        f"{RESULTS}/logs/draw_training.log",
    conda:
        "../../environment.yml"
    params:
        methods=METHOD_LABELS,
    script:
        "../scripts/training_curves.py"


rule claims:
    """A verdict on every claim of the paper."""
    input:
        scores=SCORES,
        claims="config/claims.yaml",
        schema="workflow/schemas/claims.schema.yaml",
        code=[
            "rerg/claims.py",
            "rerg/expressions.py",
            "rerg/tables.py",
            "rerg/scores.py",
        ],
    output:
        json=f"{RESULTS}/claims.json",
        md=f"{RESULTS}/claims.md",
        html=report(
            f"{RESULTS}/claims.html",
            caption="../report/claims.rst",
            category="Claims",
            labels={"table": "claims"},
        ),
    log:
        f"{RESULTS}/logs/claims.log",
    conda:
        "../../environment.yml"
    params:
        methods=list(METHODS),
        problems=list(PROBLEMS),
        seed=RUN["seed"],
    script:
        "../scripts/claims.py"
