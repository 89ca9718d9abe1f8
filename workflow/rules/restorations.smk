# Restorations by variants: a job loads a network once and restores a group of problems. A rule per
# method knows all but the dataset and the problem, so that Snakemake has few rules to try for a
# file and no function to call for a job.
for method in run.all_methods():
    if "variant" not in METHODS[method]:
        continue
    for problems in shared(run.problems_of(method)):

        rule:
            name:
                rule_name("restore", method, problems)
            input:
                observations=expand(
                    f"{RESULTS}/observations/{{{{dataset}}}}/{{problem}}.npz",
                    problem=problems,
                ),
                weights=weights_of(METHODS[method]["variant"]),
                tuning=tuning_of(method),
                images=f"{RESULTS}/images/{{dataset}}.h5",
                code=[
                    "rerg/restoration.py",
                    "rerg/variants/__init__.py",
                    "rerg/networks.py",
                    "rerg/equilibrium.py",
                    "rerg/bound.py",
                    "rerg/problems.py",
                ],
            output:
                expand(
                    f"{RESULTS}/restorations/{{{{dataset}}}}/{{problem}}/{method}.npz",
                    problem=problems,
                ),
            log:
                f"{RESULTS}/logs/restore/{{dataset}}.{method}.{problems[0]}.log",
            benchmark:
                f"{RESULTS}/benchmarks/restore.{{dataset}}.{method}.{problems[0]}.tsv"
            wildcard_constraints:
                problem="|".join(run.problems_of(method)),
            priority: len(problems)  # long jobs first: short ones fill the end
            conda:
                "../../environment.yml"
            threads: RUN["restoration"]["threads"]
            resources:
                gpu=GPU,
                mem_mb=4000,
                runtime=RUN["restoration"]["runtime"],
            params:
                method=METHODS[method],
                spec=spec_of(METHODS[method]["variant"]),
                options=RUN["solvers"][METHODS[method]["solver"]],
                learning_rates={
                    p: {"learning_rate": PROBLEMS[p]["learning_rate"]}
                    for p in run.problems_of(method)
                    if "learning_rate" in PROBLEMS[p]
                },
                batch=RUN["restoration"]["batch"],
                bound_iterates=RUN["restoration"]["bound_iterates"],
                device=RUN["device"],
                compile=RUN["restoration"]["compile"],
                partial=f"{RESULTS}/checkpoints/{{dataset}}.{method}.{problems[0]}",
            script:
                "../scripts/restore.py"
