"""Names, order, colours and lines of methods and problems, for tables, figures and claims alike.

``methods`` maps the name of a method to its entry, in the order of the config: `label`, and for a
variant with a solver `variant` and `solver`. ``problems`` maps a problem to its `label`, `short`
and `trained`. What an entry lacks, or whose name is unknown, is called by its name.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from rerg.registry import solvers, variants

INITIAL, TRUTH = CONTROLS = ("initial", "truth")
CONTROL_LABELS = {INITIAL: "initial image", TRUTH: "ground truth"}
OTHER = "#555555"  # the colour of baselines and controls
OTHER_LINE = ("-.", "D")  # line and marker of what has no solver of the registry


def in_order(present: Iterable[str], order: Sequence[str]) -> list[str]:
    """The names that are present, in the given order; names that the order lacks come last."""
    names = set(present)
    known = [name for name in order if name in names]
    return known + sorted(names - set(known))


def labels_of(methods: Mapping[str, Mapping]) -> dict[str, str]:
    """Method to label, the controls included: the initial image first, the ground truth last."""
    labels = {name: entry["label"] for name, entry in methods.items()}
    return {INITIAL: CONTROL_LABELS[INITIAL], **labels, TRUTH: CONTROL_LABELS[TRUTH]}


def short_names(problems: Mapping[str, Mapping]) -> dict[str, str]:
    """Problem to the name on axes and in tables; a star marks a problem held out of training."""
    return {
        name: entry["short"] + ("" if entry["trained"] else " *")
        for name, entry in problems.items()
    }


def variant_label(name: str) -> str:
    """The label of a variant, whatever the solver."""
    return variants()[name].label if name in variants() else name


def solver_label(name: str) -> str:
    """The label of a solver."""
    return solvers()[name].label if name in solvers() else name


def color_of_variant(name: str) -> str:
    """The colour of a variant; grey for everything else."""
    return variants()[name].color if name in variants() else OTHER


def color_of(method: str, methods: Mapping[str, Mapping]) -> str:
    """A method has its variant's colour, whatever the solver."""
    return color_of_variant(methods.get(method, {}).get("variant", ""))


def descends(name: str) -> bool:
    """Whether a solver is a descent."""
    return name in solvers() and solvers()[name].descent


def line_of_solver(name: str) -> tuple[str, str]:
    """Line and marker of a solver."""
    return (solvers()[name].line, solvers()[name].marker) if name in solvers() else OTHER_LINE


def procedures(present: Collection[str], methods: Mapping[str, Mapping]) -> dict[str, list[str]]:
    """Solver to the RGs that were run with it, in the order of ``methods``; two at least.

    The RGs are the variants that the registry says to be regularizing gradients. RED, their warm
    start, and MTDEQ, a denoiser in PnP-ADMM, are none.
    """
    found: dict[str, list[str]] = {}
    for name, entry in methods.items():
        variant = variants().get(entry.get("variant", ""))
        if name in present and variant is not None and variant.regularizing_gradient:
            found.setdefault(entry["solver"], []).append(name)
    return {solver: names for solver, names in found.items() if len(names) > 1}
