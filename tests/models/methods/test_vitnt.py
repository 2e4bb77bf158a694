from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.errors import UsageError
from fiqa_ray.models.methods.vitnt import vitnt_scores
from fiqa_ray.models.networks.vit import FaceViT
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from released import fill, golden, golden_input

WANTED = golden("method_checks_2026")["vitnt_tiny"]
CASES = {
    "all blocks, plain mean": {"n_blocks": 6, "attention": False},
    "blocks 0-3, plain mean": {"n_blocks": 4, "attention": False},
    "blocks 0-3, attention of block 3": {"n_blocks": 4, "attention": True},
    "all blocks, scaling 2": {"n_blocks": 6, "attention": False, "scaling": 2.0},
}


def tiny() -> FaceViT:
    return fill(FaceViT(28, 64, 6, 4, 3, n_outputs=32).double())


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_authors_code(case):
    network = tiny()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == WANTED["state_dict"]
    for key in ("scores", "scores_layernorm_x16"):
        with torch.no_grad():
            together = vitnt_scores(network, golden_input(), **CASES[case])
            alone = torch.cat([vitnt_scores(network, x[None], **CASES[case]) for x in golden_input()])
        assert together.tolist() == pytest.approx(WANTED[key][case], rel=1e-9, abs=0)
        assert alone.tolist() == pytest.approx(WANTED[key][case], rel=1e-9, abs=0)
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.data.mul_(16)


def test_blocks_after_the_last_used_one_are_not_computed():
    network = tiny()
    recognizer = Recognizer("tiny", network.float(), Preprocessing(), 32, "")
    faces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 112, 112), dtype=np.uint8))
    scorer = load_scorer("vitnt_fiqa", recognizer)
    scores = scorer(faces)
    np.testing.assert_allclose(scorer(faces[[3, 1]]), scores[[3, 1]], rtol=1e-6)
    assert np.array_equal(scores, load_scorer("vitnt_fiqa", recognizer, n_blocks=5)(faces))  # five sixths of six
    network.blocks[5].requires_grad_(False).mlp.fc1.weight.fill_(float("nan"))
    assert np.array_equal(scorer(faces), scores)
    network.blocks[4].requires_grad_(False).mlp.fc1.weight.fill_(float("nan"))
    assert np.isnan(scorer(faces)).all()


def test_mistakes_are_named():
    recognizer = Recognizer("tiny", tiny(), Preprocessing(), 32, "")
    for given, options, message in (
        (recognizer, {"n_blocks": 7}, "n_blocks=7 is more than the 6 blocks of tiny"),
        (recognizer, {"n_blocks": 1}, "n_blocks=1 must be a whole number of at least 2"),
        (load_recognizer("curricularface_mobilefacenet", "random:0"), {}, "curricularface_mobilefacenet has none that"),
    ):
        with pytest.raises(UsageError, match=message):
            load_scorer("vitnt_fiqa", given, **options)
