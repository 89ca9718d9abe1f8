# What several rules ask: constants of the run, and input functions of jobs.
DATASETS = run.config["datasets"]
RESTORATION = run.config["restoration"]
GPU = int(run.config["device"] == "cuda")
# Only what an artefact shows of a method: another tuning grid must not make the tables stale.
METHODS = {
    name: {
        key: value
        for key, value in run.methods[name].items()
        if key in ("label", "variant", "solver")
    }
    for name in run.all_methods()
}
PROBLEMS = {
    name: {key: run.problems[name][key] for key in ("label", "short", "trained")}
    for name in run.config["problems"]
}


def code_of(script, *modules):
    """The digest of what a script and all that it imports mean, read when a job is planned."""

    def digest(wildcards):
        return code_digest(ROOT / "workflow/scripts" / script, *modules)

    return digest


def images_of(split):
    return expand("<results>/images/{dataset}.h5", dataset=DATASETS[split])


def kernels_of(problems):
    return expand("<results>/images/{kernels}.npz", kernels=run.kernel_sets(problems))


def seed_of(name, seed):
    """A seed of the run for what is trained, `all` for what is not."""
    return seed if run.variant_of(name) else "all"


def weights_of(wildcards):
    """The model under a method, if it has one."""
    variant = run.variant_of(wildcards.method)
    return (
        [f"<results>/models/{wildcards.seed}/{variant}.safetensors"] if variant else []
    )


def tuning_of(wildcards):
    """The table of trials that a method's restoration reads, if it is tuned."""
    tuned = run.tuned(wildcards.method)
    return [f"<results>/tuning/{wildcards.seed}/{tuned}.csv"] if tuned else []


def spec_of(wildcards):
    """The spec of the model under a method."""
    variant = run.variant_of(wildcards.method)
    return run.model_spec(variant, int(wildcards.seed)) if variant else None


def settings_of(wildcards):
    return run.methods[wildcards.method]


def problems_of(wildcards):
    """The problems that a job restores."""
    return run.problems_in(wildcards.method, wildcards.batch)


def observations_of(wildcards):
    """The folder of a problem's observations, which a group of problems shares."""
    batch = run.batch_of(wildcards.problem)
    return f"<results>/observations/{wildcards.dataset}/{batch}"
