# The long table of scores: a part per dataset and group of problems, then all of them.
SCORES = "<results>/scores.csv"


rule score:
    """Every restoration of one dataset by a group of problems, and the controls."""
    input:
        images="<results>/images/{dataset}.h5",
        observations="<results>/observations/{dataset}/{batch}",
        restorations=restorations_of,
        lpips="<results>/images/lpips.safetensors",
    output:
        "<results>/scores/{dataset}/{batch}.csv",
    log:
        "<results>/logs/score/{dataset}.{batch}.log",
    conda:
        "../../environment.yml"
    threads: RESTORATION["threads"]
    params:
        run=run.name,
        code=code_of("score.py"),
    script:
        "../scripts/score.py"


# A stored table is taken as it lies: no rule makes it, so nothing before it is computed.
if run.config["stored"]:
    with ending_in_a_line():
        run.check_table(Path(workflow.pathvars.apply(SCORES)))
else:

    localrules:
        collect_scores,

    rule collect_scores:
        """The parts of the table of scores in one."""
        input:
            parts=expand(
                "<results>/scores/{dataset}/{batch}.csv",
                dataset=DATASETS["test"],
                batch=run.batches,
            ),
        output:
            report(
                SCORES,
                caption="../report/scores.rst",
                category="Scores",
                labels={"table": "all scores"},
            ),
        log:
            "<results>/logs/collect_scores.log",
        conda:
            "../../environment.yml"
        params:
            code=code_of("collect_scores.py"),
        script:
            "../scripts/collect_scores.py"
