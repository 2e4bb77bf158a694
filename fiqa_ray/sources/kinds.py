"""The tables of what can be read: kinds of face sources, and formats of pair lists.

A new kind is a file of this folder and a row here; `config/faces.py` names it.

Every source lists its images, without opening one, as a table (`fiqa_ray.datasets.schemas.SOURCE_FACES`, or SOURCE_RECORDS
for images inside larger files), sorted by (identity, image_id), of the columns

    uri        where the image is: a URL, or a local path (made absolute)
    image_id   its name within the data set, with forward slashes; unique
    identity   whose face it is
    landmarks  x1, y1 .. x5, y5 in px of the image, in the order of `fiqa_ray.core.align`; null where none are known

A data set is listed once, by one walk or from its list files; nothing is asked about single files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.agedb import read_agedb_pairs
from fiqa_ray.sources.containers import Content, read_entries
from fiqa_ray.sources.files import read_files
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.sources.ijb import TemplatePairs, ijb_lists, list_ijb, read_ijb_pairs
from fiqa_ray.sources.insightface_bin import list_bin, read_bin, read_bin_pairs
from fiqa_ray.sources.pair_lines import read_pair_lines
from fiqa_ray.sources.parquet_images import list_parquet_images, read_parquet_images
from fiqa_ray.sources.protocols import (
    VerificationPairs,
    read_calfw_pairs,
    read_cfp_pairs,
    read_cplfw_pairs,
    read_lfw_pairs,
    read_pairs_table,
)
from fiqa_ray.sources.recordio import list_recordio, read_recordio, recordio_lists
from fiqa_ray.sources.stored_embeddings import list_embeddings
from fiqa_ray.sources.table import list_table
from fiqa_ray.sources.vggface2 import list_vggface2
from fiqa_ray.sources.webdataset import list_webdataset


@dataclass(frozen=True)
class Source:
    """One kind of face source.

    Attributes:
        list_faces: called with the URI and the options, returns the table of images. Sources that look into folders or
            archives also take `left_out`, a counter of what they did not take.
        read_images: called with rows of that table, yields their rows and contents in the order that suits the source.
        options: settings of `SourceSettings` that `list_faces` takes.
        counts_left_out: whether `list_faces` takes `left_out`.
        has_images: whether there are images to read, or embeddings alone.
        lists: called with the URI, returns the files that say which images there are, by name. A change of their content
            makes another data set; folders and archives count by their URI alone.
    """

    list_faces: Callable[..., pa.Table]
    read_images: Callable[[pa.Table], Iterator[tuple[int, Content]]]
    options: tuple[str, ...] = ()
    counts_left_out: bool = False
    has_images: bool = True
    lists: Callable[[str], dict[str, str]] = lambda _: {}


@dataclass(frozen=True)
class PairList:
    """One format of verification pairs.

    Attributes:
        read_pairs: called with the URI and the options.
        options: settings of `PairListSettings` that it takes.
        lists: called with the URI, returns the files that decide the pairs, by name; a folder of many small lists is named,
            not read.
    """

    read_pairs: Callable[..., VerificationPairs | TemplatePairs]
    options: tuple[str, ...] = ()
    lists: Callable[[str], dict[str, str]] = lambda uri: {"uri": uri}


def refuse_list(uri: str) -> VerificationPairs:
    """Refuse to list all pairs of a set, which needs its faces.

    Raises:
        FiqaRayError: Always.
    """
    raise FiqaRayError(f"{uri}: pairs.kind all_pairs has no list")


SOURCES: dict[str, Source] = {
    "folder": Source(list_folder, read_files, ("landmarks_uri", "identity_level"), True),
    "vggface2": Source(list_vggface2, read_files, ("splits",), True),
    "table": Source(list_table, read_files, lists=lambda uri: {"list": uri}),
    "recordio": Source(list_recordio, read_recordio, lists=recordio_lists),
    "webdataset": Source(list_webdataset, read_entries, ("identity_key",), True),
    "parquet_images": Source(list_parquet_images, read_parquet_images, ("identity_key",), True),
    "bin": Source(list_bin, read_bin, lists=lambda uri: {"list": uri}),
    "embeddings": Source(list_embeddings, read_files, (), True, has_images=False),
    "ijb": Source(list_ijb, read_files, lists=lambda uri: {"list": ijb_lists(uri)["images"]}),
}

PROTOCOLS: dict[str, PairList] = {
    "lfw": PairList(read_lfw_pairs, ("extension",)),
    "cplfw": PairList(read_cplfw_pairs),
    "calfw": PairList(read_calfw_pairs),
    "cfp": PairList(read_cfp_pairs, ("part",), lists=lambda _: {}),
    "table": PairList(read_pairs_table),
    "bin": PairList(read_bin_pairs),
    "agedb": PairList(read_agedb_pairs, ("extension",)),
    "lines": PairList(read_pair_lines),
    "ijb": PairList(read_ijb_pairs, lists=ijb_lists),
    "all_pairs": PairList(refuse_list, lists=lambda _: {}),
}
