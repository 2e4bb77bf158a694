"""What is needed last is read first: before any stage, and matched before the first image is decoded."""

import csv
import unicodedata
from pathlib import Path

import pytest

import smoke
from fiqa_ray.config import EvaluateSettings
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.job import Job
from fiqa_ray.stages import STAGES
from fiqa_ray.stages.pack import list_faces
from fiqa_ray.tools.inputs import match_inputs, read_inputs
from fiqa_ray.tools.plan import plan_job
from fiqa_ray.tools.run_job import run_job

PAIRS = "image_id_a,image_id_b,mated\n"
SAME = "Name_0/Name_0_0001.jpg,Name_0/Name_0_0002.jpg,1\nName_1/Name_1_0001.jpg,Name_1/Name_1_0001.jpg,1\n"
OTHERS = "Name_0/Name_0_0001.jpg,Name_1/Name_1_0002.jpg,0\nName_2/Name_2_0001.jpg,Name_1/Name_1_0002.jpg,0\n"


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return smoke.make_faces(tmp_path_factory.mktemp("inputs") / "faces", n_identities=3, per_identity=4)


def job(tmp_path, faces, *, pairs=None, scores=None, methods=None, **bench):
    """The smoke job with its one benchmark changed."""
    benchmark = {
        "name": "bench",
        "source": {"kind": "folder", "uri": f"{faces}/bench"},
        "pairs": pairs or {"kind": "lfw", "uri": f"{faces}/pairs.txt"},
        "scores": scores or {},
        **bench,
    }
    methods = methods or [{"name": "embedding_norm"}]
    evaluate = {"fmr": 0.1, "draws": 20, "allow_rare_fmr": True}
    run_uri = str(tmp_path / "run")
    return smoke.settings(tmp_path, faces, run_uri, benchmarks=[benchmark], methods=methods, evaluate=evaluate)


def refused(settings, *words):
    """One error with these words, of plan and of run, before a single image was packed."""
    for call in (lambda: plan_job(Job(settings)), lambda: run_job(settings)):
        with pytest.raises(FiqaRayError) as info:
            call()
        for word in words:
            assert str(word) in str(info.value)
    parts = list(Path(settings.run_uri).rglob("*part-*"))
    assert parts == []


def table(path, text):
    path.write_text(text)
    return str(path)


def test_every_named_file_is_read_before_the_first_stage(tmp_path, faces):
    missing = str(tmp_path / "nowhere.csv")
    bad = table(tmp_path / "bad.csv", "image_id,score\na,good\n")
    twice = table(tmp_path / "twice.csv", "image_id,image_id,kind,quality\n")
    for change, words in (
        ({"pairs": {"kind": "table", "uri": missing}}, ["not found"]),
        ({"pairs": {"kind": "table", "uri": table(tmp_path / "p.csv", "a,b\n")}}, ["benchmarks: bench", "no column"]),
        ({"scores": {"mine": missing}}, ["not found"]),
        ({"scores": {"mine": bad}}, ["benchmarks: bench", "'good'"]),
        ({"degradations": twice}, ["benchmarks: bench", "'image_id' stands 2 times"]),
        ({"methods": [{"name": "mine", "scores": bad}]}, ["methods: mine", "'good'"]),
    ):
        refused(job(tmp_path, faces, **change), *words)


def test_a_recognisers_weights_are_looked_for_first(tmp_path, faces):
    settings = smoke.settings(
        tmp_path, faces, str(tmp_path / "run"), benchmarks=[], methods=[{"name": "embedding_norm"}],
        recognizer={"name": "arcface_r18", "weights": str(tmp_path / "nowhere.pth")},
    )  # fmt: skip
    refused(settings, "nowhere.pth", "not found")


def test_names_are_matched_before_the_first_image_is_packed(tmp_path, faces):
    with open(faces / "scores.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    prefixed = "image_id,score\n" + "".join(f"/data/{r['image_id']},{r['score']}\n" for r in rows)
    scores = table(tmp_path / "prefixed.csv", prefixed)
    refused(
        job(tmp_path, faces, methods=[{"name": "mine", "scores": scores}]),
        "methods: mine", "p00/000.jpg", "/data/p00/000.jpg", "scores.key_rule: [prefix]",
    )  # fmt: skip
    unknown = table(tmp_path / "unknown.csv", PAIRS + (SAME + OTHERS).replace("Name_2_0001", "Name_2_0077"))
    refused(
        job(tmp_path, faces, pairs={"kind": "table", "uri": unknown}), "benchmarks: bench", "Name_2/Name_2_0077.jpg"
    )
    slashed = table(tmp_path / "slashed.csv", PAIRS + (SAME + OTHERS).replace("/", "\\"))
    refused(job(tmp_path, faces, pairs={"kind": "table", "uri": slashed}), "pairs.key_rule: [slash]")
    other = table(tmp_path / "other.csv", "image_id,kind,quality\nx/Name_0/Name_0_0001.jpg,blur,1\n")
    refused(
        job(tmp_path, faces, degradations=other), "none of its images", "Name_0/Name_0_0001.jpg", "write them alike"
    )
    settings = job(tmp_path, faces, methods=[{"name": "mine", "scores": {"uri": scores, "key_rule": ["prefix"]}}])
    done = run_job(settings, ["pack", "score"])
    packed = done.faces("train").read_all(["image_id"])["image_id"].to_pylist()
    values = done.prior_scores("train", settings.methods[0]).read_all()["score"].to_pylist()
    assert dict(zip(packed, values, strict=True)) == {r["image_id"]: float(r["score"]) for r in rows}


def test_constant_scores_and_pairs_of_one_image_are_said(tmp_path, faces, capsys):
    with open(faces / "scores.csv", newline="") as f:
        ids = [r["image_id"] for r in csv.DictReader(f)]
    constant = table(tmp_path / "constant.csv", "image_id,score\n" + "".join(f"{i},0.5\n" for i in ids))
    again = "Name_1/Name_1_0002.jpg,Name_0/Name_0_0001.jpg,0\nName_0/Name_0_0001.jpg,Name_0/Name_0_0002.jpg,0\n"
    pairs = table(tmp_path / "self.csv", PAIRS + SAME + OTHERS + again)
    settings = job(
        tmp_path, faces, pairs={"kind": "table", "uri": pairs}, methods=[{"name": "mine", "scores": constant}]
    )
    run_job(settings, ["pack", "score"])
    text = capsys.readouterr().err
    assert "benchmark bench: 1 of 6 pairs compare an image with itself" in text
    assert "benchmark bench: 2 of 6 pairs repeat a pair of the list; each counts" in text
    example = "such as Name_0/Name_0_0001.jpg and Name_0/Name_0_0002.jpg"
    assert f"benchmark bench: 1 pair(s) stand in the list as mated and as non-mated, {example}" in text
    assert f"benchmark bench: 1 of 4 non-mated pairs show one person by the source's identities, {example}" in text
    assert "methods: mine: all 12 scores in" in text
    assert "are 0.5, so they tell no image from another" in text
    run_job(settings, ["embed", "pair", "rank"])
    assert "methods: mine: all 12 prior scores are equal" in capsys.readouterr().err
    usual = job(tmp_path, faces, methods=[{"name": "mine", "scores": str(faces / "scores.csv")}])
    run_job(usual.model_copy(update={"run_uri": str(tmp_path / "usual")}), ["pack", "embed", "score", "pair", "rank"])
    text = capsys.readouterr().err
    assert not any(words in text for words in ("are equal", "as mated and as non-mated", "show one person"))


@pytest.mark.slow
def test_a_partial_copy_without_folders_of_persons(tmp_path, faces, capsys):
    """Images of a flat set lie in several parts; pairs of absent ones are counted, folds of one kind are said."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for image in (faces / "bench").rglob("*.jpg"):
        (flat / image.name).write_bytes(image.read_bytes())
    names = [line.replace(",", "\n").split() for line in (SAME + OTHERS).splitlines()]
    rows = [(*(name.split("/")[1] for name in row[:2]), row[2], int(row[2])) for row in names]
    rows += [("gone.jpg", "Name_0_0001.jpg", "0", 0), ("Name_0_0002.jpg", "gone.jpg", "1", 0)]
    text = PAIRS.replace("mated", "mated,fold") + "".join(f"{a},{b},{m},{f}\n" for a, b, m, f in rows)
    pairs = {"kind": "table", "uri": table(tmp_path / "partial.csv", text), "allow_partial": True}
    source = {"kind": "folder", "uri": str(flat), "identity_level": None}
    settings = job(tmp_path, faces, pairs=pairs, source=source)
    strict = settings.evaluate.model_copy(update={"allow_rare_fmr": False})
    refused(
        settings.model_copy(update={"evaluate": strict}), "evaluate.fmr=0.1 is below 3 / 3, the number of non-mated"
    )
    compute = settings.compute.model_copy(update={"rows_per_part": 5})
    done = run_job(settings.model_copy(update={"compute": compute}))
    text = capsys.readouterr().err
    assert "benchmark bench: 2 of 6 pairs are left out, because" in text
    assert "benchmark bench: 1 of 2 folds hold mated pairs only or non-mated pairs only" in text
    n_rows = [part.n_rows for part in done.faces("bench").require().parts]
    assert set(n_rows[:-1]) == {5}
    assert sum(n_rows) == len(list(flat.iterdir()))
    dataset = done.evaluation(settings.benchmarks[0])
    (part,) = dataset.require().parts
    assert part.stats == {"n_pairs_used": 4, "n_pairs_skipped": 2}
    compared = done.comparisons(settings.benchmarks[0], settings.recognizer)
    assert compared.read_all()["mated"].to_pylist() == [True, True, False, False]


@pytest.mark.slow
def test_accents_composed_in_another_way_meet_by_the_rule(tmp_path):
    """Folders as macOS stores them, a list as typed; the evaluation is that of a list in the folders' form."""
    root = smoke.make_faces(tmp_path / "faces", n_identities=3, per_identity=4)
    for folder in sorted((root / "bench").iterdir()):
        for image in sorted(folder.iterdir()):
            image.rename(folder / image.name.replace("Name", "Zoe\u0308"))
        folder.rename(folder.parent / folder.name.replace("Name", "Zoe\u0308"))
    text = (root / "pairs.txt").read_text().replace("Name", "Zo\u00eb")
    areas = []
    for form, rule in (("NFC", ["unicode"]), ("NFD", [])):
        pairs = table(tmp_path / f"{form}.txt", unicodedata.normalize(form, text))
        settings = job(tmp_path, root, pairs={"kind": "lfw", "uri": pairs, "key_rule": rule})
        settings = settings.model_copy(update={"run_uri": str(tmp_path / form)})
        if rule:
            plain = settings.benchmarks[0].pairs.model_copy(update={"key_rule": ()})
            bench = settings.benchmarks[0].model_copy(update={"pairs": plain})
            refused(settings.model_copy(update={"benchmarks": (bench,)}), "pairs.key_rule: [unicode]")
        done = run_job(settings, new_settings=True)
        dataset = done.evaluation(settings.benchmarks[0])
        areas.append(dataset.read(dataset.require().parts[0], suffix=".auc.parquet").to_pylist())
    assert areas[0] == areas[1]


def test_plan_refuses_a_rate_that_the_pairs_cannot_carry(tmp_path, faces):
    """Three over the number of non-mated pairs: 3 / 2 here, so that no rate can be confirmed."""
    pairs = table(tmp_path / "pairs.csv", PAIRS + SAME + OTHERS)
    settings = job(tmp_path, faces, pairs={"kind": "table", "uri": pairs})
    strict = settings.evaluate.model_copy(update={"allow_rare_fmr": False})
    refused(settings.model_copy(update={"evaluate": strict}), "evaluate.fmr=0.1 is below 3 / 2", "benchmark bench")


def test_few_draws_and_training_people_in_a_benchmark_are_said(tmp_path, faces, capsys):
    """20 draws: p-values of 2/21 and more. Score, two regressors on one benchmark: 3 comparisons."""
    with open(faces / "pairs_of_train.csv", "w") as file:
        file.write(PAIRS + "p00/000.jpg,p00/001.jpg,1\np00/000.jpg,p01/001.jpg,0\n")
    pairs = {"kind": "table", "uri": f"{faces}/pairs_of_train.csv"}
    settings = job(tmp_path, faces, pairs=pairs, source={"kind": "folder", "uri": f"{faces}/train"})
    read_inputs(Job(settings), STAGES)
    match_inputs(Job(settings), STAGES, lambda name: list_faces(name, settings.train_source)[0])
    text = capsys.readouterr().err
    assert (
        "20 draws are too few for up to 3 comparisons: after Holm's correction the smallest p-value may be 0.29" in text
    )
    assert "warning: benchmark bench: its faces are the training faces" in text
    copied = job(tmp_path, faces, pairs=pairs, source={"kind": "folder", "uri": f"{faces}/./train"})
    match_inputs(Job(copied), STAGES, lambda name: list_faces(name, copied.train_source)[0])
    assert "3 of its 3 people have names of training people" in capsys.readouterr().err
    usual = job(tmp_path, faces).model_copy(update={"evaluate": EvaluateSettings(fmr=0.1, allow_rare_fmr=True)})
    read_inputs(Job(usual), STAGES)
    sources = Job(usual).face_sets
    match_inputs(Job(usual), STAGES, lambda name: list_faces(name, sources[name])[0])
    text = capsys.readouterr().err
    assert "too few" not in text
    assert "training" not in text


def test_an_unknown_scorer_to_compare_is_told_before_anything_is_made(tmp_path, faces):
    (tmp_path / "pairs.csv").write_text(PAIRS + "p00/000.jpg,p00/001.jpg,1\np00/000.jpg,p01/001.jpg,0\n")
    settings = job(tmp_path, faces, pairs={"kind": "table", "uri": f"{tmp_path}/pairs.csv"})
    unknown = settings.evaluate.model_copy(update={"compare_scorers": (("embedding_norm", "truth"),)})
    with pytest.raises(UsageError, match=r"compare_scorers: there is no scorer 'truth'; choose from .*embedding_norm"):
        read_inputs(Job(settings.model_copy(update={"evaluate": unknown})), STAGES)
