from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.errors import UsageError
from fiqa_ray.models.methods.grafiqs import BLOCKS, gradient_pull, last_block_pull
from fiqa_ray.models.methods.layers import watch
from fiqa_ray.models.networks.ir import IR
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognizer import Recognizer
from released import golden, golden_input


def some_faces(n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 112, 112), dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_scores_are_those_of_the_authors_code(released_iresnet18, block):
    wanted = [image["score"][block] for image in golden("method_checks_2026")["grafiqs_iresnet18"]["images"]]
    norms = [m for m in released_iresnet18.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == golden("method_checks_2026")["grafiqs_iresnet18"]["n_batchnorm2d"]
    start = None if block == "image" else getattr(released_iresnet18, f"layer{block[-1]}")
    watch([*norms, *([start] if start is not None else [])])
    together = gradient_pull(released_iresnet18, golden_input(), len(norms), start)
    assert together.tolist() == pytest.approx(wanted, rel=1e-9, abs=0)
    if block == "block4":
        alone = [gradient_pull(released_iresnet18, x[None], len(norms), start).item() for x in golden_input()]
        assert alone == pytest.approx(wanted, rel=1e-9, abs=0)
        closed_form = last_block_pull(released_iresnet18.maps(golden_input()), released_iresnet18.bn2, len(norms))
        assert closed_form.tolist() == pytest.approx(wanted, rel=1e-9, abs=0)


class Small(IR):
    """An IR network of one block per stage and few channels; its batch norms hold statistics unlike those of faces."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__((1, 1, 1, 1), "output_layer", nn.Sequential(nn.BatchNorm2d(512), nn.Dropout(), nn.Flatten()))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)


@pytest.fixture(scope="module")
def small() -> Recognizer:
    return Recognizer("small", Small(), Preprocessing(), 25088, "")


@pytest.mark.slow
@pytest.mark.parametrize("block", ["image", "block2", "block4"])
def test_a_score_depends_on_its_image_alone(small, block):
    """On one image, in batches of other sizes, in other places, from two threads at once, and on a copied network."""
    faces, scorer = some_faces(3), load_scorer("grafiqs", small, block=block)
    whole = scorer(faces)
    assert (whole < 0).all()
    assert len(np.unique(whole)) == 3
    np.testing.assert_allclose(scorer(faces[[2, 0]]), whole[[2, 0]], rtol=1e-5)
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results = list(pool.map(lambda i: scorer(faces[i : i + 1])[0], range(3)))
    np.testing.assert_allclose(results, whole, rtol=1e-5)
    copied = load_scorer("grafiqs", copy.deepcopy(small), block=block)
    np.testing.assert_allclose(copied(faces[:1]), whole[:1], rtol=1e-5)


def test_the_last_block_needs_no_gradient_on_any_network(small):
    x = small.preprocess(some_faces(3).float() / 255)
    backbone = small.backbone
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    watch([*norms, backbone.body[-1]])
    wanted = gradient_pull(backbone, x, len(norms), backbone.body[-1])
    got = last_block_pull(backbone.maps(x), backbone.head[0], len(norms))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=0)


def test_mistakes_are_named(small):
    flat = Recognizer("flat", nn.Flatten(), Preprocessing(), 3 * 112 * 112, "")
    normed = Recognizer("normed", nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), Preprocessing(), 3 * 112 * 112, "")
    for recognizer, block, message in (
        (small, "block5", "block='block5' must be one of image, block1"),
        (flat, "image", "flat has none"),
        (normed, "block4", "normed has no blocks that fiqa_ray knows; set block: image"),
    ):
        with pytest.raises(UsageError, match=message):
            load_scorer("grafiqs", recognizer, block=block)
    assert np.isfinite(load_scorer("grafiqs", normed, block="image")(some_faces(2))).all()
