"""Vision transformers of timm for faces of 112 px, as `gaunernst/vit_*_112.*` on the Hugging Face Hub have them."""

from __future__ import annotations

from typing import Any

from torch import nn

from fiqa_ray.core.align import FACE_SIZE
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.networks.iresnet import EMBEDDING_DIM


def timm_vit(name: str, **options: Any) -> nn.Module:
    """Build a vision transformer of timm with patches of 8 px: raw embeddings `(N, 512)`.

    Args:
        name: as timm has it, such as vit_tiny_patch16_224; size of image and patch are set here.
        **options: of `timm.create_model`.

    Raises:
        FiqaRayError: timm is not installed or cannot be imported.
    """
    try:
        import timm
    except ImportError as error:
        raise FiqaRayError(
            f"this network needs {error.name}, which is not installed: pip install 'fiqa-ray[timm]'"
        ) from error
    except RuntimeError as error:  # torchvision below it was built for another torch
        raise FiqaRayError(
            f"this network needs timm, whose import fails: {error}; install torch and torchvision of one build"
        ) from error
    return timm.create_model(name, img_size=FACE_SIZE, patch_size=8, num_classes=EMBEDDING_DIM, **options)
