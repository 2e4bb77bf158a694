from __future__ import annotations

import pytest
import torch

from fiqa_ray.core.kernels import threads
from fiqa_ray.models.networks.iresnet import IResNet
from released import fill


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Bits may depend on the number of threads, and threads that fight for cores are slow."""
    with threads.one_thread():
        yield


@pytest.fixture(scope="session")
def released_iresnet18():
    """IResNet-18 in float64 with the golden weights; tests must leave it as it is."""
    with torch.device("meta"):
        network = IResNet(18).double()
    return fill(network.to_empty(device="cpu")).requires_grad_(False)
