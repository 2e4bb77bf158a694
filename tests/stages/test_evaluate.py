"""The evaluate stage: rows that follow from pairs and scores alone, families of comparisons, persons."""

import re
import uuid
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from fiqa_ray.config import EvaluateSettings
from fiqa_ray.core.bootstrap import bootstrap_areas, bootstrap_cells
from fiqa_ray.core.conventions import cells_of
from fiqa_ray.core.edc import edc_curve
from fiqa_ray.core.intervals import Errors
from fiqa_ray.datasets.cells import StoredCell, read_cell
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.judgement import Judgement, correct_families
from fiqa_ray.datasets.results import AucRow, DifferenceRow, ScorerKey
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.report.render import verdict
from fiqa_ray.stages.cells import CellShard, run_shard
from fiqa_ray.stages.compare import check_rates
from fiqa_ray.stages.evaluate import REFERENCES, comparisons_of

N_PERSONS, N_EACH = 120, 8


def rows_of_benchmark(
    order: np.ndarray, resample: str = "auto", identity_of=lambda name: name[:4], short: bool = False
) -> tuple[list[AucRow], list[DifferenceRow]]:
    """Rows of one benchmark whose images are listed in ``order``; its pairs always stand in the same order."""
    rng = np.random.default_rng(2)
    names = np.array([f"p{i // N_EACH:03d}/{i % N_EACH}" for i in range(N_PERSONS * N_EACH)])
    utility = rng.beta(5, 2, size=names.size)
    person, k = np.repeat(np.arange(N_PERSONS), 5), np.arange(600)
    # mated: image 0 with images 1 to 5 of the person; non-mated: image 6 with image 7 of another person
    a = np.concatenate([person * N_EACH, person * N_EACH + 6])
    b = np.concatenate([person * N_EACH + 1 + k % 5, (person + 1 + k % 119) % N_PERSONS * N_EACH + 7])
    mated = np.arange(1200) < 600
    similarity = np.where(mated, 0.5 * np.minimum(utility[a], utility[b]), 0) + 0.1 * rng.normal(size=1200)
    scores = {"sharp": utility + 0.05 * rng.normal(size=names.size), "blunt": utility + rng.normal(size=names.size)}
    scores["oracle"] = utility
    if short:  # images 6 and 7 are the worst, so that the non-mated pairs go first
        scores["short"] = utility - 2 * (np.arange(names.size) % N_EACH >= 6)
    place = np.argsort(order)
    settings = EvaluateSettings(fmr=0.05, draws=40, resample=resample, conventions=("paper", "dasec", "nearest"))
    pairs = {"image_row_a": place[a], "image_row_b": place[b], "mated": mated, "similarity": similarity}
    faces = {"identity": [identity_of(name) for name in names[order]], "image_id": names[order]}
    cells = cells_of(settings.curve_conventions(), settings.fmr)
    root, stored, keys = f"memory://{uuid.uuid4().hex}", {}, {}
    for name in [*scores, "random"]:
        variant = name if name in ("oracle", "random") else "given"
        keys[name] = ScorerKey(name, "", name, variant, np.nan, None)
        scorer = SimpleNamespace(
            key=keys[name], scores=lambda _, name=name: scores[name][order], seed_scores=lambda: np.empty((0, 0))
        )
        datasets = [
            (cell, convention, Dataset(f"{root}/{name}/{i}/v=1", "cells"))
            for i, (cell, convention) in enumerate(cells.items())
        ]
        run_shard(
            CellShard(
                benchmark=SimpleNamespace(name="bench", pairs=SimpleNamespace(kind="lfw")),
                scorer=scorer,
                settings=settings,
                seed=0,
                faces=SimpleNamespace(read_all=lambda columns: pa.table(faces).select(columns)),
                comparisons=SimpleNamespace(read_all=lambda columns: pa.table(pairs).select(columns)),
                cells=datasets,
                embeddings=None,
            )
        )
        for cell, convention, dataset in datasets:
            dataset.write_plan({})
            dataset.commit(1)
            stored[name, cell] = read_cell(dataset, cell, convention)
    judgement = Judgement("bench", "r18", keys, stored, settings.limits, settings.draws, 0, REFERENCES)
    compare = {"random": [("sharp", "random"), ("blunt", "random")], "scorers": [("sharp", "blunt")]}
    return judgement.area_rows(), correct_families(judgement.difference_rows(compare))


def test_the_order_of_images_changes_nothing() -> None:
    forward = np.arange(N_PERSONS * N_EACH)
    expected = rows_of_benchmark(forward)
    assert repr(rows_of_benchmark(np.random.default_rng(1).permutation(forward))) == repr(expected)
    areas, differences = expected
    assert len(areas) == 3 * 3 * 4  # conventions, limits, scorers
    assert len(differences) == 3 * 3
    assert {row.unit for row in areas} == {"identities"}


def test_no_draws_are_made_for_intervals_that_have_too_few_people(monkeypatch) -> None:
    n_draws = []

    def bootstrap(*arrays, **options):
        n_draws.append(options["n_draws"])
        return bootstrap_cells(*arrays, **options)

    monkeypatch.setattr("fiqa_ray.stages.cells.bootstrap_cells", bootstrap)
    for module in ("core.intervals", "stages.cells", "datasets.cells"):
        monkeypatch.setattr(f"fiqa_ray.{module}.MIN_UNITS", N_PERSONS + 1)
    areas, differences = rows_of_benchmark(np.arange(N_PERSONS * N_EACH))
    assert set(n_draws) == {0}
    reason = f"{N_PERSONS} identities are too few for an interval: {N_PERSONS + 1} are needed"
    assert {row.reason for row in (*areas, *differences)} == {reason}
    assert np.isfinite([row.auc for row in areas]).all()


def test_references_never_lead() -> None:
    areas, differences = rows_of_benchmark(np.arange(N_PERSONS * N_EACH))
    whole = [row for row in areas if row.convention == "dasec" and row.discard_limit == 1]
    assert min(whole, key=lambda row: row.auc).scorer == "oracle"
    assert [row.scorer for row in whole if row.is_leading] == ["sharp"]
    # dasec: random numbers leave FNMR as it is at every level
    floor = next(row for row in whole if row.scorer == "random")
    part = next(row for row in areas if (row.scorer, row.convention, row.discard_limit) == ("random", "dasec", 0.3))
    assert part.auc == pytest.approx(0.3 * floor.auc)
    clear = [row for row in differences if row.convention == "dasec"]
    assert {(row.scorer_a, row.scorer_b): row.high < 0 for row in clear}[("sharp", "blunt")]
    # two comparisons with random numbers: the smaller p-value is doubled, a single comparison is not
    families = {f: [row for row in clear if row.family == f] for f in ("random", "scorers")}
    smallest = min(families["random"], key=lambda row: row.p_value)
    assert smallest.p_holm == pytest.approx(2 * smallest.p_value)
    assert families["scorers"][0].p_holm == families["scorers"][0].p_value


@pytest.mark.slow
def test_a_score_that_runs_out_has_its_own_limit() -> None:
    order = np.arange(N_PERSONS * N_EACH)
    alone = {repr(row) for row in rows_of_benchmark(order)[0] if row.convention == "paper"}
    areas = [row for row in rows_of_benchmark(order, short=True)[0] if row.convention == "paper"]
    limits = {name: max(r.discard_limit for r in areas if r.scorer == name) for name in ("sharp", "blunt", "short")}
    assert limits["sharp"] == limits["blunt"] == 0.95
    assert limits["short"] == 0.45  # of 600 + 600 pairs
    longest = [r for r in areas if r.discard_limit == 0.95]
    assert {repr(row) for row in longest} <= alone


def test_a_curve_without_a_second_level_has_no_area_and_fails_nothing() -> None:
    """Five non-mated pairs of the worst images are gone at the first discard: `paper` then has no threshold."""
    rng = np.random.default_rng(0)
    mated = np.arange(205) < 200
    similarity = np.where(mated, 0.5, 0) + 0.1 * rng.normal(size=205)
    quality = {"low": np.where(mated, 1.0, 0.0) + rng.random(205) / 10, "any": rng.random(205)}
    draws = bootstrap_areas(similarity, mated, {n: (q, q) for n, q in quality.items()}, fmrs=(0.2,), n_draws=20)
    (cell,) = {cell for _, cell in draws.curves}
    assert draws.own_limit("low", cell) == 0
    keys = {name: ScorerKey(name, "", name, "given", np.nan, None) for name in quality}
    none = np.full(20, np.nan)
    stored = {
        (name, cell): StoredCell(
            draws.curves[name, cell], {k / 20: none for k in range(1, 20)}, draws.errors[cell], 200, 5, 0, "pairs", {}
        )
        for name in quality
    }
    judgement = Judgement("bench", "r18", keys, stored, (), 20, 0, REFERENCES)
    assert {row.scorer for row in judgement.area_rows()} == {"any"}
    assert judgement.difference_rows({"scorers": [("low", "any")]}) == []


@pytest.mark.parametrize("n_nonmated", [4, 7, 2431, 2999, 3001, 123_457])
def test_the_rate_that_a_remedy_names_is_accepted(n_nonmated: int) -> None:
    with pytest.raises(UsageError) as fault:
        check_rates(EvaluateSettings(fmr=1e-6), "bench", n_nonmated)
    rate = float(re.search(r"give (\S+) or more", str(fault.value)).group(1))
    assert rate <= 1.1 * 3 / n_nonmated
    check_rates(EvaluateSettings(fmr=rate), "bench", n_nonmated)


@pytest.mark.slow
def test_persons_are_resampled_where_the_faces_name_them() -> None:
    order = np.arange(N_PERSONS * N_EACH)

    def unit(resample: str, identity_of) -> set[str]:
        return {row.unit for row in rows_of_benchmark(order, resample, identity_of)[0]}

    assert unit("pairs", lambda name: name[:4]) == {"pairs"}
    assert unit("auto", lambda name: name) == {"pairs"}  # a flat folder: each image its own identity
    with pytest.raises(FiqaRayError, match="pair 0 is mated but joins identities p000/0 and p000/1"):
        unit("identities", lambda name: name)


def test_families_of_comparisons() -> None:
    method = SimpleNamespace(label="m")
    kinds = ["prior", "optimized"]

    def families(scorers: list[str], **settings: object) -> dict:
        job = SimpleNamespace(
            settings=SimpleNamespace(evaluate=EvaluateSettings(**settings)),
            label_sets=lambda: [SimpleNamespace(method=method, kind=k, is_prior=k == "prior") for k in kinds],
            scorer_name=lambda t: f"m, {getattr(t, 'kind', 'prior')}",
        )
        return comparisons_of(job, scorers)

    trained = ["m, prior", "m, optimized"]
    assert families(["m", *trained, "oracle"], compare_scorers=[("m", "oracle")]) == {
        "imitated": [("m, prior", "m")],
        "baseline": [("m, optimized", "m")],
        "unoptimized": [("m, optimized", "m, prior")],
        "random": [("m", "random"), ("m, prior", "random"), ("m, optimized", "random")],
        "scorers": [("m", "oracle")],
    }
    assert families(trained, compare=["baseline"]) == {"baseline": [], "scorers": []}
    kinds.append("ediff")
    assert families(["m", *trained, "m, ediff"], compare=["baseline", "unoptimized"]) == {
        "baseline": [("m, optimized", "m"), ("m, ediff", "m")],
        "unoptimized": [("m, optimized", "m, prior"), ("m, ediff", "m, prior")],
        "ediff": [("m, optimized", "m, ediff")],
        "scorers": [],
    }


def test_families_are_corrected_over_benchmarks_and_not_over_recognisers() -> None:
    """Holm by hand: of two, the smaller p-value is doubled; of one, it stays; a row without interval does not count."""

    def row(benchmark: str, recognizer: str, p: float, fmr: float = np.nan) -> DifferenceRow:
        return DifferenceRow(benchmark, recognizer, "paper", "a", "b", -1.0, -2.0, -0.5, fmr=fmr, p_value=p)

    rows = [
        row("x", "r", 0.02),
        row("y", "r", 0.03),
        row("z", "r", np.nan),
        row("x", "s", 0.02),
        row("x", "r", 0.02, 0.1),
    ]
    corrected = correct_families(rows)
    assert [r.p_holm for r in corrected] == pytest.approx([0.04, 0.04, np.nan, 0.02, 0.02], nan_ok=True)
    assert [r.n_family for r in corrected] == [2, 2, 2, 1, 1]


def test_training_noise_by_hand() -> None:
    """Three trainings of both regressors: differences -0.02, -0.01, -0.03, so t = -2 sqrt(3) with two degrees of freedom."""
    curve = edc_curve([0.9, 0.8, 0.1, 0.2], [1, 1, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4], fmr=0.5, convention="dasec")

    def cell(areas: list[float], draws: list[float]) -> StoredCell:
        return StoredCell(
            curve=curve,
            draws={1.0: np.array(draws)},
            errors=Errors(0.5, 0),
            n_units=2,
            n_nonmated=2,
            n_unscored=0,
            unit="pairs",
            seed_areas={1.0: np.array(areas)} if areas else {},
        )

    key = ("dasec", 0.5)
    cells = {
        ("new", key): cell([0.10, 0.12, 0.11], [0.3, 0.5]),
        ("old", key): cell([0.12, 0.13, 0.14], [0.2, 0.1]),
        ("plain", key): cell([], [0.2, 0.2]),
    }
    keys = {name: ScorerKey(name, "", name, "given", np.nan, None) for name, _ in cells}
    judgement = Judgement("bench", "r18", keys, cells, [], 2, 0, REFERENCES)
    trained, plain = judgement.difference_rows({"scorers": [("new", "old"), ("plain", "plain")]})
    assert (trained.n_seeds, trained.training_sd) == (3, pytest.approx(0.01))
    assert trained.p_training == pytest.approx(1 - np.sqrt(12 / 14))  # Student's t with two degrees of freedom
    assert trained.pairs_sd == pytest.approx(np.std([0.1, 0.4], ddof=1))
    assert plain.n_seeds == 0
    assert np.isnan([plain.training_sd, plain.p_training]).all()
    row = replace(trained, difference=-0.02, low=-0.03, high=-0.01, p_holm=0.01, n_draws=2000)
    assert verdict(row) == "no clear difference"  # p of the trainings is 0.074
    assert verdict(replace(row, p_training=0.04)) == "improves"
    assert verdict(replace(row, p_training=np.nan, n_seeds=1)) == "improves"
