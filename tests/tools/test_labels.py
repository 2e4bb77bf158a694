"""Labels without images: every format of embeddings, names and scores gives the same labels."""

import collections
import pickle
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_ray.core.labels import optimize_labels
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.embedding_files import read_embeddings
from fiqa_ray.sources.vector_pickle import read_pickle

N = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the same 60 images of 6 people in every format, and the labels that are right."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    people = np.array([f"p{i // 10}" for i in range(N)])
    names = [f"{p}/{i:02d}.jpg" for i, p in enumerate(people)]
    e = rng.normal(size=(6, 16)).repeat(10, axis=0) + rng.normal(size=(N, 16))
    e, q = e.astype(np.float32), rng.random(N)
    np.save(folder / "e.npy", e)
    np.savez(folder / "e.npz", embedding=e, image_id=names, identity=people)
    table = pa.table({"image_id": names, "identity": people, "embedding": list(e)})
    pq.write_table(table, folder / "e.parquet")
    for protocol in (2, 5):
        path = folder / f"e{protocol}.pkl"
        path.write_bytes(pickle.dumps(dict(zip(names, e, strict=True)), protocol=protocol))
    ordered = collections.OrderedDict((n, v[None]) for n, v in zip(names, e, strict=True))  # a batch of one each
    (folder / "e_ordered.pkl").write_bytes(pickle.dumps(ordered))
    (folder / "q.pkl").write_bytes(pickle.dumps({n: np.float32(v) for n, v in zip(names, q, strict=True)}))
    (folder / "q64.pkl").write_bytes(pickle.dumps(dict(zip(names, map(float, q), strict=True))))
    (folder / "ids.txt").write_text("\n".join(people) + "\n")
    np.save(folder / "ids.npy", people)
    mixed = rng.permutation(N)  # names match rows of another order
    frame = pd.DataFrame({"image_id": names, "identity": people, "score": q})
    frame.iloc[mixed][["image_id", "identity"]].to_csv(folder / "ids.csv", index=False)
    frame.iloc[mixed][["image_id", "score"]].to_csv(folder / "mixed.csv", index=False)
    frame[["image_id", "score"]].to_csv(folder / "q.csv", index=False)
    np.savetxt(folder / "q.txt", q, fmt="%.17g")
    np.save(folder / "q.npy", q)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = optimize_labels(e, people, q, n_clusters=5, theta=[0.1, 0.3], index_scale="normalized")
    return folder, names, people, q, {t: r.label for t, r in labels.items()}


@pytest.mark.parametrize(
    ("embeddings", "identities", "scores"),
    [
        ("e.npy", "ids.txt", "q.csv"),
        ("e.npy", "ids.npy", "q.npy"),
        ("e.npz", None, "mixed.csv"),
        ("e.parquet", "ids.csv", "q.txt"),
        ("e2.pkl", None, "q64.pkl"),
        ("e5.pkl", "ids.csv", "mixed.csv"),
        ("e_ordered.pkl", "ids.txt", "q.npy"),
    ],
)
def test_every_format_gives_the_same_labels(cli, data, tmp_path, embeddings, identities, scores):
    folder, names, people, q, expected = data
    output = tmp_path / "labels.csv"
    given = ["--identities", folder / identities] if identities else []
    code, out, err = cli(
        "labels", "--embeddings", folder / embeddings, *given, "--scores", folder / scores, "--theta", "0.1", "0.3",
        "--n-clusters", 5, "-o", output,
    )  # fmt: skip
    assert (code, out, err) == (0, f"120 labels written to {output}\n", "")
    labels = pd.read_csv(output, dtype={"image_id": str})
    assert labels.columns.tolist() == ["image_id", "identity", "method", "variant", "theta", "chosen", "prior", "label"]
    has_names = embeddings != "e.npy" or scores == "q.csv"
    for theta in (0.1, 0.3):
        rows = labels[labels["theta"] == theta]
        assert rows["image_id"].tolist() == (names if has_names else [str(i) for i in range(N)])
        assert rows["identity"].tolist() == people.tolist()
        np.testing.assert_allclose(rows["prior"], q, rtol=1e-15)
        np.testing.assert_allclose(rows["label"], expected[theta], rtol=1e-6)
    assert set(labels["method"]) == {scores.split(".")[0]}


def test_other_forms_of_the_command(cli, data, tmp_path):
    folder, _, _, q, expected = data
    output = tmp_path / "labels.parquet"
    code, _, err = cli(
        "labels", "--embeddings", folder / "e2.pkl", "--scores", folder / "q.pkl", "--scores", folder / "mixed.csv",
        "--theta", "0.1,0.001", "--n-clusters", 5, "-o", output,
    )  # fmt: skip
    assert code == 0
    assert all(f"warning: {name}: theta=0.001 moves an image by" in err for name in ("q", "mixed"))
    labels = pq.read_table(output).to_pandas()
    assert labels.groupby(["method", "theta"]).size().to_dict() == {
        (m, t): N for m in ("q", "mixed") for t in (0.1, 0.001)
    }
    of = {m: labels[(labels["method"] == m) & (labels["theta"] == 0.1)] for m in ("q", "mixed")}
    assert of["mixed"]["label"].tolist() == pytest.approx(expected[0.1].tolist())
    assert of["q"]["prior"].tolist() == q.astype(np.float32).tolist()  # numbers of numpy in a pickle


def test_labels_of_theta_0_are_said_to_be_the_scores(cli, data, tmp_path):
    folder = data[0]
    arrays = dict(np.load(folder / "e.npz"))
    arrays["embedding"][0] = np.nan
    np.savez(tmp_path / "e.npz", **arrays)
    files = ["--embeddings", tmp_path / "e.npz", "--scores", folder / "q.csv", "-o", tmp_path / "l.csv"]
    _, _, err = cli("labels", *files, "--theta", "0", "0.3", "--n-clusters", "5")
    assert err.count("its labels with theta 0 are its own scores") == 1
    assert "e.npz: 1 images have no embedding, and get no label" in err
    assert "q: its labels with theta 0" in err
    assert "labels with theta 0" not in cli("labels", *files, "--theta", "0.3", "--n-clusters", "5")[2]


def test_faults_are_said(cli, data, tmp_path):
    folder, names, *_ = data
    embeddings = ["labels", "--embeddings", folder / "e.npz"]
    (tmp_path / "few.csv").write_text("image_id,score\n" + "".join(f"{n},1\n" for n in names[1:]))
    (tmp_path / "prefix.csv").write_text("image_id,score\n" + "".join(f"x/{n},{i}\n" for i, n in enumerate(names)))
    (tmp_path / "few.txt").write_text("1\n2\n")
    people = "image_id,identity\n" + "".join(f"{n},{n.split('/')[0]}\n" for n in names)
    (tmp_path / "twice.csv").write_text(f"{people}{names[0]},another\n")
    (tmp_path / "latin.txt").write_bytes("Ren\xe9\nRen\xe8\n".encode("latin-1") * 30)  # one name, if decoded anyhow
    np.savez(tmp_path / "twice.npz", embedding=np.eye(2), image_id=["a/0.jpg", "a/0.jpg"])
    good = ["--scores", folder / "q.csv", "--theta", "0.1"]
    cases = [
        (["labels"], 2, "give the run_uri of one job, or --embeddings"),
        ([*embeddings, "--theta", "0.1"], 2, "need --scores FILE and either --theta"),
        ([*embeddings, *good, "runs/mine"], 2, "could not convert string to float: 'runs/mine'"),
        (["labels", "--embeddings", folder / "e.npy", "--scores", folder / "q.npy", "--theta", 1], 2, "--identities"),
        (
            [*embeddings, "--scores", tmp_path / "few.csv", "--theta", 1],
            2,
            "1 of 60 images are not in it, such as 'p0/00.jpg'",
        ),
        ([*embeddings, "--scores", tmp_path / "prefix.csv", "--theta", 1], 2, "they would meet if the folders"),
        ([*embeddings, "--scores", tmp_path / "few.txt", "--theta", 1], 2, "has 2 rows and"),
        ([*embeddings, *good, "--identities", tmp_path / "twice.csv"], 1, "more than once, such as 'p0/00.jpg'"),
        ([*embeddings, *good, "--identities", tmp_path / "latin.txt"], 1, "not a UTF-8 text file"),
        (["labels", "--embeddings", tmp_path / "twice.npz", *good], 1, "more than once, such as 'a/0.jpg'"),
        (["labels", "--embeddings", folder / "q.csv", *good], 2, "must end in .npy, .npz, .parquet or .pkl"),
        ([*embeddings, "--scores", folder / "q.csv", "--theta", 3], 2, "theta=3.0 is outside [0, 1]"),
    ]
    for argv, code, message in cases:
        result = cli(*argv, "-o", tmp_path / "l.csv")
        assert (result[0], message in result[2]) == (code, True), result
    assert not (tmp_path / "l.csv").exists()


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_run_nothing(tmp_path, capsys, protocol):
    path = tmp_path / "e.pkl"
    for content, message in (
        ({"a": Evil()}, "asks for .*print"),
        ({"a": np.array([Evil(), 1], dtype=object)}, "not of numbers|asks for"),
        ({"a": collections.Counter("a")}, "asks for collections.Counter"),
    ):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(FiqaRayError, match=message):
            read_embeddings(str(path))
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_give_what_was_put_in(tmp_path, protocol):
    """Every protocol; big-endian and Fortran-ordered arrays, integers, and numbers of numpy."""
    path = tmp_path / "e.pkl"
    arrays = {
        "f4": np.arange(6, dtype=np.float32), "big": np.arange(6).astype(">f8"), "i2": np.arange(-3, 3, dtype=np.int16),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "scalar": np.float64(1.5), "plain": [1, 2.5], "n": -7,
    }  # fmt: skip
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))
    for key, value in read_pickle(str(path)).items():
        np.testing.assert_array_equal(value, arrays[key], err_msg=key)
