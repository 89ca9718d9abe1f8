"""`rerg restore photo.png --noise 25 -o out.png`: pictures that are degraded already.

docs/restore-your-image.md shows what it does.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rerg.config import InputError, closest, read_yaml
from rerg.specs import ProblemSpec

BICUBIC = {"bicubic": -0.75}
NOISE_FREE = {"downsampling": 2.55, "blur": 2.55, "mask": 3.0}  # σ, as in config/problems.yaml


class Parser(argparse.ArgumentParser):
    """Whose faults are a line and status 1, as all of this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The options of the command."""
    import rerg

    program = Parser(prog="rerg", description="Restoration with learned regularizing gradients.")
    program.add_argument("--version", action="version", version=f"rerg {rerg.__version__}")
    commands = program.add_subparsers(dest="command", required=True, metavar="restore")
    restore = commands.add_parser(
        "restore",
        help="restore a picture, or all pictures of a folder",
        description="Restore a picture that is degraded already, or all pictures of a folder. "
        "Say how it was degraded by a problem's name, by the other options, or by both.",
    )
    restore.add_argument("input", type=Path, help="a picture, or a folder of pictures")
    restore.add_argument(
        "-o", dest="output", type=Path, required=True, help="the restored picture, or a folder"
    )
    restore.add_argument("--problem", metavar="NAME", help="of config/problems.yaml, as den25, sr2")
    restore.add_argument(
        "--noise", type=level, metavar="LEVEL", help="its standard deviation, of 255"
    )
    restore.add_argument(
        "--kernel", type=Path, metavar="FILE", help="of the blur: .npy, .txt, or a picture"
    )
    restore.add_argument(
        "--factor", type=factor, metavar="N", help="by which the picture was downsampled"
    )
    restore.add_argument(
        "--mask", type=Path, metavar="FILE", help="a picture: white where pixels are known"
    )
    restore.add_argument(
        "--sigma",
        type=weight,
        metavar="LEVEL",
        # in ASCII, for terminals of every locale
        help="sigma of the weight sigma^2, of 255: more is smoother; by default the noise level",
    )
    restore.add_argument(
        "--weights", default="rerg", metavar="NAME", help="shipped ones, or a .safetensors file"
    )
    restore.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return program


def level(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 255:
        raise argparse.ArgumentTypeError(f"expected a level of 0 to 255, got {text}")
    return value


def weight(text: str) -> float:
    value = level(text)
    if not value:
        raise argparse.ArgumentTypeError("expected a level above 0")
    return value


def factor(text: str) -> int:
    value = int(text)
    if not 2 <= value <= 8:
        raise argparse.ArgumentTypeError(f"expected a factor of 2 to 8, got {text}")
    return value


def registry(name: str) -> dict:
    """A file of `config/`, of this clone or as the installed package has it."""
    package = Path(__file__).parent
    clone = package.parent / "config" / name
    return read_yaml(clone if clone.exists() else package / "registries" / name)


def problem_of(given: argparse.Namespace) -> ProblemSpec:
    """What the options say of the degradation.

    Raises InputError where they say too little, or contradict the named problem.
    """
    asked = {
        "blur": given.kernel and not given.factor,
        "downsampling": given.factor,
        "mask": given.mask,
    }
    operators = [operator for operator, option in asked.items() if option]
    if given.problem is not None:
        problems = registry("problems.yaml")
        if given.problem not in problems:
            known = closest(given.problem, list(problems))
            raise InputError(f"--problem: unknown problem {given.problem}{known}")
        spec = ProblemSpec.of(given.problem, problems[given.problem])
        allowed = {spec.operator} | ({"blur"} if spec.operator == "downsampling" else set())
        if wrong := set(operators) - allowed:
            raise InputError(f"--problem: {given.problem} is no problem of {wrong.pop()}")
    else:
        if len(operators) > 1:
            raise InputError(f"expected one degradation, got {' and '.join(operators)}")
        if not operators and given.noise is None:
            raise InputError(
                "say how the picture was degraded: --problem, --noise, --kernel, --factor or --mask"
            )
        operator = operators[0] if operators else "identity"
        kernel = BICUBIC if operator == "downsampling" else None
        spec = ProblemSpec("this picture", operator, noise=0.0, sigma=0.0, kernel=kernel)
    if given.factor:
        spec = replace(spec, factor=given.factor)
    if given.noise is not None:
        spec = replace(spec, noise=given.noise, sigma=given.noise or spec.sigma)
    if given.sigma is not None:
        spec = replace(spec, sigma=given.sigma)
    if not spec.sigma:
        spec = replace(spec, sigma=NOISE_FREE.get(spec.operator, 0.0))
    if not spec.sigma:
        raise InputError("--noise: expected a level above 0")
    if spec.operator == "mask" and given.mask is None:
        raise InputError(f"--mask: missing; {given.problem} needs the pixels that are known")
    if given.kernel is None and "file" in (spec.kernel or {}):
        raise InputError(f"--kernel: missing; {given.problem} has its kernel in a file")
    return spec


def pictures(given: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Pairs of input and output.

    Raises InputError where there is nothing to read, or an output would overwrite an input.
    """
    from rerg.photos import SUFFIXES

    source, target = given.input, given.output
    if source.is_dir():
        # Without what systems hide: ._a.png beside a.png is no picture.
        shown = (p for p in source.iterdir() if not p.name.startswith("."))
        found = sorted(p for p in shown if p.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"{source}: expected pictures ({', '.join(SUFFIXES)}), found none")
        if target.is_file():
            raise InputError(f"{target}: expected a folder, as {source} is one")
        pairs = [(path, target / path.name) for path in found]
    else:
        if not source.exists():
            raise InputError(f"{source}: no such file")
        pairs = [(source, target / source.name if target.is_dir() else target)]
    for path, out in pairs:
        if out.exists() and out.samefile(path):
            raise InputError(f"{out}: the restored picture would overwrite the given one")
    return iter(pairs)


def restore(given: argparse.Namespace) -> int:
    """Restore what the options say; the number of pictures that could not be."""
    spec = problem_of(given)
    pairs = list(pictures(given))

    from tqdm import tqdm

    from rerg.photos import check_suffix, read_kernel, read_mask, read_photo, write_photo
    from rerg.reconstructor import load
    from rerg.tiles import Restorer

    kernel = read_kernel(given.kernel) if given.kernel else None
    mask = read_mask(given.mask) if given.mask else None
    restorer = Restorer(load(given.weights, device=given.device), spec, kernel, mask)
    failed = 0
    bar = tqdm(pairs, unit="picture", disable=True if len(pairs) == 1 else None)
    for path, out in bar:
        try:
            photo = read_photo(path)
            check_suffix(out, photo)
            x, report = restorer(photo.x)
            write_photo(out, photo.restored(x))
            bar.write(f"{out}: {report}")
        except (InputError, OSError) as error:
            if len(pairs) == 1:
                raise
            bar.write(f"{error}", file=sys.stderr)
            failed += 1
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    given = parser().parse_args(arguments)
    try:
        return 1 if restore(given) else 0
    except (InputError, OSError) as error:
        print(f"rerg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
