"""OFIQ's unified quality score (`BSI-OFIQ/OFIQ-Project UnifiedQualityScore.cpp`): MagFace's embedding length, 0 to 100.

OFIQ cuts its crop by landmarks of its own, 0.4 to 0.5 px from the ArcFace template. So scores of ArcFace crops come close to
OFIQ's and are not the standard's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.models.methods.forward import embedding_norm
from fiqa_ray.models.quality_scale import OFIQ_SIGMOID, whole_quality
from fiqa_ray.models.recognizer import CleanPass, Recognizer
from fiqa_ray.models.scorer import ScoreFaces


def build_ofiq_uqs(network: Recognizer, seed: int) -> ScoreFaces:
    """Build OFIQ's unified quality score on MagFace's R50, whole numbers from 0 to 100; `seed` is not used."""

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> NDArray[np.float64]:
        return whole_quality(OFIQ_SIGMOID(embedding_norm(clean.output.cpu().numpy())))

    return score_faces
