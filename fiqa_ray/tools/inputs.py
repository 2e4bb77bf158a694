"""What a job's settings name beside images and models, read before the first stage and matched once faces are listed.

Score files, pair lists and degradations are needed hours after the start. A fault in them must not show only then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.config import BenchmarkSettings, EvaluateSettings, ScoresSettings, Settings
from fiqa_ray.content_ids import model_id
from fiqa_ray.engine.progress import note
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.models.recognition import scaling_conflict
from fiqa_ray.sources.comparisons import Comparisons, match_pairs, read_pairs
from fiqa_ray.sources.degradations import read_degradations
from fiqa_ray.sources.groups import groups_of_images, read_groups
from fiqa_ray.sources.ijb import TemplatePairs
from fiqa_ray.sources.keys import remedy_of, rows_of_keys
from fiqa_ray.sources.protocols import VerificationPairs
from fiqa_ray.sources.scores import read_scores, scores_by_id
from fiqa_ray.stages.compare import check_rates
from fiqa_ray.stages.evaluate import check_comparisons

LEVEL = 0.95
"""Of the intervals of an evaluation."""


def read_inputs(job: Job, stages: Collection[str]) -> None:
    """Read and parse every score file, pair list and degradation file that the stages need; print warnings of the models.

    Raises:
        UsageError: `evaluate.compare_scorers` names an unknown scorer.
        FiqaRayError: a file is missing or faulty, or a model's weights cannot be read; the message names the setting.
    """
    face_set = next(iter(job.face_sets), None)
    if "score" in stages and face_set is not None:
        for method in job.settings.methods:
            try:
                job.prior_scores(face_set, method)  # hashes the weights
                if method.scores is not None and job.with_training:
                    read_scores(**method.scores.model_dump(exclude={"key_rule"}))
            except FiqaRayError as exc:
                raise type(exc)(f"methods: {method.label}: {exc}") from exc
    if {"embed", "score"} & set(stages):
        for where, recognizer in [
            ("recognizer", job.settings.recognizer),
            *((f"evaluate.recognizers: {r.label}", r) for r in job.settings.evaluate.recognizers),
        ]:
            try:
                model_id(recognizer)  # hashes the weights
            except FiqaRayError as exc:
                raise type(exc)(f"{where}: {exc}") from exc
        for text in input_warnings(job.settings) if job.settings.compute.engine == "ray" else ():
            note(text)  # what the workers say of it stays in Ray's logs
    if not {"score", "evaluate"} & set(stages):
        return
    for benchmark in job.settings.benchmarks:
        try:
            _read_benchmark(benchmark, job.settings.evaluate if "evaluate" in stages else None)
        except FiqaRayError as exc:
            raise type(exc)(f"benchmarks: {benchmark.name}: {exc}") from exc
    if "evaluate" in stages and job.settings.benchmarks:
        check_comparisons(job)
        _note_few_draws(job)


def _note_few_draws(job: Job) -> None:
    """Say where no difference can be clear: n draws give no p-value below 2 / (n + 1), and Holm's correction multiplies it.

    The largest family counts: all scores of all benchmarks, against random numbers.
    """
    draws = job.settings.evaluate.draws
    n_regressors = len(job.label_sets())
    n_comparisons = sum(
        len(job.settings.methods) + n_regressors + len(benchmark.scores) for benchmark in job.settings.benchmarks
    )
    smallest = 2 * n_comparisons / (draws + 1)
    if draws and smallest >= 1 - LEVEL:
        enough = 1000 * math.ceil(4 * n_comparisons / (1 - LEVEL) / 1000)
        note(
            f"evaluate.draws: {draws} draws are too few for up to {n_comparisons} comparisons: after Holm's correction the "
            f"smallest p-value may be {smallest:.2g}, and no difference is called clear; give {enough}"
        )


def _read_benchmark(benchmark: BenchmarkSettings, evaluate: EvaluateSettings | None) -> None:
    if benchmark.pairs.kind != "all_pairs":
        _read_list(benchmark, evaluate)
    for file in benchmark.scores.values():
        read_scores(**file.model_dump(exclude={"key_rule"}))
    if benchmark.degradations is not None:
        read_degradations(benchmark.degradations)
    if benchmark.groups is not None:
        read_groups(benchmark.groups)


def _read_list(benchmark: BenchmarkSettings, evaluate: EvaluateSettings | None) -> None:
    """Read a list of pairs and say what is odd in it."""
    pairs = read_pairs(benchmark.pairs)
    if evaluate is not None:
        check_rates(evaluate, benchmark.name, int((~np.asarray(pairs.mated)).sum()))
    is_same = (
        pairs.template_a == pairs.template_b
        if isinstance(pairs, TemplatePairs)
        else pairs.image_id_a == pairs.image_id_b
    )
    n_same = int(is_same.sum())
    if n_same:
        note(f"benchmark {benchmark.name}: {n_same:,} of {len(pairs):,} pairs compare an image with itself")
    if isinstance(pairs, VerificationPairs):
        _note_folds(benchmark.name, pairs)


def _note_folds(name: str, pairs: VerificationPairs) -> None:
    """Say how many folds hold pairs of one kind only."""
    folds = np.unique(pairs.fold[pairs.fold >= 0])
    one_kind = [fold for fold in folds if len(np.unique(pairs.mated[pairs.fold == fold])) == 1]
    if one_kind:
        note(
            f"benchmark {name}: {len(one_kind)} of {len(folds)} folds hold mated pairs only or non-mated pairs only; the "
            "accuracy by folds says little then, areas are not affected"
        )


def input_warnings(settings: Settings) -> list[str]:
    """Return a warning for each recogniser whose pixels a user scales otherwise than its file wants."""
    recognizers = [settings.recognizer, *settings.evaluate.recognizers]
    texts = [scaling_conflict(r.name, r.options) for r in recognizers if r is not None]
    return [text for text in dict.fromkeys(texts) if text]


def match_inputs(job: Job, stages: Collection[str], listed: Callable[[str], pa.Table]) -> None:
    """Match the names of images in the files that the stages need with the listed faces.

    Args:
        job: the job.
        stages: names of stages.
        listed: returns `image_id` and `identity` of a face set's images, in their order.

    Raises:
        FiqaRayError: names do not meet; the message shows one of each side, and the rule under which they would.
    """
    if "score" in stages and job.with_training:
        image_id = listed("train")["image_id"].combine_chunks()
        for method in job.settings.methods:
            if method.scores is not None:
                allow_others = job.settings.train_source.limit is not None
                _match_scores(f"methods: {method.label}", image_id, method.scores, allow_others)
    if not {"score", "evaluate"} & set(stages):
        return
    for benchmark in job.settings.benchmarks:
        faces = listed(benchmark.name)
        image_id = faces["image_id"].combine_chunks()
        if job.with_training:
            _note_training_people(job, benchmark, listed)
        for label, file in benchmark.scores.items():
            _match_scores(f"benchmarks: {benchmark.name}: {label}", image_id, file, benchmark.source.limit is not None)
        try:
            _match_benchmark(benchmark, image_id, faces["identity"].combine_chunks())
        except FiqaRayError as exc:
            raise type(exc)(f"benchmarks: {benchmark.name}: {exc}") from exc


def _note_training_people(job: Job, benchmark: BenchmarkSettings, listed: Callable[[str], pa.Table]) -> None:
    """Say where a benchmark has the source of the training faces, or many people of the same names."""
    train = job.settings.train_source
    beginning = f"warning: benchmark {benchmark.name}:"
    if benchmark.source.model_dump(exclude={"limit"}) == train.model_dump(exclude={"limit"}):
        note(f"{beginning} its faces are the training faces, so its figures say nothing of other people")
        return
    people, known = (set(listed(name)["identity"].unique().to_pylist()) for name in (benchmark.name, "train"))
    n_shared = len(people & known)
    if 2 * n_shared > len(people):
        note(
            f"{beginning} {n_shared:,} of its {len(people):,} people have names of training people; if they are the same, "
            "its figures say nothing of other people"
        )


def _match_benchmark(benchmark: BenchmarkSettings, image_id: pa.Array, identity: pa.Array) -> None:
    source_uri = benchmark.source.uri
    if benchmark.pairs.kind != "all_pairs":
        pairs = match_pairs(benchmark, image_id)
        n_absent = int((np.minimum(pairs.row_a, pairs.row_b) < 0).sum())
        if n_absent:
            note(
                f"benchmark {benchmark.name}: {n_absent:,} of {len(pairs.mated):,} pairs are left out, because {source_uri} "
                "lacks their images; the figures are not those of the whole set"
            )
        if pairs.templates is None:
            _note_odd_answers(benchmark.name, pairs, image_id, identity)
    if benchmark.groups is not None:
        groups_of_images(benchmark.groups, image_id)
    if benchmark.degradations is not None:
        keys = read_degradations(benchmark.degradations)["image_id"].combine_chunks()
        if (rows_of_keys(keys, image_id) < 0).all():
            raise FiqaRayError(
                f"{benchmark.degradations}: none of its images is in {source_uri}: it has {keys[0]}, the images are like "
                f"{image_id[0]}{remedy_of(keys, image_id, (), '')}"
            )


def _note_odd_answers(name: str, pairs: Comparisons, image_id: pa.Array, identity: pa.Array) -> None:
    """Say how many pairs a list names again or with both answers, or calls non-mated though the source names one person."""
    are_there = np.minimum(pairs.row_a, pairs.row_b) >= 0
    a, b, mated = pairs.row_a[are_there], pairs.row_b[are_there], pairs.mated[are_there]
    pair = np.minimum(a, b) * len(image_id) + np.maximum(a, b)
    n_again = len(pair) - len(np.unique(pair))
    if n_again:
        note(f"benchmark {name}: {n_again:,} of {len(pair):,} pairs repeat a pair of the list; each counts")
    with_both = np.intersect1d(pair[mated], pair[~mated])
    if len(with_both):
        example = " and ".join(image_id[int(row)].as_py() for row in divmod(with_both[0], len(image_id)))
        note(
            f"warning: benchmark {name}: {len(with_both):,} pair(s) stand in the list as mated and as non-mated, such as "
            f"{example}; one of the two is wrong, and both count"
        )
    person = pc.dictionary_encode(identity).indices.to_numpy(zero_copy_only=False)
    denied = np.flatnonzero(~mated & (person[a] == person[b]) & (a != b))
    if len(denied) and person.any():
        example = " and ".join(image_id[int(row)].as_py() for row in (a[denied[0]], b[denied[0]]))
        note(
            f"warning: benchmark {name}: {len(denied):,} of {int((~mated).sum()):,} non-mated pairs show one person by the "
            f"source's identities, such as {example}; a list says 1 (mated) where two images show one person"
        )


def _match_scores(where: str, image_id: pa.Array, file: ScoresSettings, allow_others: bool) -> None:
    try:
        score = scores_by_id(image_id, **file.model_dump(), allow_others=allow_others)
    except FiqaRayError as exc:
        raise type(exc)(f"{where}: {exc}") from exc
    if len(score) > 1 and np.ptp(score) == 0:
        note(f"{where}: all {len(score):,} scores in {file.uri} are {score[0]:g}, so they tell no image from another")
