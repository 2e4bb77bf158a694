from __future__ import annotations

import pytest

from fiqa_ray.core.kernels import threads


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Bits may depend on the number of threads, and threads that fight for cores are slow."""
    with threads.one_thread():
        yield
