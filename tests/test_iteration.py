"""Fixed points by iteration: accelerations, the step, floors, statuses, failures, waits."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from closed_forms import ACCELERATIONS, SCALE, TYPES, Linear, tiny_observation
from conftest import white
from torch.utils._python_dispatch import TorchDispatchMode

from rerg.iteration import Anderson, Momentum, Plain, Safeguarded, fixed_point, norm, read
from rerg.maps import ProximalGradient


def forward(acceleration=Plain, iterations=200, tolerance=1e-8):
    linear = Linear("sr2", count=1, size=(28, 30))
    T = linear.map(ProximalGradient)
    with torch.no_grad():
        return fixed_point(
            T, T.start(), iterations=iterations, tolerance=tolerance, acceleration=acceleration
        )


def test_acceleration_saves_evaluations():
    plain, momentum, anderson, safe = (forward(a).evaluations[0] for a in ACCELERATIONS)
    assert anderson < plain and momentum != plain
    assert safe == anderson  # it refuses nothing on a linear contraction


def test_window_changes_the_iterates():
    few, many = (forward(partial(Anderson, window=w), iterations=8) for w in (2, 6))
    assert many.residual < few.residual


def test_a_window_of_one_is_the_plain_iteration():
    plain, anderson = forward(iterations=9), forward(partial(Anderson, window=1), iterations=9)
    torch.testing.assert_close(anderson.x, plain.x)


def test_tolerance_stops_the_iteration():
    loose, tight = forward(tolerance=1e-2), forward(tolerance=1e-6)
    assert loose.evaluations < tight.evaluations
    assert 1e-6 < loose.residual <= 1e-2 and tight.residual <= 1e-6


def test_momentum_restarts_when_the_residual_grows():
    x = torch.zeros(2, 1, 1, 1)
    momentum = Momentum(x)
    for residual in (1.0, 0.5, 0.4):
        evaluated(momentum, x, x, [residual, residual])
    evaluated(momentum, x, x, [0.3, 0.9])  # the second image grows
    assert momentum.t[1] == pytest.approx((1 + math.sqrt(5)) / 2) and momentum.t[0] > 2


def evaluated(acceleration, image, step, residual):
    """What an acceleration says to images (B, 3, H, W), steps and residuals, and where it goes."""
    residual, length = np.array(residual), norm(step).double().numpy()
    measured = acceleration.measure(step)
    measured = read(*measured) if measured else np.zeros((len(step), 0))
    return acceleration.judge(residual, length, measured), acceleration.next(image, step, residual)


def lasso(seed=5):
    """T(x) = soft(x - Bᵀ(Bx - b), 0.02), nonexpansive, not smooth, on two images of 48 pixels."""
    B = white((20, 48), seed, torch.float64)
    B = B / torch.linalg.matrix_norm(B, 2)
    b = white((2, 20), seed + 1, torch.float64)

    def T(x):
        z = x.flatten(1)
        z = z - (z @ B.T - b) @ B
        return (z.sign() * (z.abs() - 0.02).clamp_min(0)).view_as(x)

    return T, torch.zeros(2, 3, 4, 4, dtype=torch.float64)


def residuals_of(T, x0, acceleration, iterations=1200):
    """The relative residuals after every evaluation (n, B), and the solution."""
    seen = []
    solution = fixed_point(
        T,
        x0,
        iterations=iterations,
        tolerance=1e-9,
        acceleration=acceleration,
        watch=lambda k, x, residual: seen.append(residual),
    )
    return np.stack(seen), solution


def accepted_residuals(T, x0, iterations=1200):
    """The residuals of the points that the guard accepts, one list per image, and the solution."""
    seen = [[] for _ in x0]

    class Recorded(Safeguarded):
        def judge(self, residual, length, measured):
            accepted, *others = super().judge(residual, length, measured)
            for i in np.flatnonzero(accepted):
                seen[i].append(residual[i])
            return accepted, *others

    solution = fixed_point(T, x0, iterations=iterations, tolerance=1e-9, acceleration=Recorded)
    return [np.array(residuals) for residuals in seen], solution


def test_the_safeguard_keeps_the_residual_near_its_least_where_anderson_does_not():
    T, x0 = lasso()
    anderson, lost = residuals_of(T, x0, Anderson)
    assert (np.diff(anderson, axis=0) > 0).any(0).all() and not lost.converged.any()
    accepted, found = accepted_residuals(T, x0)
    assert found.converged.all()
    for residuals in accepted:
        assert (residuals <= 2 * np.minimum.accumulate(residuals) + 1e-15).all()
    assert not residuals_of(T, x0, Plain)[1].converged.any()


def test_the_safeguard_converges_where_momentum_oscillates():
    """Eigenvalues of T below -1/3 turn Nesterov's extrapolation unstable; T is a contraction."""
    slopes = torch.linspace(-0.95, 0.5, 48, dtype=torch.float64).view(1, 3, 4, 4)
    T, x0 = lambda x: slopes * x + 1, torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    (_, momentum), (_, safe) = (residuals_of(T, x0, a, 200) for a in (Momentum, Safeguarded))
    assert not momentum.converged.any() and safe.converged.all()
    torch.testing.assert_close(safe.x, 1 / (1 - slopes))


def guard_of(steps, x0):
    """A guard that went through images (B, 3, H, W), steps and residuals, and what it said last."""
    safe = Safeguarded(x0)
    for image, step, residual in steps:
        (accepted, *_), y = evaluated(safe, image, step, residual)
    return safe, accepted.tolist(), y


def test_a_refused_step_goes_back_to_the_last_iterate():
    x = [torch.full((2, 3, 4, 4), float(k)) for k in range(7)]
    steps = [(x[1], x[1], [1.0, 1.0]), (x[2], x[1], [0.5, 0.5])]
    steps.append((x[3], x[1], [0.4, 0.9]))
    safe, accepted, y = guard_of(steps, x[0])
    assert accepted == [True, False] and safe.far.tolist() == [False, True]
    assert torch.equal(y[1], x[2][1])
    steps.append((x[4], x[1], [0.3, 0.6]))  # the plain step, whatever its residual
    safe, accepted, _ = guard_of(steps, x[0])
    assert accepted == [True, True] and safe.far[1]
    safe, accepted, _ = guard_of([*steps, (x[5], x[1], [0.2, 0.9])], x[0])  # below twice 0.5
    assert accepted == [True, True] and safe.far[1]
    again = [*steps, (x[5], x[1], [0.2, 1.1])]
    safe, accepted, _ = guard_of(again, x[0])
    assert accepted == [True, False] and safe.far[1]
    safe, _, _ = guard_of([*again, (x[6], x[1], [0.1, 0.17])], x[0])  # 0.3 of 0.6 is no end
    assert safe.far[1]
    safe, _, _ = guard_of([*steps, (x[5], x[1], [0.2, 0.14])], x[0])  # below 0.3 of 0.5
    assert safe.far.tolist() == [False, False]


def test_momentum_takes_over_where_anderson_gains_nothing():
    """A drift: all steps are the same, so Anderson's mix lags behind. Not so the second image."""
    x = torch.zeros(2, 3, 4, 4)
    steps = [(x + k, x + 1, [0.5, 0.5 * 0.9**k]) for k in range(12)]
    safe, accepted, _ = guard_of(steps, x)
    assert accepted == [True, True] and safe.far.tolist() == [True, False]
    assert safe.near[0] == 0.3 * 0.5


@pytest.mark.parametrize(("step", "residual"), [(2.5, 0.5), (1.0, 1.1)])
def test_momentum_may_double_the_least_residual_and_length_and_no_more(step, residual):
    """Of iterates that grow without bound the length grows alone."""
    x = torch.zeros(2, 3, 4, 4)
    longer = torch.tensor([1.9, step]).view(2, 1, 1, 1)
    refused = (x, x + 1, [0.6, 0.6])
    plain = (x, x + 1, [0.5, 0.5])
    steps = [plain, plain, refused, plain, (x, x + longer, [0.9, residual])]
    safe, accepted, _ = guard_of(steps, x)
    assert safe.far.all() and accepted == [True, False]


def test_the_guards_momentum_restarts_where_the_step_turns_round():
    x = torch.zeros(2, 3, 4, 4)
    turned = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    plain, refused = (x, x + 1, [0.5, 0.5]), (x, x + 1, [0.6, 0.6])
    steps = [plain, plain, refused, *[plain] * 3, (x, x + turned, [0.4, 0.4])]
    safe, *_ = guard_of(steps, x)
    assert safe.far.all() and safe.momentum.t[0] > 3 and safe.momentum.t[1] < 2


def test_a_plain_step_that_turned_round_is_halved():
    """The second step is plain, as the window holds one iterate. Four images, one rule each."""
    x = torch.zeros(4, 3, 4, 4)
    first = (x + 1, x + 1, [0.5, 0.5, 0.5, 0.5])
    turned = torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1, 1, 1)
    safe, accepted, y = guard_of([first, (x + 9, x + turned, [0.6, 0.6, 0.4, math.inf])], x)
    assert accepted == [False, True, True, False]  # it rose and turned; rose; turned; overflowed
    assert safe.beta.tolist() == [0.5, 1, 1, 0.5]
    assert torch.equal(y[0], x[0] + 0.5) and torch.equal(y[3], x[0] + 0.5)
    for _ in range(20):
        evaluated(safe, x, -safe.step, [9.0] * 4)
    assert safe.beta.min() == 1 / 128


def test_a_step_is_longer_than_that_of_the_last_accepted_point():
    """The second step is taken anew at half its length: the third is held against the first."""
    x = torch.zeros(2, 3, 4, 4)
    third = torch.tensor([-2.0, -0.5]).view(2, 1, 1, 1)
    steps = [(x, x + 1, [0.5, 0.5]), (x, x - 3, [0.4, 0.4]), (x, x + third, [0.3, 0.3])]
    safe, accepted, _ = guard_of(steps, x)
    assert accepted == [False, True] and safe.beta.tolist() == [0.25, 0.5]


def test_the_safeguard_solves_every_image_as_if_alone():
    T, x0 = lasso()
    _, together = residuals_of(T, x0, Safeguarded, 60)
    _, alone = residuals_of(lambda x: T(torch.cat([x, x]))[:1], x0[:1], Safeguarded, 60)
    torch.testing.assert_close(alone.x[0], together.x[0])


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
@pytest.mark.parametrize("factor", [1.5, 1e30, math.nan])
def test_divergence_is_reported_with_finite_arrays(acceleration, factor):
    """One image diverges, the other converges as if alone, for a map with indexing or without."""

    class Map:
        def __init__(self, factors):
            self.factors = factors

        def __call__(self, x):
            return self.factors * x + 0.5

        def __getitem__(self, index):
            return Map(self.factors[index])

    factors = torch.tensor([0.5, factor]).view(2, 1, 1, 1)
    x0 = torch.full((2, 3, 4, 4), 0.5)
    for T in (Map(factors), lambda x: factors * x + 0.5):
        if acceleration in (Anderson, Safeguarded) and factor == 1.5:
            break  # an affine map in one unknown: Anderson finds its repelling fixed point
        solution = fixed_point(T, x0, iterations=100, tolerance=1e-6, acceleration=acceleration)
        assert solution.converged.tolist() == [True, False]
        assert solution.x.isfinite().all()
        assert solution.x[1].square().mean().sqrt() <= 10
        torch.testing.assert_close(solution.x[0], torch.ones(3, 4, 4), rtol=0, atol=1e-5)


def test_a_map_without_indexing_does_not_revive_a_diverged_image():
    calls = []

    def T(x):
        calls.append(1)
        return torch.full_like(x, 1e9) if len(calls) == 1 else torch.full_like(x, 0.5)

    both = lambda x: torch.cat([T(x[:1]), 0.9 * x[1:]])  # noqa: E731
    x0 = torch.ones(2, 3, 4, 4)
    solution = fixed_point(both, x0, iterations=30, tolerance=1e-6)
    assert not solution.converged[0] and torch.equal(solution.x[0], x0[0])


def test_anderson_restarts_as_new():
    x, steps = torch.randn(
        2, 3, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )
    used, fresh = Anderson(x[0], window=3), Anderson(x[0], window=3)
    evaluated(used, x[2], steps[2], [1.0, 1.0])
    used.restart(np.array([True, False]))
    fresh.evaluated = used.evaluated
    for image, step in zip(x[:2], steps[:2], strict=True):
        _, found = evaluated(used, image, step, [1.0, 1.0])
        _, expected = evaluated(fresh, image, step, [1.0, 1.0])
        assert torch.equal(found[0], expected[0]) and not torch.equal(found[1], used.images[1, 0])


@pytest.mark.parametrize("indexed", [True, False])
def test_a_candidate_that_overflows_leaves_no_trace(indexed):
    """One image of a batch gets infinities for its third evaluation, and recovers."""

    class Map:
        calls = 0

        def __call__(self, x):
            Map.calls += 1
            T_x = 0.9 * x.sin() + 0.3 * x.flip(-1)
            return T_x.index_fill(0, torch.tensor([0]), math.inf) if Map.calls == 3 else T_x

        if indexed:

            def __getitem__(self, index):
                return self

    x0 = white((2, 3, 4, 4), 8, torch.float64)
    solution = fixed_point(Map(), x0, iterations=300, tolerance=1e-8, acceleration=Safeguarded)
    assert solution.converged.all() and solution.x.isfinite().all()


class TooStrong:
    """R(x) = M x, fifty times stronger than c/λ is right for: N has its spectrum in [30, 70]."""

    def __init__(self, problem):
        self.linear = Linear(problem, count=1, size=(28, 30))
        self.linear.M = (50 * self.linear.M).detach()
        self.T = self.linear.map(ProximalGradient)


@pytest.mark.parametrize("problem", TYPES)
def test_the_step_is_found_for_an_r_fifty_times_too_strong(problem):
    strong = TooStrong(problem)
    options = {"iterations": 300, "tolerance": 1e-10}
    solution = fixed_point(strong.T, strong.T.start(), acceleration=Safeguarded, **options)
    expected, _ = strong.linear.closed_form()
    assert solution.stopped == ["converged"]
    assert (solution.x - expected).abs().max() <= 1e-6
    assert not fixed_point(strong.T, strong.T.start(), **options).converged.any()


def test_an_image_without_an_equilibrium_ends_with_its_least_residual():
    """T(x) = x + 0.1 + (x - 1)² has no fixed point; its residual is least near 1."""
    T = lambda x: x + 0.1 + (x - 1).square()  # noqa: E731
    x0, seen = torch.full((1, 3, 4, 4), 0.5), []
    watch = lambda k, x, residual: seen.append(residual)  # noqa: E731
    options = {"iterations": 30, "tolerance": 1e-4, "acceleration": Safeguarded}
    solution = fixed_point(T, x0, watch=watch, **options)
    assert not solution.converged.any() and solution.x.isfinite().all()
    assert solution.residual == min(seen) < seen[0]


def rounded(x, bits):
    """x to so many bits of mantissa: 7 as bfloat16, 10 as TensorFloat-32."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


@pytest.mark.parametrize(("bits", "floor"), [(7, 1e-2), (10, 2e-3)])
def test_a_floor_of_the_arithmetic_is_seen(bits, floor):
    """A network whose input and output are rounded cannot meet the tolerance, and says so."""
    linear = Linear("com80", count=2, size=(28, 30))
    exact = linear.map(ProximalGradient)
    T = ProximalGradient(
        lambda x: rounded(linear.N(rounded(x, bits)), bits), linear.observation, SCALE
    )
    options = {"iterations": 400, "tolerance": 1e-9, "acceleration": Safeguarded}
    with torch.no_grad():
        stalled = fixed_point(T, T.start(), **options)
        free = fixed_point(exact, exact.start(), **options)
    assert stalled.stopped == ["stalled", "stalled"] and free.converged.all()
    assert (stalled.residual <= floor).all() and (stalled.residual > 1e-9).all()
    assert (stalled.evaluations <= 60).all()


def test_slow_progress_is_no_stall():
    """A lasso of which one image drifts: middles of its steps are evaluated again and again."""

    class Middles(Safeguarded):
        seen = np.zeros(2, dtype=int)

        def judge(self, residual, length, measured):
            self.seen += self.probe
            return super().judge(residual, length, measured)

    options = {"iterations": 600, "tolerance": 1e-9}
    found = fixed_point(*lasso(19), acceleration=Middles, **options)
    assert found.stopped == ["converged", "limit"] and Middles.seen[1] > 1
    T = lambda x: 0.999 * x + 0.001 * x.flip(-1).tanh() + 0.01  # noqa: E731
    x0 = white((2, 3, 4, 4), 9, torch.float64)
    for solve in (Plain, Momentum, Anderson, Safeguarded):
        assert "stalled" not in fixed_point(T, x0, acceleration=solve, **options).stopped


def test_middles_are_evaluated_below_the_bound_of_floors_and_ten_evaluations_apart():
    """Two images whose residuals only rise, on a straight line; the second's are no floor."""
    x, middles = torch.zeros(2, 3, 4, 4), []
    safe = Safeguarded(x)
    for k in range(1, 60):
        (_, _, stalled), _ = evaluated(safe, x, x + 1, [1e-3 * k, 1e-1 * k])
        assert not stalled.any()
        middles.append(safe.probe)
    first, second = (np.flatnonzero(image) for image in np.transpose(middles))
    assert len(first) >= 3 and (np.diff(first) > 10).all() and not len(second)


class Slopes:
    """T(x) = a x + 1, a slope per image; it counts how many images it is evaluated on."""

    def __init__(self, slopes, counts):
        self.slopes, self.counts = slopes, counts

    def __call__(self, x):
        self.counts.append(len(x))
        return self.slopes * x + 1

    def __getitem__(self, index):
        return Slopes(self.slopes[index], self.counts)


def test_every_image_says_why_it_stopped():
    slopes, counts = torch.tensor([0.1, 3.0, 0.9]).view(3, 1, 1, 1), []
    T, x0 = Slopes(slopes, counts), torch.zeros(3, 3, 4, 4)
    solution = fixed_point(T, x0, iterations=12, tolerance=1e-5)
    assert solution.stopped == ["converged", "diverged", "limit"]
    assert solution.converged.tolist() == [True, False, False]
    assert solution.evaluations.tolist() == [6, 3, 12]
    # a finished image leaves the batch
    assert counts == [3] * 3 + [2] * 3 + [1] * 6
    frozen = fixed_point(lambda x: slopes * x + 1, x0, iterations=12, tolerance=1e-5)
    assert frozen.stopped == solution.stopped and torch.equal(frozen.x, solution.x)
    assert (frozen.evaluations == solution.evaluations).all()


class Waits(TorchDispatchMode):
    """Counts the operations for which a host would have to wait for a device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        index = args[1] if name in ("index", "index_put", "index_put_") else ()
        self.count += (
            name in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
            or (name == "_to_copy" and kwargs.get("device") is not None)
            or any(i is not None and i.dtype == torch.bool for i in index)
        )
        return function(*args, **kwargs)


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
def test_the_device_is_waited_for_once_an_evaluation(acceleration, monkeypatch):
    """`read` is the one wait, on a CPU by `cpu`, which no dispatcher sees."""
    T = lambda x: 0.9 * x.sin() + 0.05 * x.flip(-1)  # noqa: E731
    x0, counts, reads = white((2, 3, 4, 4), 8, torch.float64), [], []
    for name in ("cpu", "tolist"):
        plain = getattr(torch.Tensor, name)
        counted = lambda x, plain=plain: reads.append(1) or plain(x)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, counted)
    for iterations in (5, 15):
        with Waits() as waits:
            fixed_point(T, x0, iterations=iterations, tolerance=0.0, acceleration=acceleration)
        counts.append(waits.count + len(reads))
        reads.clear()
    assert counts[1] - counts[0] == 10


class Launches(TorchDispatchMode):
    """Counts the operations that a device would be given; a view is none."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("problem", "most"), [("den25", 20), ("com80", 20), ("sr2", 28)])
def test_an_evaluation_gives_a_device_little_beside_the_network(problem, most):
    """Launches are what a small network waits for: they were 180."""
    _, observation = tiny_observation(problem, (28, 30))
    T = ProximalGradient(lambda x: 0.1 * x.sin(), observation, SCALE)
    counts = []
    with torch.no_grad():
        for iterations in (5, 15):
            with Launches() as launches:
                fixed_point(
                    T, T.start(), iterations=iterations, tolerance=0.0, acceleration=Safeguarded
                )
            counts.append(launches.count)
    network = 2
    assert 0 < (counts[1] - counts[0]) / 10 - network <= most


def test_singular_anderson_system_falls_back_and_counts():
    """Equal residuals make a Gram matrix of ones: without a ridge it is singular."""
    x0 = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    T = lambda x: x + torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).to(x) - 0.5  # noqa: E731
    without, ridged = (
        fixed_point(
            T, x0, iterations=6, tolerance=1e-9, acceleration=partial(Anderson, ridge=ridge)
        )
        for ridge in (0.0, 1e-8)
    )
    assert without.fallbacks > 0 and ridged.fallbacks == 0
    assert without.x.isfinite().all() and not without.converged.any()
    plain = fixed_point(T, x0, iterations=6, tolerance=1e-9)
    assert plain.fallbacks == 0 and torch.equal(without.x, plain.x)
