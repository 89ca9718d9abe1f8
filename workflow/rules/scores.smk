# The long table of scores: one part per dataset and problem, then all of them.
SCORES = f"{RESULTS}/scores.csv"
# A stored table stands alone: where it lies without its parts, nothing that comes before it is
# computed for the tables, figures and claims.
STORED = Path(SCORES).exists() and not Path(RESULTS, "scores").exists()


rule score:
    """Metrics of all restorations of one problem on one dataset, and of the controls."""
    input:
        images=f"{RESULTS}/images/{{dataset}}.h5",
        observations=f"{RESULTS}/observations/{{dataset}}/{{problem}}.npz",
        restorations=lambda w: expand(
            f"{RESULTS}/restorations/{{dataset}}/{{problem}}/{{method}}.npz",
            method=run.methods_of(w.problem),
            allow_missing=True,
        ),
        lpips=f"{RESULTS}/images/lpips.safetensors",
        code=["rerg/scores.py", "rerg/perceptual.py"],
    output:
        f"{RESULTS}/scores/{{dataset}}/{{problem}}.csv",
    log:
        f"{RESULTS}/logs/score/{{dataset}}/{{problem}}.log",
    params:
        run=RUN["run"],
        seed=RUN["seed"],
    script:
        "../scripts/score.py"


if not STORED:

    localrules:
        collect_scores,

    rule collect_scores:
        """The parts of the table of scores in one."""
        input:
            parts=expand(
                f"{RESULTS}/scores/{{dataset}}/{{problem}}.csv",
                dataset=TEST,
                problem=RUN["problems"],
            ),
        output:
            report(
                SCORES,
                caption="../report/scores.rst",
                category="Scores",
                labels={"table": "all scores"},
            ),
        log:
            f"{RESULTS}/logs/collect_scores.log",
        script:
            "../scripts/collect_scores.py"
