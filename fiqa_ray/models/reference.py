"""What the name of a model means. No import of torch: `fiqa-ray status` and `--help` use it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fiqa_ray.models.method_table import METHODS, MethodRow
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from fiqa_ray.storage import join, public_uri

CARD_FILE = "card.json"
"""The file that makes a folder a saved regressor."""

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*|.*\.py):[A-Za-z_]\w*")


@dataclass(frozen=True)
class ModelRef:
    """The name of a recogniser, FIQA method or regressor, and what kind of thing it names.

    Attributes:
        name: the name as the user gave it.
        kind: `table`: a row of `RECOGNIZERS` or `METHODS`; `onnx`: an ONNX file; `function`: the user's own
            `module:function` or `file.py:function`; `folder`: anything else, which can only be the folder of a saved
            regressor.
    """

    name: str
    kind: Literal["table", "onnx", "function", "folder"]

    @classmethod
    def parse(cls, name: str) -> ModelRef:
        """Return what `name` means; no file is read."""
        if name in RECOGNIZERS or name in METHODS:
            return cls(name, "table")
        if public_uri(name).lower().endswith(".onnx"):
            return cls(name, "onnx")
        if _FUNCTION.fullmatch(name):
            return cls(name, "function")
        return cls(name, "folder")

    @property
    def method(self) -> MethodRow | None:
        """The row of the FIQA method of this name, if there is one."""
        return METHODS.get(self.name)

    @property
    def needs_recognizer(self) -> bool:
        """Whether it is a FIQA method that works on a recogniser, rather than on a network or code of its own."""
        return self.method is not None and self.method.network is None

    @property
    def card_uri(self) -> str | None:
        """Location of the card of a saved regressor, which holds the hash of its weights; None for other kinds."""
        return join(self.name, CARD_FILE) if self.kind == "folder" else None
