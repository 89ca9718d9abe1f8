# What the rules ask of the run: groups of problems, files, specs.
def batched(problems, n=RUN["problems_per_job"]):
    """Groups of n problems that share a job."""
    return [list(problems)[i : i + n] for i in range(0, len(problems), n)]


def shared(problems):
    """As `batched`; where each problem has a job of its own, one rule with a wildcard for all."""
    return batched(problems) if RUN["problems_per_job"] > 1 else [["{problem}"]]


def rule_name(stage, method, problems):
    """The name of the rule of a method, and of its group of problems if it has several."""
    return "_".join([stage, method, *(p for p in problems[:1] if p != "{problem}")])


def kernel_files(problems):
    """Prepared kernel files that these problems need, by the name of their registry entry."""
    kernels = [PROBLEMS[problem].get("kernel", {}) for problem in problems]
    return {
        k["file"]: f"{RESULTS}/images/{k['file']}.npz" for k in kernels if "file" in k
    }


def training_spec(variant):
    """All that a model depends on, with the images and the code."""
    return {
        "variant": variant,
        "settings": {
            k: v for k, v in RUN["variants"][variant].items() if k != "threads"
        },
        "network": RUN["network"],
        "training": {
            k: RUN["training"][k] for k in ("crop", "batch", "clip", "precision")
        },
        "equilibrium": RUN["equilibrium"],
        "problems": TRAINED,
        "seed": RUN["seed"],
    }


def warm_start(wildcards):
    start = RUN["variants"][wildcards.variant].get("start")
    return [f"{RESULTS}/models/{start}.safetensors"] if start else []


def tuning_of(method):
    """The table of trials that a method's restoration reads, if it is tuned."""
    variant = METHODS[method].get("variant")
    tuned = TUNING and (variant or METHODS[method].get("tune"))
    return [f"{RESULTS}/tuning/{variant or method}.csv"] if tuned else []


def tuned_methods(name):
    """The methods of the run that read the table of this name."""
    return [m for m in run.all_methods() if name in (m, METHODS[m].get("variant"))]


def tuned_problems(name):
    restored = {p for method in tuned_methods(name) for p in run.problems_of(method)}
    return [p for p in RUN["problems"] if p in restored]


def weights_of(name):
    """The network under a variant or a baseline, if it has one."""
    variant = name if name in RUN["variants"] else run.denoiser_of(name)
    return [f"{RESULTS}/models/{variant}.safetensors"] if variant else []


def spec_of(name):
    variant = name if name in RUN["variants"] else run.denoiser_of(name)
    return training_spec(variant) if variant else None


def baseline_code(name):
    """The baseline's own file; a reconstructor has none."""
    by_file = METHODS[name]["baseline"] == ".py"
    return [run.baselines[name] / f"{name}.py"] if by_file else []
