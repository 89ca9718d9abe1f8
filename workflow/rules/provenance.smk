# Where the run comes from: config, commit, versions, machine, digests, wall times.
PROVENANCE = [] if STORED else [f"{RESULTS}/provenance.json"]


localrules:
    provenance,


rule provenance:
    """Config, commit, versions, machine, seeds, digests of data and weights, wall times."""
    input:
        scores=SCORES,
        models=expand(f"{RESULTS}/models/{{variant}}.json", variant=run.variants()),
        code="rerg/provenance.py",
    output:
        report(
            f"{RESULTS}/provenance.json",
            caption="../report/provenance.rst",
            category="Provenance",
            labels={"file": "provenance"},
        ),
    log:
        f"{RESULTS}/logs/provenance.log",
    conda:
        "../../environment.yml"
    params:
        config=RUN,
        registries={"problems": PROBLEMS, "methods": METHODS, "datasets": DATASETS},
    script:
        "../scripts/provenance.py"
