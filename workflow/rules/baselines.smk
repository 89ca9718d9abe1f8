# Restorations by baselines: a rule of their own, or the one for Python functions and deepinv.
# With this before its program, a baseline's own rule cannot stop the scores of the others.
GUARD = f"{sys.executable} -m rerg.guard"

for name in run.all_methods():
    if METHODS[name].get("baseline") == ".smk":

        include: (run.baselines[name] / f"{name}.smk").resolve()


FUNCTIONS = [
    m
    for m in run.all_methods()
    if METHODS[m].get("baseline") in (".py", "reconstructor")
]

for group, problems_of_group in enumerate(
    dict.fromkeys(tuple(run.problems_of(m)) for m in FUNCTIONS)
):
    methods_of_group = [
        m for m in FUNCTIONS if tuple(run.problems_of(m)) == problems_of_group
    ]
    for problems in shared(problems_of_group):

        rule:
            name:
                f"baseline_{group}_{problems[0].strip('{}')}"
            input:
                observations=expand(
                    f"{RESULTS}/observations/{{{{dataset}}}}/{{problem}}.npz",
                    problem=problems,
                ),
                weights=lambda w: weights_of(w.method),
                tuning=lambda w: tuning_of(w.method),
                baseline=lambda w: baseline_code(w.method),
                code=[
                    "rerg/baselines.py",
                    "rerg/tuning.py",
                    "rerg/networks.py",
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
            conda:
                "../../environment.yml"
            threads: RUN["restoration"]["threads"]
            resources:
                gpu=GPU,
                mem_mb=4000,
                runtime=RUN["restoration"]["runtime"],
            params:
                settings=lambda w: METHODS[w.method],
                folder=lambda w: str(run.baselines.get(w.method, "")),
                spec=lambda w: spec_of(w.method),
                batch=RUN["restoration"]["batch"],
                device=RUN["device"],
            script:
                "../scripts/baseline.py"
