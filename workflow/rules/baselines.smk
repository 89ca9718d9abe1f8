# Restorations by baselines: a rule of their own, or the one for Python functions and deepinv.
# With this before its program, a baseline's own rule cannot stop the scores of the others.
GUARD = f"{sys.executable} -m rerg.guard"

for name in run.all_methods():
    if METHODS[name].get("baseline") == ".smk":

        include: (run.baselines[name] / f"{name}.smk").resolve()


def denoiser_weights(wildcards):
    variant = run.denoiser_of(wildcards.method)
    return [f"{RESULTS}/models/{variant}.safetensors"] if variant else []


def denoiser_spec(wildcards):
    variant = run.denoiser_of(wildcards.method)
    return training_spec(variant) if variant else None


def baseline_code(wildcards):
    """The baseline's own file; a reconstructor has none."""
    if METHODS[wildcards.method]["baseline"] != ".py":
        return []
    return run.baselines[wildcards.method] / f"{wildcards.method}.py"


FUNCTIONS = [
    m for m in run.all_methods() if METHODS[m].get("baseline") in (".py", "reconstructor")
]

for group, problems_of_group in enumerate(
    dict.fromkeys(tuple(run.problems_of(m)) for m in FUNCTIONS)
):
    methods_of_group = [
        m for m in FUNCTIONS if tuple(run.problems_of(m)) == problems_of_group
    ]
    for problems in batched(problems_of_group):

        rule:
            name:
                f"baseline_{group}_{problems[0]}"
            input:
                observations=expand(
                    f"{RESULTS}/observations/{{{{dataset}}}}/{{problem}}.npz",
                    problem=problems,
                ),
                weights=denoiser_weights,
                baseline=baseline_code,
                code=["rerg/baselines.py", "rerg/networks.py", "rerg/problems.py"],
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
            threads: RUN["restoration"]["threads"]
            resources:
                gpu=GPU,
                mem_mb=4000,
                runtime=RUN["restoration"]["runtime"],
            params:
                settings=lambda w: METHODS[w.method],
                folder=lambda w: str(run.baselines.get(w.method, "")),
                spec=denoiser_spec,
                batch=RUN["restoration"]["batch"],
                device=RUN["device"],
            script:
                "../scripts/baseline.py"
