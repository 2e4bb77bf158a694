"""Labels without images: embeddings, names and scores from files, optimized in memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.core.ediff import ediff_labels
from fiqa_ray.core.labels import optimize_labels
from fiqa_ray.datasets.results import EDIFF, OPTIMIZED
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.sources.embedding_files import (
    PICKLES,
    Column,
    ending_of,
    load_numpy,
    people_of,
    read_embeddings,
    read_identities,
)
from fiqa_ray.sources.keys import remedy_of, rows_of_keys
from fiqa_ray.sources.read_table import TEXT
from fiqa_ray.sources.scores import read_scores
from fiqa_ray.sources.vector_pickle import read_pickle
from fiqa_ray.storage import read_bytes
from fiqa_ray.tools.open_run import LABELS


def labels_of_files(
    embeddings_uri: str,
    identities_uri: str | None,
    score_uris: Sequence[str],
    thetas: Sequence[float],
    *,
    n_clusters: int,
    n_repeats: int,
    seed: int,
    index_scale: str,
    epsilon: float | None = None,
    least: int = 10,
) -> Iterator[pa.Table]:
    """Yield the labels of each file of scores and each theta, as tables like that of `Run.labels`.

    Images are matched by name where both files name them, else by their order.

    Args:
        embeddings_uri: `.npy` `(I, D)`; `.npz` or Parquet with `embedding` and, if they are known, `image_id` and
            `identity`; or a pickle of {path: vector}.
        identities_uri: `.txt` with one name per line, `.npy`, or CSV or Parquet with `image_id` and `identity`; None: the
            column of the embeddings' file, else the folder of each image.
        score_uris: per method `.txt` or `.npy` with one number per image, a pickle of {path: number}, or what `read_scores`
            reads; the method is called after the file.
        thetas: weights of the update.
        n_clusters: C.
        n_repeats: R.
        seed: of all random draws.
        index_scale: `raw` or `normalized`.
        epsilon: weight of eDifFIQA's label rule, which then makes the labels in place of the ranks; no theta counts.
        least: see `ediff_labels`.

    Raises:
        FiqaRayError: a file cannot be read, or the files do not fit together.
    """
    embeddings = read_embeddings(embeddings_uri)
    others = {_method_name(uri): read_image_scores(uri) for uri in score_uris}
    if len(others) < len(score_uris):
        raise UsageError(
            f"two files of scores have one name ({', '.join(score_uris)}); methods are called after their files"
        )
    people = read_identities(identities_uri) if identities_uri else None
    names = next((c.image_id for c in (embeddings, people, *others.values()) if c is not None and c.image_id), None)
    n = len(embeddings.values)
    if embeddings.n_left_out:
        warnings.warn(
            f"{embeddings_uri}: {embeddings.n_left_out:,} images have no embedding, and get no label", stacklevel=2
        )
    if people is not None:
        identity = [str(v) for v in _in_order(people, names, n, embeddings.uri)]
    else:
        identity = embeddings.identity or people_of(embeddings)
    priors = {name: _in_order(c, names, n, embeddings.uri) for name, c in others.items()}
    image_id = pa.array(names or [str(i) for i in range(n)], pa.string())
    people_column = pa.array(identity, pa.string())
    if epsilon is not None:
        for method, prior in priors.items():
            label = ediff_labels(embeddings.values, identity, prior, epsilon=epsilon, least=least).astype(np.float32)
            rule = [pa.repeat(EDIFF, n), pa.nulls(n, pa.float64()), pa.repeat(False, n)]
            columns = [image_id, people_column, pa.repeat(method, n), *rule, prior]
            columns.append(pa.array(label, mask=np.isnan(label)))
            yield pa.table([pa.array(c) for c in columns], schema=LABELS)
        return
    results = optimize_labels(
        embeddings.values,
        identity,
        priors,
        theta=list(thetas),
        n_clusters=n_clusters,
        n_repeats=n_repeats,
        seed=seed,
        index_scale=index_scale,
    )
    for method, by_theta in results.items():
        for theta, result in by_theta.items():
            rule = [pa.repeat(OPTIMIZED, n), pa.repeat(theta, n), pa.repeat(False, n)]
            columns = [image_id, people_column, pa.repeat(method, n), *rule, priors[method], result.label]
            yield pa.table([pa.array(c) for c in columns], schema=LABELS)


def read_image_scores(uri: str) -> Column:
    """Read one score per image; larger is better.

    Raises:
        FiqaRayError: the file holds no such scores.
    """
    ending = ending_of(uri)
    if ending == ".npy":
        return Column(uri, _numbers(uri, load_numpy(uri)))
    if ending in PICKLES:
        value = read_pickle(uri)
        if isinstance(value, dict):
            return Column(uri, _numbers(uri, list(value.values())), [str(k) for k in value])
        return Column(uri, _numbers(uri, value))
    if ending == ".txt":
        lines = read_bytes(uri).decode("utf-8-sig", "replace").split("\n")
        words = [line.split() for line in lines if line.strip()]
        if words and all(len(w) == 1 for w in words):
            return Column(uri, _numbers(uri, [w[0] for w in words]))
    table = read_scores(uri)
    return Column(uri, table["score"].to_numpy(), table["image_id"].to_pylist())


def _in_order(column: Column, names: list[str] | None, n: int, embeddings_uri: str) -> NDArray[Any]:
    """Return a column's values in the order of the embeddings: by name where both have names, else as they are."""
    if column.image_id is None or names is None or column.image_id == names:
        if len(column.values) != n:
            raise UsageError(
                f"{column.uri} has {len(column.values):,} rows and {embeddings_uri} {n:,} embeddings: without names they "
                "must be of the same images in the same order"
            )
        return column.values
    keys, ids = pa.array(column.image_id, TEXT), pa.array(names, TEXT)
    rows = rows_of_keys(keys, ids)
    place = np.full(len(names), -1)
    place[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    missing = np.flatnonzero(place < 0)
    if len(missing) or len(names) != n:
        if not len(missing):
            raise UsageError(
                f"{embeddings_uri} has {n:,} embeddings without names, and the files name {len(names):,} images"
            )
        raise UsageError(
            f"{column.uri}: {len(missing):,} of {n:,} images are not in it, such as {names[missing[0]]!r}; it has names "
            f"like {column.image_id[0]!r}{remedy_of(keys, ids, (), '')}"
        )
    return column.values[place]


def _method_name(uri: str) -> str:
    return os.path.splitext(uri.replace("\\", "/").rsplit("/", 1)[-1])[0]


def _numbers(uri: str, values: Any) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(values, np.float64)
    except (ValueError, TypeError) as exc:
        raise FiqaRayError(f"{uri}: the scores are not numbers ({str(exc)[:100]}); give one per image") from exc
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    if numbers.ndim != 1:
        raise FiqaRayError(f"{uri}: scores of shape {numbers.shape}; wanted one number per image")
    return numbers
