"""`fiqa-ray explain`: why an image's label is what it is, by its pairs in each repeat."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fiqa_ray.config import theta_name
from fiqa_ray.core.labels import rank_scale
from fiqa_ray.core.ranking import RankTable
from fiqa_ray.datasets.histograms import read_histogram
from fiqa_ray.datasets.image_rows import read_span
from fiqa_ray.datasets.pairs import StoredPairs
from fiqa_ray.errors import UsageError
from fiqa_ray.images import decode_faces
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.storage import write_atomic

_TEXT_HEIGHT, _LABEL_WIDTH = 18, 112


@dataclass(frozen=True)
class ExplainedPair:
    """One pair of the image.

    Attributes:
        mate: Name of the other image.
        mate_row: Its row.
        similarity: Cosine.
        rank: Mean rank of the similarity among all pairs of the repeat, from 0.
        is_owned: Whether the image is the one of lower quality, which the pair moves.
    """

    mate: str
    mate_row: int
    similarity: float
    rank: float
    is_owned: bool


@dataclass(frozen=True)
class ExplainedImage:
    """An image, its index before and after, and its pairs by repeat.

    Attributes:
        image_id: Its name.
        image_row: Its row among the training faces.
        identity: Its person.
        method: Label of the method.
        theta: Of the optimization.
        prior_score: The method's score.
        label: The label, in [0, 1].
        quality_index: Its place among all images by the prior score, from 0.
        optimized_index: The place after the optimization, from which the new order follows.
        n_images: Images with a score.
        scale: Factor of ranks, which are those of pairs, to places of images.
        n_pairs: Pairs of all images, by repeat.
        repeats: Its pairs, by repeat.
    """

    image_id: str
    image_row: int
    identity: str
    method: str
    theta: float
    prior_score: float
    label: float
    quality_index: int
    optimized_index: float
    n_images: int
    scale: list[float]
    n_pairs: list[int]
    repeats: list[list[ExplainedPair]]

    def mean_rank(self, repeat: int) -> float:
        """Return the mean rank of the pairs that the image owns in a repeat, on the scale of places; NaN without any."""
        ranks = [pair.rank for pair in self.repeats[repeat] if pair.is_owned]
        return self.scale[repeat] * float(np.mean(ranks)) if ranks else np.nan

    def lines(self) -> list[str]:
        """Return the explanation as text."""
        lines = [
            f"{self.image_id}, a face of {self.identity}",
            f"{self.method}: score {self.prior_score:.6g}, place {self.quality_index:,} of {self.n_images:,}, worst first",
        ]
        for repeat, pairs in enumerate(self.repeats):
            lines.append(f"repeat {repeat}: {len(pairs)} pairs")
            for p in sorted(pairs, key=lambda p: (not p.is_owned, -p.similarity)):
                owned = "owned" if p.is_owned else "of the mate, whose quality is lower"
                share = p.rank / max(self.n_pairs[repeat] - 1, 1)
                lines.append(f"  similarity {p.similarity:+.4f}  rank {p.rank:,.1f} ({share:.1%})  {p.mate}  {owned}")
            mean = self.mean_rank(repeat)
            if np.isnan(mean):
                lines.append("  it owns none of them: this repeat leaves its place")
            else:
                move = self.theta * (mean - self.quality_index)
                lines.append(f"  mean rank of the owned ones {mean:,.1f}: moves it by {move:+,.3f} places")
        shift = self.optimized_index - self.quality_index
        lines.append(
            f"theta {self.theta:g}: index {self.quality_index:,} -> {self.optimized_index:,.3f} ({shift:+,.3f})"
        )
        lines.append(f"label {self.label:.6f}")
        return lines


def explain_image(job: Job, image_id: str, method: str | None = None, theta: str | None = None) -> ExplainedImage:
    """Explain the label of a training image of a finished job.

    Args:
        job: The job.
        image_id: Name of the image.
        method: Label of a method; None: the first.
        theta: As settings name it, such as "0.1" or "heldout"; None: the first.

    Raises:
        UsageError: The image, the method or theta is unknown.
        FiqaRayError: A stage has not finished.
    """
    methods = {m.label: m for m in job.settings.methods}
    thetas = {theta_name(t): t for t in job.settings.optimize.thetas}
    if not thetas:
        raise UsageError(
            "explain shows labels by ranks, and optimize.mode is ediff alone; `fiqa-ray labels` has the labels, the dataset "
            "ediff_labels each image's distance"
        )
    method, theta = method or next(iter(methods)), theta or next(iter(thetas))
    if method not in methods or theta not in thetas:
        raise UsageError(
            f"method {method!r}, theta {theta}: the job has {', '.join(methods)} and theta {', '.join(thetas)}"
        )
    labels = job.optimized_labels(methods[method], thetas[theta]).read_all()
    index, row = labels["quality_index"].to_numpy(), labels["image_id"].index(image_id).as_py()
    if row < 0:
        raise UsageError(f"{image_id!r} is no training face of the job; names are like {labels['image_id'][0]}")
    (values,) = labels.slice(row, 1).to_pylist()
    if values["optimized_index"] is None:
        raise UsageError(f"{image_id!r} has no score by {method}, so it has no label")
    reader, ranks, n_scored = job.pair_reader(), job.similarity_ranks().require(), int((index >= 0).sum())
    names = labels["image_id"].to_pylist()
    stored = _part_of(reader.stored(), row)
    n_pairs = [part.n_rows for part in ranks.parts]
    repeats = []
    for pairs in reader.read(stored, range(len(n_pairs))):
        table = RankTable.of(read_histogram(job.similarity_ranks().read(ranks.parts[pairs.repeat])))
        first, image, mate = stored.shard.first, pairs.image, pairs.mate
        mine = np.flatnonzero((image == row - first) | (mate == row - first))
        rank = table.doubled_ranks(pairs.similarity[mine]) / 2
        others = first + np.where(image[mine] == row - first, mate[mine], image[mine])
        is_owner = index[row] < index[others]
        cosines = pairs.similarity[mine]
        repeats.append(
            [
                ExplainedPair(names[o], int(o), float(s), float(r), bool(w))
                for o, s, r, w in zip(others, cosines, rank, is_owner, strict=True)
                if index[o] >= 0
            ]
        )
    chosen = job.theta_of(LabelSet(methods[method], thetas[theta]))
    faces = job.faces("train")
    identity = read_span(faces, row, row + 1, ["identity"])
    scale = [rank_scale(job.settings.optimize.index_scale, n_scored, n) for n in n_pairs]
    return ExplainedImage(
        image_id,
        row,
        identity["identity"][0].as_py(),
        method,
        chosen,
        values["prior_score"],
        values["label"],
        values["quality_index"],
        values["optimized_index"],
        n_scored,
        scale,
        n_pairs,
        repeats,
    )


def _part_of(stored: list[StoredPairs], row: int) -> StoredPairs:
    return next(s for s in stored if s.shard.first <= row < s.shard.first + s.shard.n_rows)


def write_picture(job: Job, image: ExplainedImage, output: str) -> None:
    """Write a picture of the image and its mates as PNG: a row per repeat, most similar first, with similarities.

    Raises:
        UsageError: The name does not end in .png.
    """
    if not output.endswith(".png"):
        raise UsageError(f"output {output!r} must end in .png")
    rows = [image.image_row, *{pair.mate_row for pairs in image.repeats for pair in pairs}]
    first, last = min(rows), max(rows) + 1
    faces = job.faces("train")
    stored = read_span(faces, first, last, ["face"])["face"].to_pylist()
    pixels, _ = decode_faces([stored[row - first] for row in rows])
    face_of = {row: np.ascontiguousarray(p.transpose(1, 2, 0)) for row, p in zip(rows, pixels, strict=True)}
    strips = []
    for repeat, pairs in enumerate(image.repeats):
        ordered = sorted(pairs, key=lambda p: -p.similarity)
        tiles = [_tile(face_of[image.image_row], f"repeat {repeat}")]
        tiles += [_tile(face_of[p.mate_row], f"{p.similarity:.3f}{'' if p.is_owned else ' mate'}") for p in ordered]
        strips.append(np.concatenate(tiles, axis=1))
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    _, encoded = cv2.imencode(".png", np.concatenate(padded)[:, :, ::-1])
    write_atomic(output, encoded.tobytes())


def _tile(face: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Return a face above a line of text."""
    line = np.full((_TEXT_HEIGHT, _LABEL_WIDTH, 3), 255, np.uint8)
    cv2.putText(line, text, (4, _TEXT_HEIGHT - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([face, line])
