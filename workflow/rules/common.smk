# What several rules ask: constants of the run, and input functions of jobs.
DATASETS = run.config["datasets"]
RESTORATION = run.config["restoration"]
GPU = int(run.config["device"] == "cuda")
# Only what an artefact shows of a method: another tuning grid must not make the tables stale. Colour
# and line are read off the registry by whoever draws; here they say when to draw anew.
METHODS = {
    name: {
        key: value
        for key, value in run.methods[name].items()
        if key in ("label", "variant", "solver")
    }
    | {
        "color": color_of(name, run.methods),
        "line": line_of_solver(run.methods[name].get("solver")),
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


def specs_with_file(problems):
    """The specs of those problems whose kernel is in a file."""
    return [run.problem_spec(p) for p in problems if run.kernel_sets([p])]


def seed_of(name, seed):
    """A seed of the run for what is trained, `all` for what is not."""
    return seed if str(seed) in run.seeds_of(name) else "all"


def weights_of(wildcards):
    """The model under a method, trained or published, if it has one."""
    variant = run.variant_of(wildcards.method)
    return (
        [f"<results>/models/{wildcards.seed}/{variant}.safetensors"] if variant else []
    )


def tuning_of(wildcards):
    """The tables of trials that a method's restoration reads."""
    return [
        f"<results>/tuning/{wildcards.seed}/{tuned}.csv"
        for tuned in run.tuned(wildcards.method)
    ]


# Specs are handed to jobs in lists: of a parameter of a type of ours Snakemake sees no change.
def spec_of(wildcards):
    """The spec of the model under a method; none of a published one, it is not for us to say."""
    variant = run.variant_of(wildcards.method)
    trained = variant in run.config["variants"]
    return [run.model_spec(variant, int(wildcards.seed))] if trained else []


def settings_of(wildcards):
    """All of a method that a result depends on: another label computes nothing anew."""
    settings = run.methods[wildcards.method]
    return {k: v for k, v in settings.items() if k not in ("label", "citation")}


def problems_of(wildcards):
    """The problems that a job restores."""
    return run.problems_in(wildcards.method, wildcards.batch)


def observations_of(wildcards):
    """The folder of a problem's observations, which a group of problems shares."""
    batch = run.batch_of(wildcards.problem)
    return f"<results>/observations/{wildcards.dataset}/{batch}"


# Images
def entry_of(wildcards):
    return run.datasets[wildcards.dataset]


def manifest_of(wildcards):
    manifest = entry_of(wildcards).get("manifest")
    return [ROOT / manifest] if manifest else []


def smallest_of(wildcards):
    """Pixels that an image's side must have."""
    trained = wildcards.dataset in DATASETS["train"]
    return run.config["training"]["crop"] if trained else smallest(run)


# Observations
def kernels_of_batch(wildcards):
    return kernels_of(run.batches[wildcards.batch])


def specs_of_batch(wildcards):
    return [run.problem_spec(problem) for problem in run.batches[wildcards.batch]]


# Models
def entry_of_weights(wildcards):
    return run.weights[wildcards.published]


def start_of(wildcards):
    start = run.config["variants"][wildcards.variant].get("start")
    return [f"<results>/models/{wildcards.seed}/{start}.safetensors"] if start else []


def spec_of_variant(wildcards):
    return [run.model_spec(wildcards.variant, int(wildcards.seed))]


def threads_of_variant(wildcards):
    return run.config["variants"][wildcards.variant]["threads"]


def code_of_training(wildcards):
    return code_of("train.py", f"variants.{wildcards.variant}", "solvers.fast")(
        wildcards
    )


# Tuning
def kernels_of_tuned(wildcards):
    return kernels_of(run.tuned_problems(wildcards.method))


def specs_of_tuned(wildcards):
    return [
        run.problem_spec(problem) for problem in run.tuned_problems(wildcards.method)
    ]


def trials_of_sigma(wildcards):
    """The trials of the variant's σ, which those of a solver's option take."""
    return [
        path for path in tuning_of(wildcards) if Path(path).stem != wildcards.method
    ]


def options_of_tuned(wildcards):
    """Problem to the options of the solver in its trials; a baseline has none."""
    if "variant" not in run.methods[wildcards.method]:
        return {}
    problems = run.tuned_problems(wildcards.method)
    return {p: run.tuning_options(wildcards.method, p) for p in problems}


def code_of_tuning(wildcards):
    method = run.methods[wildcards.method]
    modules = (
        [f"variants.{method['variant']}", f"solvers.{method['solver']}"]
        if "variant" in method
        else []
    )
    return code_of("tune.py", *modules)(wildcards)


def trials_of_all(wildcards):
    return [
        f"<results>/tuning/{seed_of(name, run.seeds[0])}/{name}.csv" for name in TUNED
    ]


# Restorations
def restored_by(kind):
    """The run's methods of a kind (`variant`, `.py`, `reconstructor`, `.smk`), for a wildcard."""
    methods = [
        name
        for name in run.all_methods()
        if run.methods[name].get("baseline", "variant") == kind
    ]
    return "|".join(methods) or "none"


def options_of(wildcards):
    """Problem to the options of the solver."""
    return {p: run.options(wildcards.method, p) for p in problems_of(wildcards)}


def code_of_restoration(wildcards):
    method = run.methods[wildcards.method]
    modules = f"variants.{method['variant']}", f"solvers.{method['solver']}"
    return code_of("restore.py", *modules)(wildcards)


# Baselines
def baseline_of(wildcards):
    """The baseline's own file; a reconstructor has none, nor has a variant."""
    name = wildcards.method
    by_file = run.methods[name].get("baseline") == ".py"
    return [run.baselines[name] / f"{name}.py"] if by_file else []


# Scores
def restorations_of(wildcards):
    """All restorations of a group of problems: folders, or files where a rule of its own writes."""
    batch, paths = wildcards.batch, []
    for method in run.all_methods():
        problems = run.problems_in(method, batch)
        if run.methods[method].get("baseline") == ".smk":
            paths += expand(
                "<results>/restorations/{dataset}/{problem}/{method}.npz",
                dataset=wildcards.dataset,
                problem=problems,
                method=method,
            )
        elif problems:
            paths += expand(
                "<results>/restorations/{dataset}/{method}/{seed}/{batch}",
                dataset=wildcards.dataset,
                method=method,
                seed=run.seeds_of(method),
                batch=batch,
            )
    return paths


# Artefacts
def provenance_of(wildcards):
    """What the run says of its table; of a stored one, if it came along."""
    path = Path(workflow.pathvars.apply(PROVENANCE))
    return [] if run.config["stored"] and not path.exists() else PROVENANCE


def restorations_of_examples(wildcards):
    """By the methods that restore all problems, with the first seed."""
    drawn = [
        m for m in run.config["methods"] if run.methods[m].get("baseline") != ".smk"
    ]
    return [
        f"<results>/restorations/{wildcards.dataset}/{method}/{run.seeds_of(method)[0]}/{batch}"
        for batch in EXAMPLES
        for method in drawn
        if run.problems_in(method, batch)
    ]
