"""`rerg restore`: a picture in, a picture out, and what becomes of each kind of picture.

With weights of zero R = 0: the restoration solves the normal equations, so what is restored is
known in closed form, and what is kept of a picture is checked to the grey level.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_reconstructor import SPEC, Laplacian, linear_rg

from rerg.cli import main, parser, problem_of
from rerg.models import build, save
from rerg.photos import Photo, read_photo, write_photo
from rerg.problems import Problem
from rerg.specs import ProblemSpec
from rerg.tiles import MARGIN, Restorer, taper, windows

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of weights that are zero: R = 0."""
    path = tmp_path_factory.mktemp("weights") / "zero.safetensors"
    networks = build(SPEC)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.zero_()
    save(path, networks, SPEC, {})
    return path


def smooth(channels: int, height: int, width: int) -> torch.Tensor:
    """A picture without detail finer than some pixels, in [0.1, 0.9]."""
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(0.11 * (c + 1) * u + 0.07 * v) for c in range(channels)]
    return 0.5 + 0.4 * torch.stack(waves)


def run(weights: Path, *arguments: object) -> int:
    return main(["restore", *map(str, arguments), "--weights", str(weights)])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("channels", "alpha"), [(1, False), (1, True), (3, False), (3, True)])
def test_size_depth_grey_and_alpha_are_kept(tmp_path, capsys, weights, bits, channels, alpha):
    """Without R the equilibrium of denoising is the picture itself."""
    x = smooth(channels, 43, 37)
    transparency = torch.linspace(0, 1, 43 * 37).reshape(1, 43, 37) if alpha else None
    write_photo(tmp_path / "a.png", Photo(x, transparency, bits))
    assert run(weights, tmp_path / "a.png", "--noise", 25, "-o", tmp_path / "b.png") == 0
    before, after = read_photo(tmp_path / "a.png"), read_photo(tmp_path / "b.png")
    torch.testing.assert_close(after.x, before.x, atol=2e-3, rtol=0)
    assert after.bits == bits
    if alpha:
        torch.testing.assert_close(after.alpha, before.alpha, atol=0, rtol=0)
    line = capsys.readouterr().out
    assert line.startswith(f"{tmp_path}/b.png: ") and line.endswith(", converged\n")
    assert " network evaluations, residual " in line


def test_a_turned_photograph_comes_out_upright(tmp_path, weights):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = (255 * smooth(3, 20, 30)).byte().movedim(0, -1).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    run(weights, tmp_path / "a.png", "--noise", 5, "-o", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        np.testing.assert_allclose(np.array(image), np.rot90(pixels, -1), atol=1)
        assert image.getexif().get(0x0112, 1) == 1


def test_super_resolution_fits_the_picture(tmp_path, weights):
    """A x = y in the interior, for sizes that are no multiple of anything."""
    write_photo(tmp_path / "a.png", Photo(smooth(3, 23, 31), torch.ones(1, 23, 31), 16))
    assert run(weights, tmp_path / "a.png", "--factor", 3, "-o", tmp_path / "b.png") == 0
    y, x = read_photo(tmp_path / "a.png").x, read_photo(tmp_path / "b.png")
    assert x.x.shape == (3, 69, 93) and x.alpha.shape == (1, 69, 93)
    problem = Problem(ProblemSpec("", "downsampling", 0, 1, 3, {"bicubic": -0.75}))
    low = problem.physics((69, 93), like=x.x).A(x.x[None])[0]
    torch.testing.assert_close(low[:, 4:-4, 4:-4], y[:, 4:-4, 4:-4], atol=2e-3, rtol=0)


def test_completion_keeps_what_is_known(tmp_path, weights):
    x, known = smooth(3, 21, 26), np.random.default_rng(0).random((21, 26)) < 0.5
    write_photo(tmp_path / "a.png", Photo(x * torch.from_numpy(known)))
    Image.fromarray((255 * known).astype(np.uint8)).save(tmp_path / "mask.png")
    options = ["--problem", "com80", "--mask", tmp_path / "mask.png", "-o", tmp_path / "b.png"]
    assert run(weights, tmp_path / "a.png", *options) == 0
    restored = read_photo(tmp_path / "b.png").x
    torch.testing.assert_close(restored[:, known], x[:, known], atol=3e-3, rtol=0)
    assert (restored[:, ~known] - 0.5).abs().max() < 3e-3  # of the initial image, as R = 0


def test_a_folder_and_what_is_wrong_in_it(tmp_path, capsys, weights):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        write_photo(folder / name, Photo(smooth(3, 20, 24)))
    (folder / "bad.png").write_text("no picture")
    (folder / "notes.txt").write_text("no picture either")
    for name in ("._a.png", ".b.jpg"):  # of a Mac's copy, of an interrupted one
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert run(weights, folder, "--noise", 5, "-o", tmp_path / "out") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg"]
    printed = capsys.readouterr()
    assert printed.out.count("converged") == 2
    (fault,) = [line for line in printed.err.splitlines() if "expected a picture" in line]
    assert fault.startswith(f"{folder / 'bad.png'}: ")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ([], "say how the picture was degraded"),
        (["--problem", "den52"], "--problem: unknown problem den52; did you mean den50?"),
        (["--problem", "den25", "--factor", "2"], "den25 is no problem of downsampling"),
        (["--problem", "com80"], "--mask: missing; com80 needs the pixels that are known"),
        (["--problem", "levin1"], "--kernel: missing; levin1 has its kernel in a file"),
        (["--noise", "0"], "--noise: expected a level above 0"),
        (["--noise", "-3"], "argument --noise: expected a level of 0 to 255, got -3"),
        (["--noise", "much"], "argument --noise: invalid level value: 'much'"),
        (["--factor", "2", "--mask", "m.png"], "expected one degradation, got downsampling and"),
        (["--kernel", "none.npy"], "none.npy: no such file"),
        (["--noise", "5", "-o", "a.png"], "a.png: the restored picture would overwrite the given"),
        (["--noise", "5", "-o", "a.doc"], "a.doc: expected a name that ends in one of .png"),
        (["--noise", "5", "--weights", "no"], "no: no such weights in this package"),
    ],
)
def test_faults_are_one_line_and_status_1(tmp_path, capsys, monkeypatch, weights, options, fault):
    monkeypatch.chdir(tmp_path)
    write_photo(Path("a.png"), Photo(smooth(3, 20, 24)))
    before = Path("a.png").read_bytes()
    try:
        status = main(["restore", "a.png", "--weights", str(weights), "-o", "b.png", *options])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert status == 1 and not printed.out
    assert fault in printed.err and printed.err.count("\n") == 1
    assert Path("a.png").read_bytes() == before and not Path("b.png").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--noise", "25"], ("identity", 25, 25)),
        (["--problem", "den15"], ("identity", 15, 15)),
        (["--problem", "den15", "--noise", "20"], ("identity", 20, 20)),
        (["--problem", "den15", "--sigma", "20"], ("identity", 15, 20)),
        (["--factor", "2"], ("downsampling", 0, 2.55)),
        (["--kernel", "k.npy", "--factor", "2"], ("downsampling", 0, 2.55)),
        (["--kernel", "k.npy", "--noise", "4"], ("blur", 4, 4)),
        (["--mask", "m.png"], ("mask", 0, 3)),
        (["--problem", "blur16"], ("blur", 2.55, 2.55)),
    ],
)
def test_options_say_the_problem(options, expected):
    spec = problem_of(parser().parse_args(["restore", "a.png", "-o", "b.png", *options]))
    assert (spec.operator, spec.noise, spec.sigma) == expected


def test_the_help_is_printed_in_every_locale():
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "from rerg.cli import main; main(['restore', '--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "--sigma" in done.stdout, done.stderr


def test_a_weight_of_zero_is_refused(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["restore", "a.png", "-o", "b.png", "--factor", "2", "--sigma", "0"])
    assert "--sigma: expected a level above 0" in capsys.readouterr().err


@pytest.mark.parametrize("padding", [0, 40])
@pytest.mark.parametrize(("size", "tile"), [(7, 100), (100, 100), (101, 100), (250, 60)])
def test_windows_partition_an_axis(size, tile, padding):
    axis = np.pad(np.arange(size), padding, mode="symmetric" if padding <= size else "wrap")
    parts = list(windows(size, MARGIN, padding, tile))
    assert [i for w in parts for i in axis[w.whole][w.inside]] == list(range(size))
    assert [i for w in parts for i in range(size)[w.own]] == list(range(size))
    for window in parts:
        around = window.inside.start, len(axis[window.whole]) - window.inside.stop
        assert len(range(size)[window.own]) <= tile
        assert all(a >= min(MARGIN, padding) for a in around)


def test_a_taper_joins_opposite_sides():
    y = torch.linspace(0, 1, 80).expand(1, 1, 80, 80)
    blurred = y.roll(1, -1) / 2 + y.roll(-1, -1) / 2
    tapered = taper(y, blurred, 32)
    torch.testing.assert_close(tapered[..., 32:-32, 32:-32], y[..., 32:-32, 32:-32])
    torch.testing.assert_close(tapered[..., 0, :], blurred[..., 0, :], atol=1e-3, rtol=0)


class Detail(Laplacian):
    """N(x) = a (x - mean of 3 x 3), with borders that do not wrap, as those of a network."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a * (x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1))


def test_tiles_restore_what_the_whole_does():
    """Also at the seams, to a grey level."""
    rg = linear_rg(Detail(), iterations=300, tolerance=1e-6).float()
    for spec, kernel in (
        (ProblemSpec("", "identity", 25, 25), None),
        (ProblemSpec("", "blur", 10, 25), np.ones((5, 5)) / 25),
        (ProblemSpec("", "downsampling", 0, 25, 2, {"bicubic": -0.75}), None),
    ):
        y = smooth(3, 90, 70)
        whole, _ = Restorer(rg, spec, kernel)(y)
        parts, report = Restorer(rg, spec, kernel, tile=40)(y)
        assert report.startswith("6 tiles, ") and report.endswith(", converged")
        torch.testing.assert_close(parts, whole, atol=1 / 255, rtol=0)


def test_the_command_is_installed():
    """The entry point of pyproject.toml, started as a user does; it is quick to say its version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["rerg"].partition(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}(['--version']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("rerg ")
