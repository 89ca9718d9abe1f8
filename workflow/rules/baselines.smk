# Restorations by baselines: a rule of their own, or the one for Python functions and deepinv.
# With this before its program, a baseline's own rule cannot stop the scores of the others.
GUARD = f"{sys.executable} -m rerg.guard"

for name in run.all_methods():
    if METHODS[name].get("baseline") == ".smk":

        include: (run.baselines[name] / f"{name}.smk").resolve()


for method in run.all_methods():
    if METHODS[method].get("baseline") not in (".py", "reconstructor"):
        continue
    for problems in shared(run.problems_of(method)):

        rule:
            name:
                rule_name("baseline", method, problems)
            input:
                observations=expand(
                    f"{RESULTS}/observations/{{{{dataset}}}}/{{problem}}.npz",
                    problem=problems,
                ),
                weights=weights_of(method),
                tuning=tuning_of(method),
                baseline=baseline_code(method),
                code=[
                    "rerg/baselines.py",
                    "rerg/tuning.py",
                    "rerg/networks.py",
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
            priority: len(problems)  # as those by variants
            conda:
                "../../environment.yml"
            threads: RUN["restoration"]["threads"]
            resources:
                gpu=GPU,
                mem_mb=4000,
                runtime=RUN["restoration"]["runtime"],
            params:
                name=method,
                settings=METHODS[method],
                spec=spec_of(method),
                batch=RUN["restoration"]["batch"],
                device=RUN["device"],
            script:
                "../scripts/baseline.py"
