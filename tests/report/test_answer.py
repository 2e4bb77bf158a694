"""The demo's last sentences say what the rows of an evaluation say."""

from dataclasses import replace

import numpy as np

from fiqa_ray.datasets.results import AucRow, DifferenceRow
from fiqa_ray.report.answer import answer_lines, other_results, sign_lines, why_untold

WEAK, STRONG = "weak, regressor on optimized labels", "strong, regressor on optimized labels"


def auc(scorer, area, **more):
    """A row with an area; the fields that nobody reads are 0."""
    return AucRow(
        **{
            "benchmark": "b", "recognizer": "r", "convention": "paper", "fmr": 0.01, "scorer": scorer, "auc": area,
            "auc_low": np.nan, "auc_high": np.nan, "is_own_limit": True, "fmr_achieved": 0, "fnmr_0": 0,
            "discard_limit": 0.95, "auc_normalized": 0, "auc_above_best": 0, "fnmr_at_limit": 0, "n_mated": 1,
            "n_nonmated": 1, "quality_model": "", "method": "", "variant": "", "theta": np.nan, "seed": None, **more,
        }
    )  # fmt: skip


def difference(a, b, value, low, high, p, family):
    method = a.split(",")[0]
    return DifferenceRow(
        "b",
        "r",
        "paper",
        a,
        b,
        value,
        low,
        high,
        fmr=0.01,
        method=method,
        theta=0.3,
        family=family,
        p_holm=p,
        n_draws=2000,
    )


def lines(areas, differences):
    return list(answer_lines(areas, differences))


def test_a_weak_method_gains_and_a_strong_one_does_not():
    areas = [
        auc("weak", 0.150), auc("weak, regressor on prior labels", 0.151), auc(WEAK, 0.120),
        auc("strong", 0.097), auc("strong, regressor on prior labels", 0.099), auc(STRONG, 0.098),
        auc(WEAK, 0.5, convention="other"), auc(WEAK, 0.7, is_own_limit=False),
    ]  # fmt: skip
    text = lines(
        areas,
        [
            difference(WEAK, "weak, regressor on prior labels", -0.031, -0.055, -0.009, 0.01, "unoptimized"),
            difference(WEAK, "weak", -0.030, -0.068, -0.011, 0.01, "baseline"),
            difference(STRONG, "strong, regressor on prior labels", -0.001, -0.01, 0.008, 0.8, "unoptimized"),
        ],
    )
    assert text[0] == "Do optimized labels help? Yes for weak; no clear difference for strong."
    assert text[1] == (
        "  weak (theta 0.3): regressor on its scores 151.0, on optimized labels 120.0: -31.0 [-55.0, -9.0], a clear gain"
    )
    assert text[2] == "    against weak itself, 150.0: -30.0 [-68.0, -11.0], a clear gain"
    assert "scores 99.0, on optimized labels 98.0: -1.0 [-10.0, +8.0], no clear difference" in text[3]
    assert "on b under r, lower is better (FMR 0.01, convention paper); in brackets a 95 % interval" in text[4]
    assert len(text) == 5
    assert other_results(areas).startswith("The report also has 1 other combination")
    assert other_results(areas[:-2]) == ""


def test_a_theta_that_is_given_and_chosen_is_told_once():
    prior, chosen = "weak, regressor on prior labels", "weak, regressor on optimized labels (held out)"
    areas = [auc("weak", 0.150), auc(prior, 0.151), auc(WEAK, 0.120), auc(chosen, 0.120)]
    rows = [difference(scorer, prior, -0.031, -0.055, -0.009, 0.01, "unoptimized") for scorer in (WEAK, chosen)]
    assert len([line for line in lines(areas, rows) if line.startswith("  weak (theta 0.3)")]) == 1


def test_each_recogniser_gives_its_answer():
    prior = "weak, regressor on prior labels"
    areas = [
        auc(name, area, recognizer=r)
        for r, before, after in (("r", 0.151, 0.120), ("other", 0.200, 0.210))
        for name, area in ((prior, before), (WEAK, after))
    ]
    gain = difference(WEAK, prior, -0.031, -0.055, -0.009, 0.01, "unoptimized")
    loss = replace(gain, recognizer="other", difference=0.01, low=-0.01, high=0.03, p_holm=0.9)
    text = lines(areas, [gain, loss])
    assert text[0] == "Do optimized labels help under r? Yes for weak."
    assert "scores 151.0, on optimized labels 120.0: -31.0" in text[1]
    assert text[2] == "Do optimized labels help under other? No clear difference for weak."
    assert "scores 200.0, on optimized labels 210.0: +10.0" in text[3]
    assert "under r and other, lower is better" in text[4]
    assert other_results(areas) == ""


def test_theta_0_optimizes_nothing():
    row = difference(WEAK, "weak, regressor on prior labels", 0.0, 0.0, 0.0, 1.0, "unoptimized")
    text = lines([auc(WEAK, 0.12)], [replace(row, theta=0.0)])
    assert text[0] == "Do optimized labels help? Nothing was optimized for weak (theta is 0)."
    assert text[1] == "  weak (theta 0): the labels are its own scores; regressor on them 120.0"


def test_an_interval_alone_is_not_clear_after_correction():
    rows = [difference(WEAK, "weak", -0.03, -0.05, -0.001, 0.2, "unoptimized")]
    assert lines([auc(WEAK, 0.12)], rows)[0] == "Do optimized labels help? No clear difference for weak."


def test_what_cannot_be_told_is_no_finding():
    """Without an interval, or where the draws are too few: 2 / 201 times 6 comparisons is 0.0597, never below 0.05."""
    row = difference(WEAK, "weak, regressor on prior labels", -0.03, np.nan, np.nan, np.nan, "unoptimized")
    text = lines([auc(WEAK, 0.12)], [replace(row, reason="20 identities are too few")])
    assert text[0] == "Do optimized labels help? Cannot be told for weak."
    assert text[1] == "  cannot be told for weak: 20 identities are too few"
    assert text[2].endswith("-30.0, cannot be told")
    assert "in brackets" not in text[-1]
    row = replace(row, low=-0.05, high=-0.01, p_holm=0.0597, n_draws=200, n_family=6)
    why = "200 draws cannot show p < 0.05 among 6 comparisons: set evaluate.draws to 240 or more"
    assert lines([auc(WEAK, 0.12)], [row])[1] == f"  cannot be told for weak: {why}"
    other = replace(row, method="other", n_undefined=10)  # reasons that differ in a number are one
    assert lines([auc(WEAK, 0.12)], [row, other])[1] == f"  cannot be told for weak, other: 190 to {why}"
    assert why_untold(replace(row, n_draws=240)) == ""  # 6 * 2 / 241 = 0.0498
    assert why_untold(replace(row, n_draws=239))


def test_harm_is_said():
    rows = [difference(WEAK, "weak", 0.03, 0.01, 0.05, 0.001, "unoptimized")]
    assert lines([auc(WEAK, 0.12)], rows)[0] == "Do optimized labels help? They harm weak."


def test_a_job_without_benchmarks_does_not_tell():
    assert "does not tell" in lines([], [])[0]


def test_a_sign_that_nothing_shows_is_told_beside_the_floor():
    areas = [
        auc("weak", 0.150), auc("strong", 0.097), auc("wrong", 0.200, auc_low=0.170), auc("random", 0.160),
        auc("weak", 0.9, convention="other"), auc("strong", 0.170, auc_low=0.165, recognizer="other"),
    ]  # fmt: skip
    beside = "on b its area x 1000 is 150.0, that of random numbers 160.0."
    assert list(sign_lines({"weak": "weak: sign not told", "strong": ""}, areas)) == [f"weak: sign not told; {beside}"]
    (line,) = sign_lines({"strong": "", "wrong": ""}, areas)  # its interval lies above the floor
    assert line.startswith("wrong: random numbers sort better: is a larger score better quality?")
    assert line.endswith("is 200.0, that of random numbers 160.0.")
    assert list(sign_lines({"weak": "weak: sign not told"}, [])) == ["weak: sign not told."]
