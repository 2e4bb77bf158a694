"""Embeddings and scores in a lower precision: accepted where they agree with float32, else refused with figures."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

import smoke
from fiqa_ray.datasets import columns
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.models.precision_gate import PrecisionGate, rank_agreement
from fiqa_ray.tools.run_job import run_job


class Cancels(torch.nn.Module):
    """A network that is sound in float32 only: it takes a small difference of two large products."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * 112 * 112, 8, bias=False)
        generator = torch.Generator().manual_seed(0)
        self.layer.weight.data = torch.randn(8, 3 * 112 * 112, generator=generator) / 100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed faces."""
        flat = x.flatten(1)
        return self.layer(flat + 0.01 * flat.flip(1)) - self.layer(flat)


def build_cancelling(weights: str | None = None) -> torch.nn.Module:
    """The network above, as a job names it."""
    return Cancels()


@pytest.mark.slow
def test_bfloat16_embeddings_agree_have_their_own_folder_and_the_bad_case_is_refused(tmp_path):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=5, benchmark=False)
    recognizer = {"name": "curricularface_mobilefacenet", "weights": "random:0"}
    settings = [
        smoke.settings(
            tmp_path, faces, str(tmp_path / "run"), f"compute.precision={precision}", "compute.engine=local",
            benchmarks=[], recognizer=recognizer, methods=[{"name": "embedding_norm"}],
        )
        for precision in ("float32", "bfloat16")
    ]  # fmt: skip
    run_job(settings[0], ["pack", "embed", "score"])
    run_job(settings[1], ["pack", "embed", "score"], new_settings=True)
    full, lower = (Job(s) for s in settings)
    assert full.faces("train").uri == lower.faces("train").uri
    assert full.embeddings("train").uri != lower.embeddings("train").uri
    a, b = (columns.embedding_values(job.embeddings("train").read_all())[0] for job in (full, lower))
    assert not np.array_equal(a, b)
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.mean() > 0.9999

    bad = smoke.settings(
        tmp_path, faces, str(tmp_path / "bad"), "compute.precision=bfloat16", "compute.engine=local", benchmarks=[],
        recognizer={"name": f"{__name__}:build_cancelling"}, methods=[{"name": "embedding_norm"}],
    )  # fmt: skip
    with pytest.raises(FiqaRayError, match=r"in bfloat16 it does not agree .* mean cosine of its embeddings 0\.\d+"):
        run_job(bad, ["pack", "embed"])
    assert not Job(bad).embeddings("train").finished_parts()


def test_scores_are_judged_by_their_ranks_once_there_are_256():
    exact = np.random.default_rng(0).normal(size=512).astype(np.float32)
    faces, rows = torch.zeros(128, 3, 112, 112, dtype=torch.uint8), np.arange(128)

    def gate(noise):
        batches = iter(exact.reshape(4, 128))
        gate = PrecisionGate(lambda: lambda *_: [next(batches)], ["method"], False, "float16")
        for batch in (exact + noise).astype(np.float32).reshape(4, 128):
            gate.see(faces, rows, [batch])

    gate(0.0)
    gate(1e-5 * np.arange(512))
    with pytest.raises(FiqaRayError, match=r"^method: in float16 .* on 256 faces of this run: Spearman's rho 0\.9"):
        gate(0.3 * np.random.default_rng(1).normal(size=512))


def test_rank_agreement_is_the_correlation_of_ranks():
    a, b = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    assert rank_agreement(a, b) == pytest.approx(np.corrcoef(rankdata(a), rankdata(b))[0, 1], abs=1e-12)
    assert rank_agreement(np.ones(3, np.float32), np.ones(3, np.float32)) == 1
    assert np.isnan(rank_agreement(np.array([1, np.nan, 2], np.float32), np.arange(3, dtype=np.float32)))
