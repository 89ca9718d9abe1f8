# Observations: one file per dataset and problem, the same for every method.
for problems in batched(RUN["problems"]):

    rule:
        name:
            f"observe_{problems[0]}"
        input:
            images=f"{RESULTS}/images/{{dataset}}.h5",
            kernels=list(kernel_files(problems).values()),
            code=["rerg/problems.py"],
        output:
            expand(
                f"{RESULTS}/observations/{{{{dataset}}}}/{{problem}}.npz",
                problem=problems,
            ),
        log:
            f"{RESULTS}/logs/observe/{{dataset}}.{problems[0]}.log",
        conda:
            "../../environment.yml"
        params:
            problems={problem: run.physics_of(problem) for problem in problems},
            kernels=kernel_files(problems),
        script:
            "../scripts/observe.py"
