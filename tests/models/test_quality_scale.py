from __future__ import annotations

import numpy as np
import pytest
import torch

from fiqa_ray.models.methods.ofiq import build_ofiq_uqs
from fiqa_ray.models.quality_scale import OFIQ_SIGMOID, Quantiles, Sigmoid, card_scale, quality, whole_quality
from released import golden

OFIQ = golden("method_checks_2026")["ofiq_unified_quality_score"]


def test_ofiqs_table():
    raw, mapped, scalar = (np.array([row[key] for row in OFIQ["table"]]) for key in ("raw", "mapped", "scalar"))
    np.testing.assert_allclose(OFIQ_SIGMOID(raw), mapped, rtol=1e-9)
    assert quality(raw, OFIQ_SIGMOID).tolist() == scalar.tolist()


def test_halves_are_rounded_up():
    wanted = OFIQ["rounding_of_synthetic_mapped_values"]
    assert {v: int(whole_quality(np.array([float(v)]))[0]) for v in wanted} == wanted


def test_qualities_are_clamped_and_failures_are_minus_one():
    example = OFIQ["clamp_examples (other parameters: with h 100, a 0, s 1 the clamp can never act)"][0]
    scale = Sigmoid(example["x0"], example["w"], example["h"])
    scores = np.array([example["x"], np.nan, np.inf, -np.inf])
    assert quality(scores, scale).tolist() == [example["scalar"], -1, -1, -1]


def test_quantiles_give_the_share_of_lower_scores():
    scale = Quantiles((0.0, 1.0, 1.0, 1.0, 4.0))
    # a quarter of the scores lies below 1, three quarters below anything above 1
    assert scale(np.array([-1, 0, 0.5, 1, 2.5, 4, 9])).tolist() == [0, 0, 12.5, 25, 62.5, 100, 100]
    assert quality(np.array([0.5, 2.5, np.nan]), scale).tolist() == [13, 63, -1]
    assert card_scale({"validation_scores": {"quantiles": [0, 1]}}) == Quantiles((0, 1))
    assert card_scale({"validation_scores": None}) is card_scale(None) is None


def test_ofiq_uqs_scores_are_whole_numbers_of_the_embedding_length():
    class Clean:
        output = torch.tensor([[24.329985, 0], [0, 16.142765], [3, 4], [np.nan, 1]])

    scores = build_ofiq_uqs(None, 0)(Clean(), np.arange(4))
    assert scores[:3].tolist() == [63, 7, 0]
    assert np.isnan(scores[3])


@pytest.mark.parametrize("score", [9.237407, 9.237408])
def test_the_score_at_which_ofiq_changes_from_0_to_1(score):
    assert quality(np.array([score]), OFIQ_SIGMOID)[0] == (score > OFIQ["thresholds"]["1"])
