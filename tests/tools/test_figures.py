"""Figures of a paper: what stands in them, rates at thresholds by hand, bands by the binomial law, names of files."""

import math
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.stats import binom

from fiqa_ray.core.bootstrap import bootstrap_areas
from fiqa_ray.core.intervals import Errors
from fiqa_ray.datasets.cells import StoredCell
from fiqa_ray.datasets.judgement import Judgement
from fiqa_ray.datasets.results import BandRow, ConventionRow, EdcLine, ScorerKey
from fiqa_ray.report.paper_figures import (
    DetCurve,
    Similarities,
    det_figure,
    edc_figure,
    faces_figure,
    files_of,
    labels_figure,
    mean_rank_figure,
    quality_figure,
    similarity_figure,
)
from fiqa_ray.tools.figures import _det_curve, _file_name

PAPER = ConventionRow("paper", "all", "recomputed", "below", "above", 0.05, "cut", "line", 0.95, math.nan, "fnmr", "")


def line(method: str, variant: str, n_allowed: list[int]) -> EdcLine:
    levels = np.array([0.0, 0.05, 0.1])
    counts = np.array([60, 57, 54])
    name = method if variant in ("baseline", "given") else f"{method}, {variant}"
    return EdcLine(
        name, "", method, variant, math.nan, None, "lfw", "r18", "paper", 0.1,
        levels, np.array([0.5, 0.4, 0.3]), levels, counts, counts, counts, np.array(n_allowed), counts,
    )  # fmt: skip


def texts(figure) -> list[str]:
    """The words of a figure's SVG; its PDF is checked to be one."""
    files = files_of(figure)
    assert files["pdf"].startswith(b"%PDF")
    return re.findall(r"<text[^>]*>([^<]*)</text>", files["svg"].decode())


@pytest.mark.slow
def test_curves_stand_in_a_panel_per_method_with_one_legend() -> None:
    lines = [line(m, v, [6, 5, 5]) for m in ("magface", "$erfiq") for v in ("baseline", "optimized")]
    bands = [
        BandRow("magface", "", "magface", "baseline", math.nan, None, "lfw", "r18", "paper", 0.1, a, a + 0.05, 0.2, 0.6)
        for a in (0.0, 0.05)
    ]
    shown = texts(edc_figure(lines, bands, PAPER, [0.05]))
    for text in ("magface", "$erfiq", "baseline", "optimized", "allowed false matches change", "Discarded pairs [%]"):
        assert shown.count(text) == 1, text
    assert "allowed false matches change" not in texts(edc_figure([line("a", "given", [6, 6, 6])], [], PAPER))
    # scores without variants share a panel, and their names are the legend
    assert {"a", "b"} <= set(texts(edc_figure([line(m, "given", [6, 6, 6]) for m in "ab"], [], PAPER)))
    once, again = (files_of(edc_figure(lines, bands, PAPER)) for _ in range(2))
    assert once == again


def test_error_rates_of_a_det_curve_by_hand() -> None:
    row = Similarities("r18", np.array([0.2, 0.6, 0.7, 0.9]), np.array([0.1, 0.2, 0.3, 0.6, 0.65]), {0.2: 0.6})
    curve = _det_curve(row)
    rates = dict(zip(curve.fmr.round(9).tolist(), curve.fnmr.tolist(), strict=True))
    # above 0.6 lie 1 of 5 non-mated similarities; 0.2 and 0.6 of 4 mated ones do not
    assert rates[0.2] == 0.5
    assert curve.points == {0.2: (pytest.approx(0.2), 0.5)}
    assert rates[0.8] == 0.0  # threshold 0.1: nothing mated is rejected
    assert np.all(np.diff(curve.fmr) >= 0)
    assert {"r18", "FMR", "FNMR"} <= set(texts(det_figure([curve])))


def test_bands_hold_the_binomial_law() -> None:
    # One quality for all: the rate of each stretch is FNMR, which a resample draws from a binomial law.
    rng = np.random.default_rng(1)
    mated = np.arange(3400) < 400
    similarity = np.where(mated, np.where(rng.uniform(size=3400) < 0.1, -1.0, 1.0), 0.0)
    ones, cell = np.ones(3400), ("dasec", 1e-3)
    limits = [0.05, 0.1, 0.5, 1.0]
    areas = bootstrap_areas(
        similarity, mated, {"flat": (ones, ones)}, conventions=["dasec"], limits=limits, n_draws=2000
    )
    n_wrong = int((similarity[:400] < 0).sum())
    stored = StoredCell(
        areas.curves["flat", cell], {x: areas.draws["flat", cell, x] for x in limits}, Errors(1e-3, n_wrong), 400, 3000,
        0, "pairs", {},
    )  # fmt: skip

    def bands(cell_of_score: StoredCell) -> list[BandRow]:
        key = ScorerKey("flat", "", "flat", "given", math.nan, None)
        return Judgement("b", "r", {"flat": key}, {("flat", cell): cell_of_score}, [], 2000, 0, ()).band_rows()

    rows = bands(stored)
    assert [(r.discard_from, r.discard_to) for r in rows] == [(0, 0.05), (0.05, 0.1), (0.1, 0.5), (0.5, 1)]
    expected = binom.ppf([0.025, 0.975], 400, n_wrong / 400) / 400
    for row in rows:
        assert [row.low, row.high] == pytest.approx(expected, abs=1.01 / 400)
    few = StoredCell(**{**vars(stored), "errors": Errors(1e-3, 3)})
    assert bands(few) == []  # too few errors for an interval


@pytest.mark.slow
def test_histograms_labels_ranks_and_faces_name_what_they_show() -> None:
    rng = np.random.default_rng(0)
    row = Similarities("r18", rng.uniform(size=50), rng.uniform(size=50), {0.1: 0.9, 0.2: 0.8})
    assert {"same person", "threshold at FMR 0.1", "threshold at FMR 0.2"} <= set(texts(similarity_figure([row])))
    scores = rng.uniform(size=60)
    assert {"magface", "Quality"} <= set(texts(quality_figure({"magface": scores, "nothing": scores * np.nan})))
    labels = dict.fromkeys(("a1", "a2", "a3", "a4"), (scores, scores**2))
    assert {*labels, "Prior label", "Optimized label"} <= set(texts(labels_figure(labels)))
    ranks = {"r18": {"magface": 1.0, "pcnet": 2.0}, "r50": {"magface": 2.0, "pcnet": 1.0}}
    assert {"magface", "pcnet", "r18", "r50"} <= set(texts(mean_rank_figure(ranks)))
    encoded = [cv2.imencode(ending, np.full((8, 8, 3), 90, np.uint8))[1].tobytes() for ending in (".png", ".jpg")]
    assert {"magface", "0–50 %", "50–100 %"} <= set(texts(faces_figure({"magface": encoded, "none": []})))


def test_names_of_files_are_plain() -> None:
    assert _file_name("edc", "cfp fp/2", "my_r$18") == "edc-cfp-fp-2-my-r-18"


def test_a_recogniser_without_errors_has_a_figure_that_says_so() -> None:
    """Log axes without a single point would end in an error of matplotlib."""
    curve = DetCurve("perfect", np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]), {0.01: (0.0, 0.0)})
    assert "no threshold makes errors of both kinds" in texts(det_figure([curve]))


def test_two_thetas_of_a_method_are_told_apart() -> None:
    lines = [line("fast", "baseline", [5, 5, 5]), line("fast", "unoptimized", [5, 5, 5])]
    lines += [
        replace(line("fast", "optimized", [5, 5, 5]), theta=theta, scorer=f"fast, theta {theta}")
        for theta in (0.3, 0.05)
    ]
    figure = edc_figure(lines, [], PAPER)
    curves = [c for c in figure.axes[0].get_lines() if len(c.get_xdata()) == 3]
    assert len({(c.get_color(), c.get_marker()) for c in curves}) == len(lines)
    assert {"baseline", "unoptimized", "optimized, theta 0.05", "optimized, theta 0.3"} <= set(texts(figure))
