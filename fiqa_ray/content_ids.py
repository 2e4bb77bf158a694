"""What a model, a file of scores or a list of pairs counts as in fingerprints: its settings and the hash of its content."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from fiqa_ray.config import BenchmarkSettings, MethodSettings, RecognizerSettings, ScoresSettings, label_of
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.public_uri import public_values
from fiqa_ray.storage import content_hash, exists

ONNX_VERSION = 3
"""Raise it when embeddings or scores of ONNX networks are computed in another way. 2: by onnxruntime."""


def model_id(model: RecognizerSettings | MethodSettings) -> dict[str, Any]:
    """Return name, options and content hash of a model: the hash of its weights, or of the ONNX file that it is."""
    identity: dict[str, Any] = {"name": label_of(model.name), "options": public_values(model.options)}
    code = _code_file(model.name)
    if code is not None:
        identity["code_sha256"] = content_hash(code)
    if ModelRef.parse(model.name).kind == "onnx":
        identity |= {"sha256": _onnx_hash(model.name), "onnx": ONNX_VERSION}
    elif model.weights is not None and not model.weights.startswith("random:"):
        identity["sha256"] = content_hash(model.weights)
    elif model.weights is not None:
        identity["weights"] = model.weights
    return identity


def _code_file(name: str) -> str | None:
    """Return the file of a user's function that lies in the current folder or is named by its path, or None."""
    if ModelRef.parse(name).kind != "function":
        return None
    module = name.rpartition(":")[0]
    path = Path(module if module.endswith(".py") else module.replace(".", "/") + ".py")
    return str(path.resolve()) if path.is_file() else None


@lru_cache
def _onnx_hash(uri: str) -> str:
    """Return the SHA-256 of an ONNX file and of the weights beside it; a process reads each file once."""
    from fiqa_ray.models.formats.onnx_file import onnx_sha256  # a parser, which `status` and `--help` do without

    return onnx_sha256(uri)


@lru_cache
def optional_hash(name: str, uri: str) -> dict[str, str]:
    """Return `{name: content hash}`, or `{}` if the file does not exist; a process reads each file once."""
    return {name: content_hash(uri)} if exists(uri) else {}


def scores_id(scores: ScoresSettings) -> dict[str, Any]:
    """Return how a file of scores is read, and its content hash."""
    return {**scores.model_dump(mode="json", exclude={"uri"}), "sha256": content_hash(scores.uri)}


def pair_list_id(benchmark: BenchmarkSettings) -> dict[str, Any]:
    """Return how a benchmark's list of pairs is read, and the content hash of its files."""
    values = benchmark.pairs.model_dump(mode="json", exclude={"expect"})
    from fiqa_ray.sources.kinds import PROTOCOLS  # decoders and more, which `--help` does without

    return values | {
        k: content_hash(uri) for k, uri in PROTOCOLS[benchmark.pairs.kind].lists(benchmark.pairs.uri).items()
    }
