# Restorations by variants: a job loads a network once and restores a group of problems.
VARIANT_METHODS = [m for m in run.all_methods() if "variant" in METHODS[m]]

for group, problems_of_group in enumerate(
    dict.fromkeys(tuple(run.problems_of(m)) for m in VARIANT_METHODS)
):
    methods_of_group = [
        m for m in VARIANT_METHODS if tuple(run.problems_of(m)) == problems_of_group
    ]
    for problems in shared(problems_of_group):

        rule:
            name:
                f"restore_{group}_{problems[0].strip('{}')}"
            input:
                observations=expand(
                    f"{RESULTS}/observations/{{{{dataset}}}}/{{problem}}.npz",
                    problem=problems,
                ),
                weights=model_of,
                tuning=lambda w: tuning_of(w.method),
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
                    f"{RESULTS}/restorations/{{{{dataset}}}}/{{problem}}/{{{{method}}}}.npz",
                    problem=problems,
                ),
            log:
                f"{RESULTS}/logs/restore/{{dataset}}.{{method}}.{problems[0]}.log",
            benchmark:
                f"{RESULTS}/benchmarks/restore.{{dataset}}.{{method}}.{problems[0]}.tsv"
            wildcard_constraints:
                method="|".join(methods_of_group),
                problem="|".join(problems_of_group),
            priority: len(problems)  # long jobs first: short ones fill the end
            conda:
                "../../environment.yml"
            threads: RUN["restoration"]["threads"]
            resources:
                gpu=GPU,
                mem_mb=4000,
                runtime=RUN["restoration"]["runtime"],
            params:
                method=lambda w: METHODS[w.method],
                spec=lambda w: training_spec(METHODS[w.method]["variant"]),
                options=lambda w: RUN["solvers"][METHODS[w.method]["solver"]],
                learning_rates={
                    p: {"learning_rate": PROBLEMS[p]["learning_rate"]}
                    for p in problems_of_group
                    if "learning_rate" in PROBLEMS[p]
                },
                batch=RUN["restoration"]["batch"],
                bound_iterates=RUN["restoration"]["bound_iterates"],
                device=RUN["device"],
                partial=f"{RESULTS}/checkpoints/{{dataset}}.{{method}}.{problems[0]}",
            script:
                "../scripts/restore.py"
