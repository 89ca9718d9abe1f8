"""The small language in which claims are written: one comparison of arithmetic on quantities.

Like `rerg.config` it is read before anything is computed, so it imports nothing heavy.
"""

import ast
import operator
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rerg.config import InputError, check, read_yaml

# The quantities and what they take. rerg.claims computes them.
QUANTITIES = {
    "psnr": ("method", "problem"),
    "mean_psnr": ("method",),
    "regret": ("method", "problem"),
    "worst_regret": ("method",),
    "mean_regret": ("method",),
    "evaluations": ("method",),
    "gap": ("method", "method"),
    "violations": ("method",),
}
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Quantity(NamedTuple):
    """A quantity of the scores, as `worst_regret(rerg)`."""

    name: str
    arguments: tuple[str, ...]


class Operation(NamedTuple):
    """A function of operands: arithmetic, or "min" and "max"."""

    function: Callable | str
    operands: tuple


class Comparison(NamedTuple):
    """left sign right, with sign one of <, <=, >, >=."""

    left: Any
    sign: str
    right: Any


def parse(expression: str, methods: Collection[str], problems: Collection[str]) -> Comparison:
    """Parse an expression whose methods and problems must be among the known ones.

    Raises InputError with what is wrong in it.
    """
    try:
        expression = expression.strip()
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise InputError(f"not an expression: {error.msg} at column {error.offset}") from None
    if (
        not isinstance(tree, ast.Compare)
        or len(tree.ops) != 1
        or type(tree.ops[0]) not in COMPARISONS
    ):
        raise InputError(f"expected one comparison by {', '.join(COMPARISONS.values())}")
    known = {"method": methods, "problem": problems}

    def operand(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return float(number)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return Operation(operator.neg, (operand(inner),))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return Operation(ARITHMETIC[type(op)], (operand(left), operand(right)))
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=args, keywords=[]) if args:
                return Operation(name, tuple(operand(arg) for arg in args))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return quantity(name, args)
        raise InputError(f"not allowed: {ast.unparse(node)}")

    def quantity(name: str, args: list[ast.expr]) -> Quantity:
        if name not in QUANTITIES:
            raise InputError(f"unknown quantity {name}; known: {', '.join(QUANTITIES)}")
        kinds = QUANTITIES[name]
        if len(args) != len(kinds):
            raise InputError(f"{name} takes {', '.join(kinds)}; got {len(args)} arguments")
        names = []
        for kind, arg in zip(kinds, args, strict=True):
            # A name such as rerg-gd reads as a subtraction, 1e3 as a number: its text is meant.
            text = ast.get_source_segment(expression, arg)
            if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
                text = arg.value
            if text not in known[kind]:
                raise InputError(f"unknown {kind} {text}; known: {', '.join(known[kind])}")
            names.append(text)
        return Quantity(name, tuple(names))

    return Comparison(
        operand(tree.left), COMPARISONS[type(tree.ops[0])], operand(tree.comparators[0])
    )


def quantities(tree: Any) -> Iterator[Quantity]:
    """All quantities of a parsed expression."""
    if isinstance(tree, Quantity):
        yield tree
    elif isinstance(tree, Operation):
        for operand in tree.operands:
            yield from quantities(operand)
    elif isinstance(tree, Comparison):
        yield from quantities(tree.left)
        yield from quantities(tree.right)


def read_claims(
    path: Path, schema: Path, methods: Collection[str], problems: Collection[str]
) -> list[dict]:
    """The claims of a file, each with its parsed expression under `comparison`.

    methods, problems: the names that a claim may use, whether the run has them or not. Raises
    InputError, one line that names the file and the claim: an unknown or missing key, an id used
    twice, an expression that does not parse or names an unknown method or problem.
    """
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of claims")
    claims: dict[str, dict] = {}
    for number, entry in enumerate(entries, 1):
        name = entry.get("id", number) if isinstance(entry, dict) else number
        source = f"{path}: claim {name}"
        check(entry, schema, source)
        if name in claims:
            raise InputError(f"{source}: the id is used twice")
        try:
            comparison = parse(entry["expression"], methods, problems)
        except InputError as error:
            raise InputError(f"{source}: expression: {error}") from None
        claims[name] = entry | {"comparison": comparison}
    return list(claims.values())
