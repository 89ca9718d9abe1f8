# The long table of scores: one part per dataset and problem, then all of them. As for the
# restorations, a job takes a group of problems, but half as many: a laptop's cores have nothing
# else to do by then.
SCORES = f"{RESULTS}/scores.csv"
# A stored table stands alone: where it lies without its parts, nothing that comes before it is
# computed for the tables, figures and claims.
STORED = Path(SCORES).exists() and not Path(RESULTS, "scores").exists()


for problems in batched(RUN["problems"], (RUN["problems_per_job"] + 1) // 2):

    rule:
        name:
            f"score_{problems[0]}"
        input:
            images=f"{RESULTS}/images/{{dataset}}.h5",
            observations=expand(
                f"{RESULTS}/observations/{{dataset}}/{{problem}}.npz",
                problem=problems,
                allow_missing=True,
            ),
            restorations=[
                f"{RESULTS}/restorations/{{dataset}}/{problem}/{method}.npz"
                for problem in problems
                for method in run.methods_of(problem)
            ],
            lpips=f"{RESULTS}/images/lpips.safetensors",
            code=["rerg/scores.py", "rerg/perceptual.py"],
        output:
            expand(
                f"{RESULTS}/scores/{{dataset}}/{{problem}}.csv",
                problem=problems,
                allow_missing=True,
            ),
        log:
            f"{RESULTS}/logs/score/{{dataset}}.{problems[0]}.log",
        conda:
            "../../environment.yml"
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
        conda:
            "../../environment.yml"
        script:
            "../scripts/collect_scores.py"
