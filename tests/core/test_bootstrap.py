"""Bootstrap areas against the binomial law they must reproduce, explicit resampling, and mistakes."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from fiqa_ray.core.bootstrap import AreaDraws, bootstrap_areas
from fiqa_ray.core.conventions import CONVENTIONS, Convention, changed, convention_of
from fiqa_ray.core.edc import edc_curve
from fiqa_ray.core.floor import RANDOM, random_qualities
from fiqa_ray.core.kernels.discard import number_copies
from fiqa_ray.core.kernels.persons import count_pairs
from fiqa_ray.core.orders import PairOrder
from fiqa_ray.core.resampling import Persons, bandwidth, draw_counts, person_share, smoothed_units
from fiqa_ray.core.samples import Sample
from fiqa_ray.errors import FiqaRayError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:all .* pairs have quality")


def benchmark(n_mated: int, n_nonmated: int, error_rate: float, rng: np.random.Generator) -> tuple:
    """Pairs whose errors are plain: similarity 1 (accepted), 0 (non-mated) or -1 (mated, never accepted)."""
    mated = np.arange(n_mated + n_nonmated) < n_mated
    similarity = np.where(mated, np.where(rng.uniform(size=mated.size) < error_rate, -1.0, 1.0), 0.0)
    return similarity, mated


def realistic(n: int, seed: int) -> tuple:
    rng = np.random.default_rng(seed)
    mated = np.arange(n) < n // 2
    quality_a, quality_b = rng.beta(5, 2, size=(2, n))
    similarity = np.where(mated, 0.7 * np.minimum(quality_a, quality_b), 0) + 0.1 * rng.normal(size=n)
    noisy = (quality_a + 0.3 * rng.normal(size=n), quality_b + 0.3 * rng.normal(size=n))
    return similarity, mated, {"true": (quality_a, quality_b), "noisy": noisy}


@pytest.mark.slow
def test_interval_is_binomial_where_quality_is_constant() -> None:
    # dasec with one quality for all: the area is FNMR, and FNMR of a resample is binomial(n, e0) / n.
    similarity, mated = benchmark(400, 3000, 0.1, np.random.default_rng(1))
    e0 = float(np.mean(similarity[:400] < 0))
    ones = np.ones(3400)
    areas = bootstrap_areas(similarity, mated, {"flat": (ones, ones)}, conventions=["dasec"], n_draws=4000, seed=3)
    interval = areas.interval("flat", ("dasec", 1e-3))
    assert interval.value == pytest.approx(e0)
    assert interval.n_undefined == 0
    expected = binom.ppf([0.025, 0.975], 400, e0) / 400
    assert [interval.low, interval.high] == pytest.approx(expected, abs=1.01 / 400)
    draws = areas.draws["flat", ("dasec", 1e-3), 1.0]
    assert draws.std() == pytest.approx(math.sqrt(e0 * (1 - e0) / 400), rel=0.05)


@pytest.mark.parametrize(
    ("convention", "limit"),
    [
        ("paper", 0.95),
        ("nearest", 0.37),
        ("dasec", 0.3),
        ("pmf", 0.5),
        (changed("fixed", "paper", threshold="fixed", curve="step"), 0.33),
        (changed("fm", "dasec", pool="nonmated"), 0.2),
        (changed("start", "dasec", accept="at", starting_fnmr=0.1), 0.2),
    ],
)
def test_draws_equal_curves_of_explicitly_resampled_pairs(convention: str | Convention, limit: float) -> None:
    similarity, mated, qualities = realistic(900, seed=2)
    choice = convention_of(convention)
    cell = (choice.name, 0.1 if choice.starting_fnmr is None else None)
    areas = bootstrap_areas(
        similarity, mated, qualities, fmrs=[0.1], conventions=[convention], limits=[limit], n_draws=20, seed=9
    )
    rng = np.random.default_rng(9)  # the documented scheme: mated rows first, then non-mated rows
    for j in range(20):
        picked = np.sort(np.concatenate([rng.integers(450, size=450), 450 + rng.integers(450, size=450)]))
        for name, (a, b) in qualities.items():
            curve = edc_curve(similarity[picked], mated[picked], a[picked], b[picked], fmr=0.1, convention=convention)
            assert areas.draws[name, cell, limit][j] == pytest.approx(curve.auc(limit), abs=1e-12)


def test_one_pass_equals_many() -> None:
    similarity, mated, qualities = realistic(600, seed=4)
    conventions, rates = ["paper", "nearest", "dasec"], [0.1, 0.02]
    together = bootstrap_areas(
        similarity, mated, qualities, fmrs=rates, conventions=conventions, limits=[0.2, 0.3], n_draws=8, seed=1
    )
    for convention in conventions:
        for fmr in rates:
            alone = bootstrap_areas(
                similarity,
                mated,
                {"noisy": qualities["noisy"]},
                fmrs=[fmr],
                conventions=[convention],
                limits=[0.3],
                n_draws=8,
                seed=1,
            )
            key = ("noisy", (convention, fmr), 0.3)
            np.testing.assert_array_equal(together.draws[key], alone.draws[key])
    other = bootstrap_areas(similarity, mated, qualities, fmrs=rates, limits=[0.3], n_draws=8, seed=2)
    assert not np.array_equal(other.draws["noisy", ("paper", 0.1), 0.3], together.draws["noisy", ("paper", 0.1), 0.3])


def test_paired_difference_is_tighter_than_the_single_intervals() -> None:
    similarity, mated, qualities = realistic(4200, seed=6)
    areas, cell = bootstrap_areas(similarity, mated, qualities, fmrs=[0.01], n_draws=300), ("paper", 0.01)
    true, noisy = areas.interval("true", cell), areas.interval("noisy", cell)
    difference = areas.difference("true", "noisy", cell)
    assert difference.value == pytest.approx(true.value - noisy.value)
    assert difference.low < difference.value < difference.high < 0  # the true quality is clearly better
    assert difference.high - difference.low < (true.high - true.low) + (noisy.high - noisy.low)
    back = areas.difference("noisy", "true", cell)
    assert (back.low, back.high) == pytest.approx((-difference.high, -difference.low))
    assert difference.p_value == pytest.approx(2 / 301)  # no draw on the other side of zero


def test_a_partial_difference_of_people_with_few_false_matches_has_no_interval() -> None:
    """The cell that simulation finds at 99 %; the next ones, each of which differs from it in one choice, have one."""
    rng = np.random.default_rng(3)
    n = 2000
    mated, person = np.arange(2 * n) < n, rng.integers(100, size=2 * n)
    people = person, np.where(mated, person, (person + 1) % 100)
    quality = rng.uniform(size=2 * n)
    similarity = np.where(mated, 0.6 * quality, 0) + 0.1 * rng.normal(size=2 * n)
    given = {"a": (quality, quality), "b": (rng.uniform(size=2 * n),) * 2}

    def kind(cell: tuple[str, float], limit: float | None, identities: tuple | None = people) -> str:
        areas = bootstrap_areas(
            similarity,
            mated,
            given,
            fmrs=[cell[1]],
            conventions=[cell[0]],
            limits=[0.3],
            identities=identities,
            n_draws=20,
        )
        assert areas.interval("a", cell, limit).kind == "interval"
        return areas.difference("a", "b", cell, limit).kind

    assert kind(("paper", 0.01), 0.3) == "none"  # 19 false matches are allowed
    assert kind(("paper", 0.01), None) == "interval"
    assert kind(("paper", 0.02), 0.3) == "interval"
    assert kind(("dasec", 0.01), 0.3) == "interval"
    assert kind(("paper", 0.01), 0.3, None) == "interval"


# --- persons ----------------------------------------------------------------------------------------------------------


def test_identities_widen_the_interval_when_pairs_are_copies() -> None:
    # 100 persons, each with ten identical mated pairs: there are 100 observations, not 1000.
    rng = np.random.default_rng(8)
    is_wrong = np.repeat(rng.uniform(size=100) < 0.4, 10)
    person = np.repeat(np.arange(100), 10)
    similarity = np.concatenate([np.where(is_wrong, -1.0, 1.0), np.zeros(3000)])
    mated = np.arange(4000) < 1000
    a = np.concatenate([person, np.arange(3000) % 100])
    b = np.concatenate([person, (np.arange(3000) + 1 + np.arange(3000) // 100) % 100])
    flat = {"flat": (np.ones(4000), np.ones(4000))}
    key, e0 = ("flat", ("dasec", 1e-3), 1.0), is_wrong.mean()
    by_pair = bootstrap_areas(similarity, mated, flat, conventions=["dasec"], n_draws=600)
    by_person = bootstrap_areas(similarity, mated, flat, conventions=["dasec"], n_draws=600, identities=(a, b))
    assert by_pair.draws[key].std() == pytest.approx(math.sqrt(e0 * (1 - e0) / 1000), rel=0.15)
    assert by_person.draws[key].std() == pytest.approx(math.sqrt(e0 * (1 - e0) / 100), rel=0.15)
    assert (by_person.settings.unit, by_person.settings.n_units) == ("identities", 100)


def nonmated_tail(share: float, seed: int, n_persons: int = 500, n_each: int = 7) -> tuple[PairOrder, Persons]:
    """Non-mated pairs whose similarities hold a likeness of each person; one mated pair per person beside them."""
    rng = np.random.default_rng(seed)
    first = np.repeat(np.arange(n_persons), n_each)
    other = (first + rng.integers(1, n_persons, size=first.size)) % n_persons
    likeness = math.sqrt(share) * rng.normal(size=n_persons)
    similarity = likeness[first] + likeness[other] + math.sqrt(1 - 2 * share) * rng.normal(size=first.size)
    a, b = np.concatenate([np.arange(n_persons), first]), np.concatenate([np.arange(n_persons), other])
    pairs = PairOrder.of(np.concatenate([np.full(n_persons, 9.0), similarity]), a == b)
    return pairs, Persons.of(pairs.mated, (a, b))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.15, 0.35])
def test_draws_by_identities_have_the_variance_that_new_persons_have(share: float) -> None:
    # The number of non-mated pairs above a fixed similarity: its spread over 600 benchmarks, and over draws of a few.
    threshold, n = 2.0, 3500
    counts, spreads = [], []
    for seed in range(600):
        pairs, persons = nonmated_tail(share, seed)
        is_above = ~pairs.mated & (pairs.similarity > threshold)
        counts.append(is_above.sum() / n)
        if seed < 30:
            draws = draw_counts(np.random.default_rng(seed), pairs, persons)
            rates = [c[is_above].sum() / c[~pairs.mated].sum() for _, c in zip(range(200), draws, strict=False)]
            spreads.append(np.var(rates))
    assert np.sqrt(np.mean(spreads)) == pytest.approx(np.std(counts), rel=0.12)


def test_persons_without_influence_leave_the_draws_to_the_pairs() -> None:
    # Persons that occur in one pair each: products of pairs with others do not exist, so their share is zero.
    rng = np.random.default_rng(3)
    n = 1000
    mated = np.arange(2 * n) < n
    a = np.concatenate([np.arange(n), n + np.arange(n)])
    b = np.concatenate([np.arange(n), 2 * n + np.arange(n)])
    pairs = PairOrder.of(np.where(mated, 1.0, 0.0) + 0.1 * rng.normal(size=2 * n), mated)
    assert person_share(pairs, Persons.of(mated, (a, b))) == 0


def test_kernels_count_as_plain_numpy_does() -> None:
    rng = np.random.default_rng(5)
    drawn, (a, b) = rng.integers(6, size=50), rng.integers(50, size=(2, 4000))
    mated, weight = a == b, np.where(drawn > 0, drawn - 0.3, 0.0)  # means of 0, below 10 and above
    counts = np.empty(4000, dtype=np.int32)
    kernel, plain = np.random.default_rng(6), np.random.default_rng(6)
    count_pairs(kernel, drawn, weight, a, b, mated, counts)
    expected = drawn[a]
    expected[~mated] = plain.poisson(weight[a[~mated]] * weight[b[~mated]])
    np.testing.assert_array_equal(counts, expected)
    assert kernel.random() == plain.random()  # the next draw, too, is the same
    order, ends = rng.permutation(4000), np.empty(4000, dtype=np.int64)
    number_copies(order, counts, ends)
    np.testing.assert_array_equal(ends, np.cumsum(counts[order]))


@pytest.mark.parametrize("fmr", [0.1, 0.004])
def test_areas_do_not_depend_on_how_many_pairs_are_looked_at_first(fmr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The score discards the most similar non-mated pairs first, so late levels need ever less similar ones.
    rng = np.random.default_rng(7)
    similarity, mated, qualities = realistic(9000, seed=7)
    worst_first = np.where(mated, rng.uniform(-0.5, 0.3, size=9000), -similarity)
    given = {**qualities, "worst first": (worst_first, worst_first)}
    images = np.arange(18000).reshape(2, 9000)

    def draws(n_first: int) -> AreaDraws:
        monkeypatch.setattr("fiqa_ray.core.levels.n_looked_at", lambda n_allowed: n_first)
        return bootstrap_areas(
            similarity, mated, given, fmrs=[fmr], conventions=list(CONVENTIONS), limits=[0.3], images=images, n_draws=4
        )

    few, all_pairs = draws(1), draws(10**6)
    for key, values in all_pairs.draws.items():
        np.testing.assert_array_equal(few.draws[key], values)
    for key, curve in all_pairs.curves.items():
        for name in ("threshold", "fnmr", "n_false_matches"):
            np.testing.assert_array_equal(getattr(few.curves[key], name), getattr(curve, name))


def test_smoothing_adds_noise_of_the_bandwidth_to_every_copy() -> None:
    pairs = PairOrder.of(np.concatenate([[1.0], np.zeros(2000)]), np.arange(2001) == 0)
    sample = Sample(pairs, np.full(2001, 2, dtype=np.int32))
    for units, width in zip(smoothed_units(np.random.default_rng(0), sample, [0.2, 0.3]), (0.2, 0.3), strict=True):
        assert units.similarity.size == units.size == 4000
        assert np.all(np.diff(units.similarity) <= 0)
        assert units.similarity.std() == pytest.approx(width, rel=0.04)
        assert sorted(zip(units.rows.tolist(), units.back.tolist(), strict=True)) == [
            (row, back) for row in range(1, 2001) for back in range(2)
        ]
    # Silverman's rule by hand: 0.9 * 0.5 * 32^-0.2 = 0.9 * 0.5 / 2
    assert bandwidth(np.array([0.0, 1.0] * 16), 32) == pytest.approx(0.225)


# --- floor ------------------------------------------------------------------------------------------------------------


def test_floor_is_exact_for_dasec_and_the_mean_of_orders_for_paper() -> None:
    similarity, mated, qualities = realistic(600, seed=5)
    orders = [(q[:600], q[600:]) for q in random_qualities([f"image{i}" for i in range(1200)], seed=3, n_orders=20)]
    areas = bootstrap_areas(
        similarity, mated, qualities, random_orders=orders, fmrs=[0.1], conventions=["paper", "dasec"], n_draws=0
    )
    paper = np.mean([edc_curve(similarity, mated, *q, fmr=0.1).auc() for q in orders])
    assert areas.interval(RANDOM, ("paper", 0.1)).value == pytest.approx(paper, abs=1e-12)
    threshold = np.sort(similarity[300:])[-31]  # 30 of 300 are allowed
    fnmr = np.mean(similarity[:300] <= threshold)
    assert areas.interval(RANDOM, ("dasec", 0.1)).value == pytest.approx(fnmr, abs=1e-12)


def test_random_qualities_follow_the_image_not_its_position() -> None:
    forward = random_qualities(["a", "b", "c"], seed=1)
    assert forward.shape == (100, 3)
    np.testing.assert_array_equal(random_qualities(["c", "a", "b"], seed=1), forward[:, [2, 0, 1]])
    assert len(np.unique(forward)) == 300
    assert forward.mean() == pytest.approx(0.5, abs=0.06)
    assert not np.array_equal(random_qualities(["a"], seed=2), forward[:, :1])


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_draws": -1}, "n_draws=-1"),
        ({"level": 95}, "level=95"),
        ({"limits": [1.1]}, "limit=1.1"),
        ({"conventions": ["iso"]}, "convention='iso' is unknown"),
        ({"fmrs": [2]}, "fmr=2"),
        ({"qualities": {}}, "no scorer"),
        ({"identities": ([1, 2, 3], [1, 2, 3, 4])}, r"identity_a has shape \(3,\) for 4 pairs"),
        ({"identities": ([1, 2, 1, 2], [1, 2, 1, 1])}, "pair 2 is non-mated but joins identities 1 and 1"),
        ({"identities": ([1, 2, 1, 2], [3, 2, 2, 1])}, "pair 0 is mated but joins identities 1 and 3"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    ones = np.arange(4.0)
    arguments = {"similarity": [1, 1, 0, 0], "mated": [1, 1, 0, 0], "qualities": {"q": (ones, ones)}, "n_draws": 3}
    with pytest.raises(FiqaRayError, match=message):
        bootstrap_areas(**{**arguments, **change})


def test_unknown_names_are_refused() -> None:
    similarity, mated, qualities = realistic(60, seed=0)
    areas = bootstrap_areas(similarity, mated, qualities, fmrs=[0.1], n_draws=2)
    with pytest.raises(UsageError, match=r"scorer 'x' was not bootstrapped .* choose one of true, noisy"):
        areas.interval("x", ("paper", 0.1))
    with pytest.raises(UsageError, match=r"limit=0\.2 was not bootstrapped"):
        areas.interval("true", ("paper", 0.1), 0.2)
