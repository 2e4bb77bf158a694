"""The Parquet schemas, with units, ranges and null rules; those of results are row classes in `datasets/results.py`.

Tables that begin with `image_row` are sorted by it; others say their order. `image_row` (0..n_images-1, in the order of
identity and image_id) and `identity_row` are dense. A bad image keeps its row with `status` other than "ok" and `error`; its
values are null.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 8
"""Part of every fingerprint and of a run's settings record: raise it when a column or its meaning changes."""


ROW = ("image_row", pa.int64())


STATUS = [("status", pa.string()), ("error", pa.string())]


def _never_null(name: str, kind: pa.DataType) -> pa.Field:
    """Return a field without nulls, for the large tables of the label stages: twice as fast to read and write."""
    return pa.field(name, kind, nullable=False)


SOURCE_FACES = pa.schema(  # what a source lists, before any image is read
    [
        ("uri", pa.string()),
        ("image_id", pa.string()),  # path within the data set, unique
        ("identity", pa.string()),
        ("landmarks", pa.list_(pa.float64(), 10)),  # x, y of five points in pixels, or null
    ]
)


SOURCE_RECORDS = SOURCE_FACES.append(  # the same for images inside larger files: `uri` is the container
    pa.field("offset", pa.int64())  # first byte in the container; in Parquet the row, in .bin the position in the list
).append(pa.field("length", pa.int64()))  # bytes; null for Parquet and .bin; both null if there is no image


FACES = pa.schema(
    [
        ROW,
        ("identity_row", pa.int32()),
        ("image_id", pa.string()),
        ("identity", pa.string()),
        (
            "face",
            pa.binary(),
        ),  # 112x112 RGB: an aligned crop as `packed_faces` packs it, or the file of a 112x112 source
        *STATUS,
    ]
)


def embeddings(dim: int) -> pa.Schema:
    """Return the schema of embeddings: `embedding` holds `dim` little-endian float32 values, not normalized; null if bad.

    `fiqa_ray.datasets.columns` converts the column from and to numpy.
    """
    return pa.schema([ROW, ("identity_row", pa.int32()), ("embedding", pa.binary(4 * dim)), *STATUS])


QUALITY_SCORES = pa.schema(  # prior scores
    [ROW, ("score", pa.float64()), *STATUS]  # larger is better, the method's own range
)


REGRESSOR_SCORES = (
    pa.schema(  # scores of a benchmark by a regressor that the job trained; read by `columns.seed_scores`
        [
            *QUALITY_SCORES,  # here score is the mean of seed_scores
            (
                "seed_scores",
                pa.list_(pa.float32()),
            ),  # the score of each training seed, in the order of the seeds; null if bad
        ]
    )
)


# every image of a part of pairs; one file per part, or one per repeat if each repeat has its own clusters
CLUSTERS = pa.schema(
    [
        _never_null(*ROW),
        _never_null("identity_row", pa.int32()),
        _never_null("cluster", pa.int32()),  # dense from 0 within the identity; -1 where the image has no embedding
        _never_null("n_opened", pa.int32()),  # pairs that the image opens in a repeat: one per other cluster
    ]
)


# one file per part and repeat: for each image of CLUSTERS its n_opened, ordered by the mate's cluster; the mates are not
# stored, they follow from clusters and seed (fiqa_ray.datasets.pairs)
PAIRS = pa.schema([_never_null("similarity", pa.float32())])  # cosine, a multiple of 2^-23 in [-1, 1]


def cluster_suffix(fit: int) -> str:
    """Return the suffix of a part's file of clusters; `fit` is 0, or the repeat if each repeat has its own clusters."""
    return f".clusters-{fit:02d}.parquet"


def repeat_suffix(repeat: int) -> str:
    """Return the suffix of a part's file that holds one repeat."""
    return f".repeat-{repeat:02d}.parquet"


def key_counts(n_bytes: int) -> pa.Schema:
    """Sparse histogram of some pairs of a repeat, or of all (the dataset `similarity_ranks`: one part per repeat).

    Row `block` holds 64 little-endian unsigned counts of `n_bytes` bytes, for the similarities (64 * block + j) / 2**23,
    j = 0..63.
    """
    return pa.schema([_never_null("block", pa.int32()), _never_null("counts", pa.binary(64 * n_bytes))])


SORTED_KEYS = pa.schema([_never_null("similarity_key", pa.int32())])  # ascending: the keys of some parts of pairs


RUN_SAMPLES = pa.schema(  # the first row of each row group of a sorted run
    [
        _never_null("run_row", pa.int64()),
        _never_null("sort_key", pa.int64()),
        _never_null("sort_tie", pa.int64()),
    ]
)


SCORE_RUNS = pa.schema(  # the scores of neighbouring images that have one: ascending, ties by image_row
    [_never_null("score", pa.float64()), _never_null(*ROW)]
)


SORTED_SCORES = pa.schema([_never_null("score", pa.float64())])  # all scores of a method, ascending over all parts


SCORE_PLACES = pa.schema(  # the same scores in the order of SCORE_RUNS, span after span
    [_never_null(*ROW), _never_null("quality_index", pa.int64()), _never_null("score", pa.float64())]
)


QUALITY_INDEX = pa.schema(  # index of the prior score in ascending order; -1 and null if the image has no score
    [_never_null(*ROW), _never_null("quality_index", pa.int64()), ("prior_score", pa.float64())]
)


OPTIMIZED_INDEX = pa.schema(  # rows of images with a score
    [
        _never_null(*ROW),
        _never_null("optimized_index", pa.float64()),
        ("mean_similarity_rank", pa.float64()),  # mean over the repeats in which the image owned a pair, else null
        _never_null("n_owned_pairs", pa.int64()),  # over all repeats
    ]
)


def index_suffix(method: str, theta: float) -> str:
    """Return the suffix of the file with one method's and theta's optimized indices."""
    return f".{method}.theta-{theta!r}.parquet"


INDEX_RUNS = pa.schema(  # the optimized indices of neighbouring images, ascending, ties by quality_index
    [
        _never_null("optimized_index", pa.float64()),
        _never_null("quality_index", pa.int64()),
        _never_null(*ROW),
    ]
)


NEW_SCORES = pa.schema(  # of the images of a range of optimized indices, in the order of INDEX_RUNS, span after span
    [_never_null(*ROW), _never_null("optimized_score", pa.float64())]
)


OPTIMIZED_LABELS = pa.schema(  # every image; null if it has no prior score
    [
        ROW,
        ("image_id", pa.string()),
        ("prior_score", pa.float64()),
        ("quality_index", pa.int64()),
        ("n_owned_pairs", pa.int64()),
        ("mean_similarity_rank", pa.float64()),
        ("optimized_index", pa.float64()),
        ("optimized_score", pa.float64()),  # the image's new score: the prior scores in the order of optimized_index
        ("label", pa.float32()),  # optimized_score scaled to [0, 1]
    ]
)


EDIFF_THRESHOLD = pa.schema(  # one row
    [_never_null("score", pa.float64())]  # the least score of a good image
)


EDIFF_DISTANCES = pa.schema(  # every image
    [
        _never_null(*ROW),
        ("prior_score", pa.float64()),
        ("distance", pa.float64()),  # 1 - cosine to the mean of the person's good images; null without such a mean
    ]
)


EDIFF_LABELS = pa.schema(  # every image
    [
        ROW,
        ("image_id", pa.string()),
        ("prior_score", pa.float64()),
        ("distance", pa.float64()),  # 1 - cosine to the mean of the person's good images; null without such a mean
        (
            "label",
            pa.float32(),
        ),  # prior score on the scale from 0 to 1, lowered by the distance; null like the distance
    ]
)


TRAINING = pa.schema(  # a regressor's history, one row per validation
    [
        ("step", pa.int64()),
        ("epoch", pa.int32()),
        ("train_loss", pa.float64()),  # mean L1 since the last row
        ("validation_loss", pa.float64()),  # mean L1 over the validation images
    ]
)


COMPARISONS = pa.schema(
    [
        ("image_row_a", pa.int64()),
        ("image_row_b", pa.int64()),
        ("mated", pa.bool_()),
        ("fold", pa.int32()),  # -1 where the protocol has none
        ("similarity", pa.float64()),  # cosine
    ]
)


GROUPED_COMPARISONS = COMPARISONS.append(  # the same where a benchmark has groups of people
    pa.field("group", pa.string())  # that of both images, or as the list of pairs says; empty where there is none
)
