# Tables, figures and claims, from the table of scores; two figures need more than it.
TABLES = ["psnr", "ssim", "lpips", "regret", "solvers"]
FIGURES = ["iterations", "regret", "bound", "evaluations"]
# Of every test set, and of all pooled where there are several: what the claims are judged on.
SCORED = DATASETS["test"] + (["all"] if len(DATASETS["test"]) > 1 else [])
ARTEFACTS = [
    *expand(
        "<results>/tables/{dataset}/{table}.{suffix}",
        dataset=SCORED,
        table=TABLES,
        suffix=["csv", "md", "tex", "html"],
    ),
    *expand(
        "<results>/figures/{dataset}/{figure}.{suffix}",
        dataset=DATASETS["test"],
        figure=FIGURES,
        suffix=["pdf", "png"],
    ),
    *expand("<results>/claims.{suffix}", suffix=["json", "md", "html"]),
]
# What needs more than the table of scores.
FROM_THE_RUN = [
    *expand(
        "<results>/figures/{dataset}/examples.{suffix}",
        dataset=DATASETS["test"] if run.config["examples"] else [],
        suffix=["pdf", "png"],
    ),
    *expand("<results>/figures/training.{suffix}", suffix=["pdf", "png"]),
    *expand("<results>/tables/trainings.{suffix}", suffix=["csv", "md", "tex", "html"]),
    *expand(
        "<results>/figures/tuning.{suffix}", suffix=["pdf", "png"] if TUNED else []
    ),
]
ARTEFACTS += [] if run.config["stored"] else FROM_THE_RUN
PROVENANCE = "<results>/provenance.json"


# What the table of scores must hold.
EXPECTED = {
    "datasets": DATASETS["test"],
    "images": run.images,
    "seeds": run.seeds,
    "methods": {
        name: {
            "problems": run.problems_of(name),
            "seeded": "all" not in run.seeds_of(name),
        }
        for name in run.all_methods()
    },
}


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
        provenance=provenance_of,
    output:
        [
            report(
                expand(
                    "<results>/tables/{dataset}/{table}.html",
                    table=table,
                    allow_missing=True,
                ),
                caption=f"../report/{table}.rst",
                category="Tables",
                labels={"dataset": "{dataset}", "table": table},
            )
            for table in TABLES
        ],
        expand(
            "<results>/tables/{dataset}/{table}.{suffix}",
            table=TABLES,
            suffix=["csv", "md", "tex"],
            allow_missing=True,
        ),
    log:
        "<results>/logs/tables/{dataset}.log",
    wildcard_constraints:
        dataset="|".join(SCORED),
    conda:
        "../../environment.yml"
    params:
        methods=METHODS,
        problems=PROBLEMS,
        expected=EXPECTED,
        code=code_of("tables.py"),
    script:
        "../scripts/tables.py"


rule draw_scores:
    """The figures of one dataset that need its scores alone."""
    input:
        scores=SCORES,
        provenance=provenance_of,
    output:
        [
            report(
                expand(
                    "<results>/figures/{dataset}/{figure}.png",
                    figure=figure,
                    allow_missing=True,
                ),
                caption=f"../report/figure_{figure}.rst",
                category="Figures",
                labels={"dataset": "{dataset}", "figure": figure},
            )
            for figure in FIGURES
        ],
        expand(
            "<results>/figures/{dataset}/{figure}.pdf",
            figure=FIGURES,
            allow_missing=True,
        ),
    log:
        "<results>/logs/draw_scores/{dataset}.log",
    conda:
        "../../environment.yml"
    params:
        methods=METHODS,
        problems=PROBLEMS,
        expected=EXPECTED,
        iterations_of="com90",  # Figure 2 of the paper
        code=code_of("figures.py"),
    script:
        "../scripts/figures.py"


EXAMPLES = {run.batch_of(problem): None for problem in run.config["examples"]}


rule draw_examples:
    """Restorations of one dataset side by side."""
    input:
        images="<results>/images/{dataset}.h5",
        observations=expand(
            "<results>/observations/{dataset}/{batch}",
            batch=EXAMPLES,
            allow_missing=True,
        ),
        restorations=restorations_of_examples,
    output:
        pdf="<results>/figures/{dataset}/examples.pdf",
        png=report(
            "<results>/figures/{dataset}/examples.png",
            caption="../report/figure_examples.rst",
            category="Figures",
            labels={"dataset": "{dataset}", "figure": "examples"},
        ),
    log:
        "<results>/logs/draw_examples/{dataset}.log",
    conda:
        "../../environment.yml"
    params:
        examples=run.config["examples"],
        methods=METHODS,
        problems=PROBLEMS,
        code=code_of("examples.py"),
    script:
        "../scripts/examples.py"


rule draw_training:
    """Training curves of all variants."""
    input:
        curves=expand(
            "<results>/models/{seed}/{variant}.training.csv",
            seed=run.seeds,
            variant=run.variants(),
        ),
        models=expand(
            "<results>/models/{seed}/{variant}.json",
            seed=run.seeds,
            variant=run.variants(),
        ),
    output:
        pdf="<results>/figures/training.pdf",
        png=report(
            "<results>/figures/training.png",
            caption="../report/figure_training.rst",
            category="Figures",
            labels={"dataset": "training", "figure": "training"},
        ),
        table=report(
            "<results>/tables/trainings.html",
            caption="../report/trainings.rst",
            category="Tables",
            labels={"dataset": "training", "table": "trainings"},
        ),
        tables=multiext("<results>/tables/trainings", ".csv", ".md", ".tex"),
    log:
        "<results>/logs/draw_training.log",
    conda:
        "../../environment.yml"
    params:
        methods=METHODS,
        code=code_of("training_curves.py"),
    script:
        "../scripts/training_curves.py"


rule claims:
    """A verdict on every claim of the paper."""
    input:
        scores=SCORES,
        provenance=provenance_of,
        claims=ROOT / "config/claims.yaml",
        schema=ROOT / "workflow/schemas/claims.schema.yaml",
    output:
        json="<results>/claims.json",
        md="<results>/claims.md",
        html=report(
            "<results>/claims.html",
            caption="../report/claims.rst",
            category="Claims",
            labels={"table": "claims"},
        ),
    log:
        "<results>/logs/claims.log",
    conda:
        "../../environment.yml"
    params:
        known_methods=list(run.methods),
        known_problems=list(run.problems),
        methods=METHODS,
        problems=PROBLEMS,
        expected=EXPECTED,
        code=code_of("claims.py"),
    script:
        "../scripts/claims.py"
