"""Conventions by their choices: published values, a port of pmf's script with its own library's rules, hand-worked cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from edc_vectors import CASES, TARGETS, same

from fiqa_ray.core.conventions import CONVENTIONS, Convention, changed, stored_limits
from fiqa_ray.core.edc import EDC, edc_curve
from fiqa_ray.errors import UsageError

PAUC = json.loads((Path(__file__).parents[1] / "golden" / "pauc_checks.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore:all .* pairs have quality", "ignore:fmr=.* allows none of the")


def curve(name: str, fmr: float, convention: Convention) -> EDC:
    case = CASES[name]["inputs"]
    return edc_curve(
        *(case[key] for key in ("similarity", "genuine", "quality_1", "quality_2")), fmr=fmr, convention=convention
    )


@pytest.mark.parametrize(("name", "fmr"), TARGETS)
def test_one_choice_changed_equals_the_vectors(name: str, fmr: str) -> None:
    """At most the rate instead of below it; one threshold instead of one per level; steps instead of lines."""
    expected = CASES[name]["targets"][fmr]
    at_most = curve(name, float(fmr), changed("a", "paper", count="at_most"))
    for k, level in enumerate(expected["recomputed_at_most"]["levels"]):
        assert same(at_most.threshold[k], level["threshold"])
        assert same(at_most.fnmr[k], level["fnmr"])
        if level["threshold"] is not None:
            assert at_most.n_allowed[k] == level["allowed_false_matches"]
    assert same(at_most.auc(), expected["recomputed_at_most"]["auc_trapezoid_0_0.95"])

    published = expected["fixed_threshold_all_pairs"]
    fixed = curve(name, float(fmr), changed("f", "paper", count="at_most", threshold="fixed"))
    levels = [level for level in published["levels"] if level["n_genuine"] and level["n_impostor"]]
    for k, level in enumerate(levels):
        assert (fixed.n_mated[k], fixed.n_nonmated[k]) == (level["n_genuine"], level["n_impostor"])
        assert (fixed.n_false_nonmatches[k], fixed.n_false_matches[k]) == (
            level["false_non_matches"],
            level["false_matches"],
        )
        assert same(fixed.fnmr[k], level["fnmr"])
    if len(levels) == 20:
        assert same(fixed.auc(), published["auc_trapezoid_0_0.95"])
        stepped = curve(name, float(fmr), changed("s", "paper", count="at_most", threshold="fixed", curve="step"))
        assert same(stepped.auc(), published["auc_left_step_0_0.95"])


@pytest.mark.parametrize("name", [name for name in CASES if "empty" not in name])
def test_starting_errors_equal_dasec(name: str) -> None:
    """Its threshold is a quantile of the mated similarities, at which a pair is still accepted; the FMR-EDC likewise."""
    for expected in CASES[name]["dasec_starting_error"]:
        edc = curve(name, 0.1, changed("d", "dasec", accept="at", starting_fnmr=expected["starting_error"]))
        assert edc.fmr is None
        assert abs(edc.threshold[0] - expected["threshold"]) <= 1e-12
        assert edc.fnmr[0] == pytest.approx(expected["error_at_zero_discard"], abs=1e-12)
        if "error_counts" in expected:  # large cases list areas alone
            assert edc.n_false_nonmatches.tolist() == [*expected["error_counts"], 0]
        for limit, area in expected["pauc"].items():
            assert same(edc.auc(float(limit)), area["raw"])
    expected = CASES[name].get("dasec_fm_edc")
    if expected is None or "tie" in name:  # of equal similarities the rate allows all or none
        return
    # as many false matches allowed as its threshold makes: the same pairs are wrong
    edc = curve(name, expected["error_at_zero_discard"], changed("m", "dasec", pool="nonmated"))
    assert edc.convention.error == "fmr"
    assert edc.fnmr[0] == expected["error_at_zero_discard"]
    if "error_counts" in expected:
        assert edc.n_false_matches.tolist() == [*expected["error_counts"], 0]
    for limit, area in expected["pauc"].items():
        assert same(edc.auc(float(limit)), area["raw"])


def test_further_published_values_and_their_normalisation() -> None:
    columns = ("similarity", "mated", "quality_a", "quality_b")
    arrays = [[pair[c] for pair in PAUC["pairs"]] for c in columns]
    for key, expected in PAUC["fraunhofer"].items():
        edc = edc_curve(*arrays, fmr=float(key.removeprefix("fmr_")), convention="nearest")
        np.testing.assert_allclose(edc.fnmr, expected["fnmr"], rtol=0, atol=1e-12)
        assert same(edc.auc(), expected["auc_trapezoid_0_to_0.95"])
    for limit, expected in PAUC["normalised"].items():
        edc = edc_curve(*arrays, fmr=0.1, convention="nearest")
        share = edc.auc(float(limit)) / (edc.fnmr[0] * float(limit))
        assert same(share, expected["trapezoid_divided_by_start_value_times_limit"])
        stepped = edc_curve(*arrays, fmr=0.1, convention=changed("s", "nearest", curve="step"))
        assert same(stepped.auc(float(limit)), expected["raw_step"])
    for error in (0.05, 0.2):
        expected = PAUC["dasec"][f"starting_error_{error}"]
        edc = edc_curve(*arrays, convention=changed("d", "dasec", accept="at", starting_fnmr=error))
        np.testing.assert_allclose(edc.fnmr, expected["error_fractions"], rtol=0, atol=1e-12)
        for limit in (0.2, 0.3, 1.0):
            above = edc.auc(limit) - edc.best_auc(limit)
            assert same(above, expected[f"limit_{limit}"]["pauc_minus_best"])
    expected = PAUC["dasec"]["fixed_threshold_fmr_0.1"]
    assert same(edc_curve(*arrays, fmr=0.1, convention="dasec").auc(0.3), expected["limit_0.3"]["raw"])


def published_pmf(similarity: np.ndarray, mated: np.ndarray, worst: np.ndarray, fmr: float) -> list[float]:
    """FNMR of face-uncertainty-pytorch's script; `worst` is the larger uncertainty of each pair.

    Its library pyeer rejects similarities below a threshold, takes each distinct similarity as a threshold, and of those
    whose FMR is nearest to the target the lowest.
    """

    def operating_points(s: np.ndarray, is_mated: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        thresholds = np.unique(s)
        fnmr = np.array([(s[is_mated] < t).sum() for t in thresholds]) / is_mated.sum()
        rates = np.array([(s[~is_mated] >= t).sum() for t in thresholds]) / (~is_mated).sum()
        return thresholds, rates, fnmr

    thresholds, rates, fnmr = operating_points(similarity, mated)
    first = int(np.argmin(abs(rates - fmr)))
    fixed, result = thresholds[first], [fnmr[first]]
    for k in range(1, 100):
        kept = worst <= np.percentile(worst, 100 - k)
        thresholds, _, fnmr = operating_points(similarity[kept], mated[kept])
        result.append(fnmr[np.argmin(abs(thresholds - fixed))])
    return result


@pytest.mark.parametrize("n_values", [8, 10**6])
def test_pmf_equals_a_port_of_the_published_script(n_values: int) -> None:
    rng = np.random.default_rng(n_values)
    n = 1300  # k * (n - 1) / 100 is no whole number: there rounding noise decides in the published script
    mated = rng.permutation(np.arange(n) < 700)
    quality = np.round(rng.random((2, n)) * n_values)
    similarity = np.round(mated * quality.min(axis=0) / n_values + 0.4 * rng.normal(size=n), 3)
    edc = edc_curve(similarity, mated, *quality, fmr=0.013, convention="pmf")
    expected = published_pmf(similarity, mated, -quality.min(axis=0), 0.013)
    np.testing.assert_allclose(edc.fnmr, expected, rtol=0, atol=1e-12)
    assert edc.auc() == pytest.approx(np.trapezoid(expected, dx=0.01), abs=1e-12)


def test_nist_by_hand() -> None:
    """Ten images in five mated and five non-mated pairs: what discarding images leaves, and FNMR set to start with."""
    images = ([0, 2, 4, 6, 8, 1, 3, 5, 7, 9], [1, 3, 5, 7, 9, 2, 4, 6, 8, 0])
    quality = np.array([5, 0, 9, 8, 7, 6, 1, 2, 3, 4.0])
    similarity = [0.1, 0.5, 0.6, 0.2, 0.9, 0.0, 0.3, -0.1, -0.2, -0.3]
    mated = np.arange(10) < 5
    choice = changed("n", "nist", step=0.1, starting_fnmr=0.25)
    edc = edc_curve(similarity, mated, quality[images[0]], quality[images[1]], convention=choice, images=images)
    # mated similarities 0.1 0.2 0.5 0.6 0.9: the quantile 0.25 is 0.2, which is accepted
    assert edc.threshold[0] == pytest.approx(0.2)
    # image 1 goes first, with its pairs (0, 1) and (1, 2); then 6 with (6, 7) and (5, 6); then 7 with (7, 8)
    assert edc.n_mated[:5].tolist() == [5, 4, 3, 3, 2]
    assert edc.n_nonmated[:5].tolist() == [5, 4, 3, 2, 2]
    assert edc.n_false_nonmatches[:3].tolist() == [1, 0, 0]
    assert edc.fnmr[0] == 0.2
    assert edc.at(0.15) == 0
    with pytest.raises(UsageError, match="discards images needs images"):
        edc_curve(similarity, mated, quality[images[0]], quality[images[1]], convention="nist")


@pytest.mark.parametrize(
    ("like", "choices", "message"),
    [
        ("paper", {"step": 0.3}, "step=0.3 must be"),
        ("paper", {"step": None}, "give pool mated or nonmated, and curve step"),
        ("paper", {"pool": "mated"}, "give threshold fixed"),
        ("paper", {"starting_fnmr": 0.1}, "sets one threshold"),
        ("pmf", {"count": "below"}, "nearest_left goes with count nearest"),
        ("iso", {}, "convention='iso' is unknown"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(like: str, choices: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        changed("mine", like, **choices)


def test_limits_that_are_stored() -> None:
    assert stored_limits(CONVENTIONS["paper"], [0.3, 0.33, 1.0]) == sorted([*(k / 20 for k in range(1, 20)), 0.33])
    assert stored_limits(CONVENTIONS["dasec"], [])[-1] == 1.0
    assert len(stored_limits(CONVENTIONS["nist"], [0.01])) == 99
    coarse = changed("mine", "nist", step=0.05)  # nist is read at 1 % and 5 %: the first is no level any more
    assert stored_limits(coarse, []) == [0.01, *(k / 20 for k in range(1, 20))]
    assert (
        "discarded in steps of 0.05; threshold recomputed, FMR below, pairs accepted above it"
        in CONVENTIONS["paper"].describe()
    )
