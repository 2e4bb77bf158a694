"""What plan says of thetas and intervals before anything is computed."""

from types import SimpleNamespace

from fiqa_ray.config import OptimizeSettings
from fiqa_ray.engine.cost import Scale
from fiqa_ray.tools.plan import interval_notes, theta_notes


def notes(theta, index_scale):
    optimize = OptimizeSettings(theta=theta, index_scale=index_scale)
    job = SimpleNamespace(settings=SimpleNamespace(optimize=optimize))
    return list(theta_notes(job, Scale(10_000, 200, n_clusters=20, rows_per_part=1000)))


def test_the_papers_theta_moves_almost_nothing():
    """0.14 to 0.2 x 0.001 x 19 pairs per image = 0.27 to 0.38 % of the ranks; 2 % / 0.13, the middle of normalized: 0.2."""
    expected, warning = notes((0.001,), "raw")
    assert expected.startswith("theta 0.001 (raw) is expected to move an image by 0.27 to 0.38 % of the ranks")
    assert warning.startswith("warning: theta=0.001 moves an image by 0.38 % of the ranks on average")
    assert warning.endswith("try theta=0.2, index_scale normalized, which moves about 2.6 %")


def test_a_large_theta_on_the_raw_scale_is_warned_of():
    expected, warning = notes((0.1,), "raw")
    assert "27 to 38 % of the ranks" in expected
    assert "warning: theta=0.1 on index_scale raw labels images without a pair as bad" in warning


def test_other_thetas_pass():
    heldout, expected = notes(("heldout", 0.3), "normalized")
    assert heldout == "theta heldout: chosen for each method on held-out people; 0 where nothing is gained"
    assert expected.startswith("theta 0.3 (normalized) is expected to move an image by 1.8 to 6 % of the ranks")


def test_too_few_people_for_intervals_are_told():
    def lines(n_people, **evaluate):
        values = {"resample": "auto", "draws": 2000, **evaluate}
        settings = SimpleNamespace(
            evaluate=SimpleNamespace(**values), optimize=SimpleNamespace(thetas=("heldout",)),
            benchmarks=[SimpleNamespace(name="bench")],
        )  # fmt: skip
        return list(interval_notes(settings, {"train": 10, "bench": n_people}))

    assert lines(49)[0].startswith(
        "bench: 49 people are too few for intervals of areas and differences: 50 are needed (that of"
    )
    assert lines(50) == lines(1) == lines(49, resample="pairs") == lines(49, draws=0) == []
