"""IJB-B and IJB-C: lists, source and evaluation by templates."""

from pathlib import Path

import numpy as np
import pytest

import containers
import smoke
from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.datasets.columns import embedding_values
from fiqa_ray.datasets.schemas import SOURCE_FACES
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.ijb import list_ijb, read_ijb_pairs
from fiqa_ray.tools.run_job import run_job

N_PEOPLE, N_EACH = 4, 6


def write_ijb(root: Path) -> Path:
    """Write four people of two templates each: images 0 to 2 (two of one medium) and 3 to 5 (each a medium)."""
    (root / "loose_crop").mkdir(parents=True)
    (root / "meta").mkdir()
    images, entries, pairs = [], [], []
    for i, (person, jpeg) in enumerate(containers.synthetic_crops(N_PEOPLE, N_EACH)):
        (root / "loose_crop" / f"{i + 1}.jpg").write_bytes(jpeg)
        points = " ".join(f"{v:.3f}" for v in TEMPLATE.ravel())
        images.append(f"{i + 1}.jpg {points} {0.5 + 0.01 * i:.2f}\n")
        place = i % N_EACH
        entries.append(f"{i + 1}.jpg {100 + 2 * person + place // 3} {7 if place < 2 else 10 + place}\n")
    for a in range(2 * N_PEOPLE):
        pairs += [f"{100 + a} {100 + b} {int(a // 2 == b // 2)}\n" for b in range(a + 1, 2 * N_PEOPLE)]
    (root / "meta/ijbx_name_5pts_score.txt").write_text("".join(images))
    (root / "meta/ijbx_face_tid_mid.txt").write_text("".join(entries))
    (root / "meta/ijbx_template_pair_label.txt").write_text("".join(pairs))
    return root


def test_lists_by_their_names(tmp_path: Path) -> None:
    root = write_ijb(tmp_path / "ijb")
    table = list_ijb(str(root))
    assert table.schema == SOURCE_FACES
    rows = {r["image_id"]: r for r in table.to_pylist()}
    assert sorted(rows, key=lambda name: int(name[:-4])) == [f"{i}.jpg" for i in range(1, 25)]
    assert rows["10.jpg"]["uri"] == str(root / "loose_crop" / "10.jpg")
    np.testing.assert_allclose(rows["10.jpg"]["landmarks"], TEMPLATE.ravel(), atol=1e-3)
    pairs = read_ijb_pairs(str(root))
    assert pairs.image_id.to_pylist()[:2] == ["1.jpg", "2.jpg"]
    assert pairs.template.tolist()[:7] == [100, 100, 100, 101, 101, 101, 102]
    assert pairs.medium.tolist()[:7] == [7, 7, 12, 13, 14, 15, 7]
    assert pairs.detector_score.tolist()[:3] == [0.5, 0.51, 0.52]
    assert (pairs.template_a[0], pairs.template_b[0], pairs.mated.tolist()[:2]) == (100, 101, [True, False])
    assert (len(pairs), int(pairs.mated.sum())) == (28, 4)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("ijbx_face_tid_mid.txt", ("3.jpg 100", "9.jpg 100"), "its images are not those of"),
        ("ijbx_face_tid_mid.txt", ("3.jpg 100 12", "3.jpg 100"), "a line is 'image template medium'"),
        ("ijbx_template_pair_label.txt", ("100 101 1", "100 101 2"), "line 1: the label is 2"),
        ("ijbx_template_pair_label.txt", ("100 101 1", "100 x 1"), "a line is 'template_a template_b label'"),
        ("ijbx_name_5pts_score.txt", None, "no file ends in _name_5pts_score.txt"),
    ],
)
def test_faulty_lists_are_named(tmp_path: Path, file: str, change: tuple[str, str] | None, words: str) -> None:
    root = write_ijb(tmp_path / "ijb")
    path = root / "meta" / file
    if change is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(FiqaRayError) as info:
        read_ijb_pairs(str(root))
    assert words in str(info.value)


def by_hand(root: Path, values: np.ndarray, names: list[str], norm: str) -> dict[tuple[int, int], float]:
    """Return the similarity of each pair, image by image in float64."""
    of_image = dict(zip(names, values.astype(np.float64), strict=True))
    scores = {line.split()[0]: float(line.split()[-1]) for line in (root / "meta/ijbx_name_5pts_score.txt").open()}
    media: dict[tuple[int, int], list[np.ndarray]] = {}
    for line in (root / "meta/ijbx_face_tid_mid.txt").open():
        image, template, medium = line.split()
        x = of_image[image] / (np.linalg.norm(of_image[image]) if norm == "unit" else 1) * scores[image]
        media.setdefault((int(template), int(medium)), []).append(x)
    template = {t: sum(np.mean(x, axis=0) for (of, _), x in media.items() if of == t) for t, _ in media}
    unit = {t: x / np.linalg.norm(x) for t, x in template.items()}
    return {(a, b): float(unit[a] @ unit[b]) for a in unit for b in unit if a < b}


@pytest.mark.parametrize(("norm", "how"), [("keep", "min"), pytest.param("unit", "max", marks=pytest.mark.slow)])
def test_a_job_on_templates(tmp_path: Path, norm: str, how: str) -> None:
    root = write_ijb(tmp_path / "ijb")
    faces = smoke.make_faces(tmp_path / "faces", n_identities=3, per_identity=4)
    pairs = {"kind": "ijb", "uri": str(root), "template_norm": norm, "template_quality": how}
    bench = {"name": "ijbx", "source": {"kind": "ijb", "uri": str(root)}, "pairs": pairs}
    settings = smoke.settings(
        tmp_path, faces, str(tmp_path / "run"), benchmarks=[bench], methods=[{"name": "embedding_norm"}],
        evaluate={"fmr": 0.1, "allow_rare_fmr": True, "draws": 0, "conventions": ["dasec"]}, train={"n_epochs": 1},
    )  # fmt: skip
    job = run_job(settings)
    dataset = job.evaluation(settings.benchmarks[0])
    (part,) = dataset.require().parts
    names = job.faces("ijbx").read_all(["image_id"])["image_id"].to_pylist()
    values, _ = embedding_values(job.embeddings("ijbx").read_all(["embedding"]))
    expected = by_hand(root, values, names, norm)
    found = job.comparisons(settings.benchmarks[0], settings.recognizer).read_all()
    assert part.stats == {"n_pairs_used": 28, "n_pairs_skipped": 0}
    np.testing.assert_allclose(found["similarity"], list(expected.values()), atol=1e-6)
    # dasec by hand: one threshold, of the two mated pairs with the lowest quality one after the other goes
    score = dict(zip(names, job.prior_scores("ijbx", settings.methods[0]).read_all()["score"].to_pylist(), strict=True))
    of_template: dict[int, list[float]] = {}
    for line in (root / "meta/ijbx_face_tid_mid.txt").open():
        of_template.setdefault(int(line.split()[1]), []).append(score[line.split()[0]])
    pick = {"min": min, "max": max}[how]
    quality = {t: pick(s) for t, s in of_template.items()}
    threshold = sorted((s for (a, b), s in expected.items() if (a - 100) // 2 != (b - 100) // 2), reverse=True)[2]
    mated = sorted((min(quality[a], quality[a + 1]), expected[a, a + 1]) for a in range(100, 108, 2) for b in [a])
    wrong = [similarity <= threshold for _, similarity in mated]
    area = sum(np.mean(wrong[k:]) for k in range(4)) / 4
    rows = dataset.read(part, suffix=".auc.parquet").to_pylist()
    (whole,) = [r for r in rows if r["scorer"] == "embedding_norm" and r["discard_limit"] == 1]
    assert whole["auc"] == pytest.approx(area, abs=1e-12)
