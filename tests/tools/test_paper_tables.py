"""Tables of a paper from rows of results: which rows go where, marks, captions, and the three formats."""

import io
import math
from dataclasses import replace

import pandas as pd
import pytest

from fiqa_ray.datasets.results import AucRow, ConventionRow, DifferenceRow, ExclusionRow
from fiqa_ray.errors import UsageError
from fiqa_ray.tools.paper_files import write_tables
from fiqa_ray.tools.paper_tables import Results, choose_point, tables_of, why_missing


def area(method, variant, auc, *, benchmark="LFW", judge="r18", leading=False, limit=0.95, **changes):
    values = {
        "scorer": f"{method}, {variant}", "quality_model": "" if variant == "baseline" else "r18", "method": method,
        "variant": variant, "theta": 0.1 if variant == "optimized" else math.nan, "seed": None, "benchmark": benchmark,
        "recognizer": judge, "convention": "paper", "fmr": 1e-3, "fmr_achieved": 1e-3, "fnmr_0": 0.1,
        "discard_limit": limit, "is_own_limit": limit == 0.95, "auc": auc, "auc_low": auc - 0.001,
        "auc_high": auc + 0.001, "auc_normalized": 1.0, "auc_above_best": 0.0, "fnmr_at_limit": 0.0, "n_mated": 3000,
        "n_nonmated": 2000, "n_draws": 500, "interval": "interval", "is_leading": leading,
    }  # fmt: skip
    return AucRow(**{**values, **changes})


AT_01 = "optimized, theta 0.1"


@pytest.fixture
def results():
    """Two methods on two benchmarks under the recogniser of the labels and another; `slow` is excluded from one."""
    areas = []
    for judge, add in (("r18", 0.0), ("other_r", 0.01)):
        areas += [
            area("fast", "baseline", 0.020 + add, judge=judge),
            area("fast", "unoptimized", 0.019 + add, judge=judge),
            area("fast", "optimized", 0.010 + add, judge=judge, leading=True),
            area("slow", "baseline", 0.030 + add, judge=judge, auc_low=0.0, interval="upper limit"),
            area("slow", "optimized", 0.031 + add, judge=judge),
            area("fast", "baseline", 0.005, judge=judge, benchmark="X_LFW", leading=True),
            area("fast", "optimized", 0.006, judge=judge, benchmark="X_LFW", leading=True),
            area("fast", "optimized", 0.001, judge=judge, limit=0.3),
        ]
    differences = [
        DifferenceRow("LFW", "r18", "paper", "fast, optimized", "fast, baseline", -0.01, -0.012, -0.008, 1e-3, 0.95,
                      family="baseline", p_holm=0.01),
        DifferenceRow("LFW", "r18", "paper", "slow, optimized", "slow, baseline", 0.001, -0.002, 0.004, 1e-3, 0.95,
                      family="baseline", p_holm=0.6),
    ]  # fmt: skip
    convention = ConventionRow(
        "paper", "all", "recomputed", "below", "above", 0.05, "cut", "line", 0.95, math.nan, "fnmr", "the paper's"
    )
    return Results(areas, differences, [ExclusionRow("X_LFW", "slow", "made with it")], {"paper": convention})


def test_rows_columns_and_marks(results):
    """Expected cells are written by hand: areas times 1000, bold, ties, arrows, exclusions, ranks."""
    tables = tables_of(results, choose_point(results, None, None, None))
    assert list(tables) == ["table-1", "table-2", "table-3"]
    first, caption = tables["table-1"]
    shown = {key: [cell.plain() for cell in row] for key, row in zip(first.index, first.to_numpy(), strict=True)}
    assert list(first.columns) == ["LFW", "X_LFW", "mean rank"]
    assert shown == {
        ("r18", "fast", "baseline"): ["20.0 [19.0, 21.0]", "5.0† [4.0, 6.0]", "1.5"],
        ("r18", "fast", AT_01): ["**10.0**↓ [9.0, 11.0]", "6.0† [5.0, 7.0]", "1.5"],
        ("r18", "slow", "baseline"): ["30.0 [≤ 31.0]", "/", ""],
        ("r18", "slow", AT_01): ["31.0 [30.0, 32.0]", "/", ""],
    }
    for part in (
        "FMR 0.001",
        "all discarded",
        "end of each curve",
        "LFW 3,000 + 2,000",
        "500 bootstrap draws of pairs",
        ". Bold: ",
        "†: ",
        "↓: smaller than",
        "/: left out",
    ):
        assert part in caption
    assert "% discarded, the end of each curve" in caption
    assert "chosen" not in caption.lower()
    assert {key[0] for key in tables["table-2"][0].index} == {"other_r"}
    rows = ["baseline", "unoptimized", AT_01, "baseline", AT_01]
    assert [key[2] for key in tables["table-3"][0].index] == 2 * rows  # under both recognisers, as in the paper


def test_a_chosen_theta_and_one_benchmark(results):
    """One row for a theta that is chosen and given, no mean rank of one benchmark, no sign explained that is not there."""
    areas = [r for r in results.areas if r.recognizer == "r18" and r.method == "slow"]
    twice = replace(areas[1], scorer="slow, regressor on optimized labels (theta heldout)")
    alone = Results([*areas, twice], [], [], results.conventions, {("r18", "slow", 0.1)})
    table, caption = tables_of(alone, choose_point(alone, None, None, None))["table-1"]
    assert [key[1:] for key in table.index] == [("slow", "baseline"), ("slow", "optimized, theta 0.1 (chosen)")]
    assert list(table.columns) == ["LFW"]
    assert "theta was chosen on held-out training people" in caption
    assert not any(sign in caption for sign in "†↓↑/")
    assert "bold" not in caption.lower()
    both = [replace(r, is_leading=True) for r in (areas[1], twice)]  # leads alone, under two names
    alone = Results([areas[0], *both], [], [], results.conventions, {("other_r", "slow", 0.1)})
    table = tables_of(alone, choose_point(alone, None, None, None))["table-1"][0]
    assert table.loc[("r18", "slow", AT_01), "LFW"].plain() == "**31.0** [30.0, 32.0]"  # chosen for other labels alone


def test_what_theta_0_repeats_is_shown_once(results):
    at_0 = area("fast", "optimized", 0.019, theta=0.0)  # the area of unoptimized
    results.areas.append(at_0)
    third, caption = tables_of(results, choose_point(results, None, None, None))["table-3"]
    assert [key[1:] for key in third.index if key[0] == "r18"][:3] == [
        ("fast", "baseline"), ("fast", "unoptimized"), ("fast", AT_01),
    ]  # fmt: skip
    assert "with theta 0 the two are the same" in caption
    results.areas[-1] = replace(at_0, auc=0.018)
    third, caption = tables_of(results, choose_point(results, None, None, None))["table-3"]
    assert ("r18", "fast", "optimized, theta 0") in third.index
    assert "with theta 0" not in caption


def test_published_numbers_stand_beside(results):
    record = {"method": "Fast", "variant": "optimized", "fr_model": "R-18", "benchmark": "LFW", "auc_x1000": 9.7}
    first, _ = tables_of(results, choose_point(results, "paper", 1e-3, None), [record])["table-1"]
    cells = {key: cell.plain() for key, cell in first["LFW (published)"].items()}
    assert cells["r18", "fast", AT_01] == "9.7"
    assert cells["r18", "fast", "baseline"] == cells["r18", "slow", AT_01] == ""
    third, _ = tables_of(
        results, choose_point(results, "paper", 1e-3, None), [{**record, "variant": "unoptimized-labels"}]
    )["table-3"]
    assert third.loc[("r18", "fast", "unoptimized"), "LFW (published)"].plain() == "9.7"


def test_an_unknown_operating_point_names_the_known_ones(results):
    with pytest.raises(UsageError, match=r"nothing of convention 'dasec'; there are paper at 0.001"):
        choose_point(results, "dasec", None, None)
    with pytest.raises(UsageError, match=r"up to 0.2; limits of paper are 0.3, 0.95"):
        choose_point(results, None, None, 0.2)
    at_limit = tables_of(results, choose_point(results, None, None, 0.3))["table-1"][0]
    assert [cell.plain() for cell in at_limit["LFW"]] == ["1.0 [0.0, 2.0]"]


def test_files(results, tmp_path):
    point = choose_point(results, None, None, None)
    seconds = {"method": "fast_1", "mean": 3.0, "sd": 0.5, "best_batch": 8, "best_mean": 1.0, "best_sd": 0.1}
    times = {"methods": [seconds], "n_images": 100, "n_warm_up": 9, "device": "cpu", "n_threads": 1, "versions": {}}
    names = write_tables(results, point, str(tmp_path), times=times | {"decode_mean": 1.0, "decode_sd": 0.1})
    assert names == ["table-1", "table-2", "table-3", "table-4", "differences", "long"]
    latex = (tmp_path / "table-4.tex").read_text()
    assert r"fast\_1 & 3.00 $\pm$ 0.50 & 8 & 1.00 $\pm$ 0.10 \\" in latex
    assert "±" not in latex
    assert "3.00 ± 0.50" in (tmp_path / "table-4.md").read_text()
    numbers = pd.read_csv(tmp_path / "table-1.csv")
    assert numbers.loc[1, ["method", "variant", "LFW", "LFW low", "LFW high", "LFW mark"]].tolist() == [
        "fast", AT_01, pytest.approx(10), pytest.approx(9), pytest.approx(11), "best ↓",
    ]  # fmt: skip
    latex = (tmp_path / "differences.tex").read_text()
    assert latex.startswith("% needs \\usepackage{booktabs,longtable}\n")
    assert "Convention paper, FMR 0.001; limit: " in latex
    assert latex.count("Differences of areas") == 1  # the caption is not repeated on each page
    latex = (tmp_path / "table-2.tex").read_text()
    for part in (
        r"\toprule",
        r"\bottomrule",
        r"other\_r",
        r"X\_LFW",
        r"\textbf{20.0}",
        r"\label{tab:table-2}",
        r"$^\dagger$",
    ):
        assert part in latex
    assert "†" not in latex
    assert latex.startswith("% needs ")
    assert "%" not in latex[1:].replace(r"\%", "")
    markdown = (tmp_path / "table-1.md").read_text().splitlines()
    assert "**10.0**↓ [9.0, 11.0]" in markdown[3]
    differences = pd.read_csv(tmp_path / "differences.csv")
    assert differences["difference x 1000"].tolist() == pytest.approx([-10, 1])
    assert "longtable" in (tmp_path / "differences.tex").read_text()
    long = pd.read_csv(io.BytesIO((tmp_path / "long.csv").read_bytes()))
    assert len(long) == len(results.areas)
    assert set(long.columns) >= {"quality_model", "method", "variant", "theta", "seed", "fmr", "auc_low", "n_draws"}


def test_a_table_that_is_left_out_has_its_reason(results):
    """The tables that are not made are those that have a reason."""
    alone = replace(results, areas=[r for r in results.areas if r.variant == "baseline"])
    by_others = replace(results, areas=[r for r in results.areas if r.recognizer != "r18"])
    by_own = replace(results, areas=[r for r in results.areas if r.recognizer == "r18"])
    for rows, missing in (
        (results, []),
        (alone, ["table-2", "table-3"]),
        (by_others, ["table-1"]),
        (by_own, ["table-2"]),
    ):
        point = choose_point(rows, None, None, None)
        assert list(why_missing(rows, point)) == missing
        assert sorted([*tables_of(rows, point), *missing]) == ["table-1", "table-2", "table-3"]


def test_captions_of_a_convention_of_the_users_own_suit_latex(results, tmp_path):
    """LaTeX stops at a bare underscore; a starting FNMR sets the threshold, so there is no FMR to name."""
    own = {"convention": "my_own", "fmr": math.nan}
    rows = Results([replace(r, **own) for r in results.areas], [replace(r, **own) for r in results.differences], [], {})
    write_tables(rows, choose_point(rows, "my_own", None, None), str(tmp_path))
    for name in ("table-1", "differences"):
        latex = (tmp_path / f"{name}.tex").read_text()
        assert r"Convention my\_own, a starting FNMR" in latex
        assert "nan" not in latex
