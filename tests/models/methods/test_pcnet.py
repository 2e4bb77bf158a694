from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fiqa_ray.errors import UsageError
from fiqa_ray.models.methods.pcnet import PCNetHead, pc_loss
from released import golden


def test_loss_golden():
    wanted = golden("method_checks")["pc_loss"]
    r = np.random.RandomState(3)
    embeddings, u = r.randn(7, 16), r.uniform(0.02, 0.6, (7, 1))
    labels = wanted["labels"]
    got = pc_loss(torch.from_numpy(embeddings), torch.from_numpy(u), torch.tensor(labels))
    assert got.item() == pytest.approx(wanted["value"], rel=1e-12)
    slow = []
    for i, j in itertools.permutations(range(7), 2):
        if labels[i] == labels[j]:
            a, b = embeddings[i], embeddings[j]
            cosine = a @ b / np.sqrt((a @ a) * (b @ b))
            slow.append((cosine - min(1 - u[i, 0], 1 - u[j, 0])) ** 2)
    assert np.mean(slow) == pytest.approx(wanted["value"], rel=1e-12)


def test_loss_is_zero_where_the_smaller_confidence_is_the_cosine():
    angle = torch.tensor([0.0, 0.5, 2.0, 2.3])
    embeddings = 3 * torch.stack([angle.cos(), angle.sin()], dim=1)
    u = 1 - torch.tensor([0.99, float(torch.cos(angle[1])), 0.999, float(torch.cos(angle[3] - angle[2]))])
    assert pc_loss(embeddings, u, torch.tensor([1, 1, 2, 2])).item() == pytest.approx(0, abs=1e-12)


def test_gradient_reaches_the_smaller_confidence_only():
    embeddings = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    u = torch.tensor([[0.1], [0.4], [0.3], [0.2]], requires_grad=True)
    pc_loss(embeddings, u, torch.tensor([1, 1, 2, 2])).backward()
    assert (u.grad[:, 0] != 0).tolist() == [False, True, True, False]
    assert embeddings.grad is None
    with pytest.raises(UsageError, match="no mated pair"):
        pc_loss(embeddings, u, torch.arange(4))


def test_score_is_one_minus_uncertainty():
    head = PCNetHead().eval()
    u = head(torch.randn(3, 25088))
    assert u.shape == (3, 1)
    assert ((u > 0) & (u < 1)).all()
