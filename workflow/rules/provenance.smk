# Where the run comes from: config, commit, versions, machine, digests, wall times.
if not run.config["stored"]:

    localrules:
        provenance,

    rule provenance:
        """Config, commit, versions, machine, seeds, digests of data and weights, wall times."""
        input:
            scores=SCORES,
            models=expand(
                "<results>/models/{seed}/{variant}.json",
                seed=run.seeds,
                variant=run.variants(),
            ),
            published=expand(
                "<results>/models/all/{published}.json", published=run.published()
            ),
        output:
            report(
                PROVENANCE,
                caption="../report/provenance.rst",
                category="Provenance",
                labels={"file": "provenance"},
            ),
        log:
            "<results>/logs/provenance.log",
        conda:
            "../../environment.yml"
        params:
            config=run.config,
            registries={
                "problems": run.problems,
                "methods": run.methods,
                "datasets": run.datasets,
                "weights": run.weights,
            },
            code=code_of("provenance.py"),
        script:
            "../scripts/provenance.py"
