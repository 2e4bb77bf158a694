"""EDC against published code's output (golden vectors), hand-worked values, slow loops and properties."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from edc_vectors import CASES, TARGETS, same
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_ray.core.edc import EDC, edc_curve, theoretical_best
from fiqa_ray.core.verification import threshold_at_fmr
from fiqa_ray.errors import FiqaRayError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:fmr=.* allows none of the:UserWarning")


def curve_of(name: str, fmr: str, convention: str) -> EDC:
    case = CASES[name]["inputs"]
    arrays = (case[key] for key in ("similarity", "genuine", "quality_1", "quality_2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one case has equal qualities on purpose
        return edc_curve(*arrays, fmr=float(fmr), convention=convention)


# --- golden vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fmr"), TARGETS)
def test_paper_convention_equals_the_vectors(name: str, fmr: str) -> None:
    expected = CASES[name]["targets"][fmr]["recomputed_below"]
    edc = curve_of(name, fmr, "paper")
    n_pairs = CASES[name]["n_pairs"]
    assert len(edc.fnmr) == len(expected["levels"]) == 20
    for k, level in enumerate(expected["levels"]):
        assert edc.discard_fraction[k] == k / 20
        assert edc.n_mated[k] + edc.n_nonmated[k] == n_pairs - level["discard_count"]
        assert (edc.n_mated[k], edc.n_nonmated[k]) == (level["n_genuine"], level["n_impostor"])
        assert edc.n_false_nonmatches[k] == (level.get("false_non_matches") or 0)
        assert same(edc.threshold[k], level["threshold"])
        assert same(edc.fnmr[k], level["fnmr"])
    assert same(edc.auc(), expected["auc_trapezoid_0_0.95"])


@pytest.mark.parametrize(("name", "fmr"), [t for t in TARGETS if "magface" in CASES[t[0]]["targets"][t[1]]])
def test_paper_convention_equals_the_magface_script(name: str, fmr: str) -> None:
    public = CASES[name]["targets"][fmr]["magface"]
    values = public["fnmr"]
    assert len(values) >= 18
    # Where few non-mated pairs are left the script stops appending.
    np.testing.assert_allclose(curve_of(name, fmr, "paper").fnmr[: len(values)], values, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "fmr"), TARGETS)
def test_nearest_convention_equals_cr_fiqa(name: str, fmr: str) -> None:
    expected = CASES[name]["targets"][fmr]["crfiqa"]
    edc = curve_of(name, fmr, "nearest")
    checked = 0
    for k, level in enumerate(expected["levels"]):
        assert (edc.n_mated[k], edc.n_nonmated[k]) == (level["n_genuine"], level["n_impostor"])
        if level["status"] != "ok":  # the public code divides by zero or returns an artefact: undefined here
            assert math.isnan(edc.fnmr[k])
            assert math.isnan(edc.threshold[k])
        elif not level.get("nearest_tie"):  # in a tie the public code's rounding noise decides
            assert same(edc.threshold[k], level["threshold"])
            assert same(edc.fnmr[k], level["fnmr"])
            checked += 1
    assert checked
    if all(level["status"] == "ok" and not level.get("nearest_tie") for level in expected["levels"]):
        assert same(edc.auc(), expected["auc_trapezoid_0_0.95"])
        assert same(edc.auc(0.8), expected["auc_trapezoid_0_0.80"])


@pytest.mark.parametrize(("name", "fmr"), TARGETS)
def test_dasec_convention_equals_the_public_code(name: str, fmr: str) -> None:
    expected = CASES[name]["targets"][fmr]["dasec_strict"]
    strict = CASES[name]["targets"][fmr]["thresholds"]["strict"]
    edc = curve_of(name, fmr, "dasec")
    n_mated = CASES[name]["n_genuine"]
    assert (n_mated - edc.n_mated).tolist() == [*expected["discard_counts"], n_mated]
    assert edc.n_false_nonmatches.tolist() == [*expected["error_counts"], 0]
    if "error_fractions" in expected:
        np.testing.assert_allclose(edc.discard_fraction, expected["discard_fractions"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(edc.fnmr, expected["error_fractions"], rtol=0, atol=1e-12)
    assert same(edc.fnmr[0], expected["error_at_zero_discard"])
    assert np.all(edc.threshold == strict["value"])
    assert same(edc.fmr_achieved, strict["achieved_fmr"])
    inputs = CASES[name]["inputs"]
    assert threshold_at_fmr(inputs["similarity"], inputs["genuine"], float(fmr)) == strict["value"]
    for limit, area in expected["pauc"].items():
        assert same(edc.auc(float(limit)), area["raw"])
        assert same(edc.best_auc(float(limit)), area["area_under_theoretical_best"])


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_hand_case() -> None:
    # 20 pairs, two mated errors at FMR 0.1 with qualities 0.05 (worst) and 0.15 (third worst), one non-mated between.
    dasec = curve_of("hand20", "0.1", "dasec")
    assert dasec.fnmr[:4] == pytest.approx([0.2, 1 / 9, 0, 0])
    assert dasec.auc(0.3) == pytest.approx(0.1 * 0.2 + 0.1 / 9)
    assert dasec.best_auc() == pytest.approx(0.02)
    # ceil(0.1 * 10) - 1 = 0 false matches: the threshold is the largest non-mated similarity left, 0.41 until the
    # pair of quality 0.10 goes at level 2, then 0.36.
    paper = curve_of("hand20", "0.1", "paper")
    assert paper.threshold[:3].tolist() == [0.41, 0.41, 0.36]
    assert paper.fnmr[:4] == pytest.approx([2 / 10, 1 / 9, 1 / 9, 0])
    assert paper.auc(0.1) == pytest.approx(0.05 * (0.1 + 1 / 9 + 1 / 18))
    assert paper.auc(0.075) == pytest.approx(0.05 * (0.1 + 1 / 18) + 0.025 / 9)  # straight line inside a cell
    # Levels 18 and 19 hold no non-mated pair.
    assert math.isnan(paper.auc())
    assert paper.defined_limit == 0.85
    assert paper.auc(paper.defined_limit) == pytest.approx(0.05 * (0.1 + 2 / 9))
    assert dasec.defined_limit == dasec.end == 1


def test_theoretical_best_is_the_triangle_cut_at_the_limit() -> None:
    assert theoretical_best(0.4, 1.0) == pytest.approx(0.08)
    assert theoretical_best(0.4, 0.1) == pytest.approx((0.4 + 0.3) / 2 * 0.1)


def test_target_rates_count_in_decimal() -> None:
    # 0.29 * 100 is 28.999999999999996 in binary; 29 false matches are allowed, 28 are strictly below.
    similarity = np.append(np.arange(100.0), 1000.0)
    mated = np.append(np.zeros(100), 1)
    ones = np.ones(101)
    with pytest.warns(UserWarning, match="all 101 pairs have quality 1"):
        assert edc_curve(similarity, mated, ones, ones, fmr=0.29, convention="dasec").threshold[0] == 70
    with pytest.warns(UserWarning, match="input order"):
        paper = edc_curve(similarity, mated, ones, ones, fmr=0.29)
    assert paper.threshold[0] == 71
    assert paper.fmr_achieved == 0.28
    assert paper.n_tied == 101


# --- slow second implementation ---------------------------------------------------------------------------------------


def slow_curve(s: list, g: list, qa: list, qb: list, fmr: float, convention: str) -> list[tuple]:
    """(threshold, mated left, non-mated left, errors) per level, straight from the definitions."""
    pairs = sorted(((min(a, b), i) for i, (a, b) in enumerate(zip(qa, qb, strict=True))))
    target = Fraction(str(fmr))
    levels = []
    if convention == "dasec":
        impostors = sorted((x for x, m in zip(s, g, strict=True) if not m), reverse=True)
        t = impostors[math.floor(target * len(impostors))]
        mated = [(q, s[i]) for q, i in pairs if g[i]]
        for q in sorted({q for q, _ in mated}):
            kept = [x for other, x in mated if other >= q]
            levels.append((t, len(kept), len(impostors), sum(x <= t for x in kept)))
        return [*levels, (t, 0, len(impostors), 0)]
    for k in range(20):
        kept_rows = [i for _, i in pairs][k * len(s) // 20 :]
        mated = [s[i] for i in kept_rows if g[i]]
        impostors = sorted((s[i] for i in kept_rows if not g[i]), reverse=True)
        if not mated or not impostors:
            levels.append((math.nan, len(mated), len(impostors), 0))
            continue
        if convention == "paper":
            t = impostors[max(0, math.ceil(target * len(impostors)) - 1)]
        else:
            distance = {
                t: abs(Fraction(sum(x >= t for x in impostors), len(impostors)) - target) for t in mated + impostors
            }
            t = min(t for t, d in distance.items() if d == min(distance.values()))
        levels.append((t, len(mated), len(impostors), sum(x <= t for x in mated)))
    return levels


def assert_equals_slow(edc: EDC, arrays: list[list]) -> None:
    slow = slow_curve(*arrays, edc.fmr, edc.convention.name)
    np.testing.assert_array_equal(edc.threshold, [level[0] for level in slow])
    np.testing.assert_array_equal(edc.n_mated, [level[1] for level in slow])
    np.testing.assert_array_equal(edc.n_nonmated, [level[2] for level in slow])
    np.testing.assert_array_equal(edc.n_false_nonmatches, [level[3] for level in slow])


# Few distinct values, so that ties of similarity and quality are common.
pair = st.tuples(st.integers(-8, 8), st.booleans(), st.integers(0, 9), st.integers(0, 9))
pair_lists = st.lists(pair, min_size=2, max_size=70).filter(lambda p: len({kind for _, kind, _, _ in p}) == 2)
rates = st.sampled_from([0.001, 0.05, 0.1, 0.125, 0.29, 0.5, 0.9])


@pytest.mark.filterwarnings("ignore:all .* pairs have quality")
@pytest.mark.parametrize("convention", ["paper", "nearest", "dasec"])
@given(pairs=pair_lists, fmr=rates)
@settings(max_examples=120, deadline=None)
def test_equals_slow_loops(pairs: list[tuple], fmr: float, convention: str) -> None:
    arrays = [list(column) for column in zip(*pairs, strict=True)]
    assert_equals_slow(edc_curve(*arrays, fmr=fmr, convention=convention), arrays)


def test_search_for_the_threshold_beyond_the_first_look() -> None:
    # All of the most similar non-mated pairs have the worst quality: every level must look deeper into the list.
    rng = np.random.default_rng(5)
    similarity = np.sort(rng.uniform(size=1200))[::-1]
    mated = np.arange(1200) % 6 == 0
    quality = np.arange(1200.0) + rng.uniform(size=1200)
    arrays = [similarity.tolist(), mated.tolist(), quality.tolist(), quality.tolist()]
    assert_equals_slow(edc_curve(*arrays, fmr=0.01), arrays)


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["paper", "nearest", "dasec"])
@pytest.mark.parametrize("seed", range(3))
def test_invariances(seed: int, convention: str) -> None:
    rng = np.random.default_rng(seed)
    n = 400
    mated = rng.permutation(np.arange(n) < 150)
    quality_a, quality_b = rng.uniform(size=(2, n))
    similarity = mated * np.minimum(quality_a, quality_b) + 0.4 * rng.normal(size=n)

    def fnmr(*arrays: np.ndarray) -> list[float]:
        return edc_curve(*arrays, fmr=0.02, convention=convention).fnmr.tolist()

    base = fnmr(similarity, mated, quality_a, quality_b)
    assert fnmr(similarity, mated, quality_b, quality_a) == base
    assert fnmr(similarity, mated, np.exp(5 * quality_a), np.exp(5 * quality_b)) == base
    assert fnmr(np.arctan(similarity), mated, quality_a, quality_b) == base
    shuffle = rng.permutation(n)
    assert fnmr(*(array[shuffle] for array in (similarity, mated, quality_a, quality_b))) == base


# --- mistakes ---------------------------------------------------------------------------------------------------------

GOOD = ([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8])


@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        (0, [0.9, math.nan, 0.8, 0.2], r"similarity\[1\] is nan"),
        (2, [0.1, 0.2, math.inf, math.nan], r"quality_a\[2\] is inf \(2 of 4 values"),
        (3, [0.1, 0.2, 0.3], "quality_b has 3 values for 4 pairs"),
        (1, [1, 0, 2, 0], r"mated\[2\] is .*2"),
        (1, [0, 0, 0, 0], "no mated pair among the 4 pairs"),
        (1, [1, 1, 1, 1], "no non-mated pair among the 4 pairs"),
        (1, [1, 0, 1], "mated has shape"),
    ],
)
def test_unusable_arrays_are_refused(place: int, values: list, message: str) -> None:
    arrays = [*GOOD]
    arrays[place] = values
    with pytest.raises(FiqaRayError, match=message):
        edc_curve(*arrays)


@pytest.mark.parametrize("fmr", [0, 1, -0.1, 1.5, math.nan])
def test_impossible_rates_are_refused(fmr: float) -> None:
    with pytest.raises(UsageError, match=f"fmr={fmr}"):
        edc_curve(*GOOD, fmr=fmr)


def test_unknown_convention_and_limits_are_refused() -> None:
    with pytest.raises(UsageError, match=r"convention='iso' is unknown: choose one of paper, nearest, dasec"):
        edc_curve(*GOOD, convention="iso")
    edc = edc_curve(*GOOD)
    for limit in (0, 0.96, -1, math.nan):
        with pytest.raises(UsageError, match=f"limit={limit}"):
            edc.auc(limit)


def test_too_few_nonmated_pairs_for_the_rate_gives_rate_zero() -> None:
    with pytest.warns(UserWarning, match=r"fmr=0\.001 allows none of the 2 non-mated pairs"):
        edc = edc_curve(*GOOD, fmr=1e-3, convention="dasec")
    assert edc.fmr_achieved == 0
    assert edc.fnmr.tolist() == [0, 0, 0]


def test_a_curve_draws_itself_and_prints_as_one_line():
    import matplotlib as mpl

    mpl.use("Agg")
    rng = np.random.default_rng(0)
    mated = np.arange(400) % 2 == 0
    curves = [
        edc_curve(rng.normal(size=400) + 2 * mated, mated, rng.random(400), rng.random(400), fmr=0.05, convention=name)
        for name in ("paper", "dasec")
    ]
    axes = curves[0].plot(label="mine")
    assert curves[1].plot(axes) is axes
    for line, curve in zip(axes.get_lines(), curves, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([curve.discard_fraction, curve.fnmr], axis=1))
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0] == f"mine: {1000 * curves[0].auc():.1f}"
    assert [line.get_drawstyle() for line in axes.get_lines()] == ["default", "steps-post"]
    assert repr(curves[0]).startswith("<EDC paper, FMR 0.05: area 0.")
    assert "200 mated and 200 non-mated pairs" in repr(curves[0])
    mpl.pyplot.close("all")
