from __future__ import annotations

import copy
import io
import json
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.documents import document_bytes
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.checkpoints import sha256_of, state_bytes
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.quality_scale import Quantiles
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.regressor import (
    QualityHead,
    QualityRegressor,
    load_head,
    load_regressor,
    parameter_groups,
    save_regressor,
    score_table,
)
from released import fill, golden, golden_input

SMALL = "curricularface_mobilefacenet"


def some_faces(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 112, 112), dtype=np.uint8))


def made(recognizer: Recognizer) -> QualityRegressor:
    torch.manual_seed(0)
    return QualityRegressor(recognizer, QualityHead(recognizer.dim))


def as_card(values: object) -> bytes:
    """The file of a card, with a sum that fits."""
    return document_bytes(values) if isinstance(values, dict) else json.dumps(values).encode()


def stored(uri: str, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        with fsspec.open(f"{uri}/{name}", "wb", auto_mkdir=True) as file:
            file.write(data)
    return uri


@pytest.mark.slow
def test_iresnet100_regressor_equals_the_released_one():
    model = made(load_recognizer("arcface_r100", weights="random:0"))
    wanted = golden("forward_checks")["transfer_regressor_iresnet100"]
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == golden(
        "state_dicts/transfer_regressor_iresnet100"
    )
    assert sum(p.numel() for p in model.parameters()) == wanted["params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == wanted["trainable_at_init"]
    assert [k for k, p in model.named_parameters() if not p.requires_grad] == wanted["frozen"]

    names = {id(p): k.removeprefix("base_model.") for k, p in model.named_parameters()}
    head, last_10, before_40, before_50 = parameter_groups(model)
    sizes = golden("method_checks")["transfer_param_groups"]
    for group, size, rate, decay, first, last in (
        (head, sizes["regressor"], 1e-3, 1e-4, "regressor.weight", "regressor.bias"),
        (last_10, sizes["base_last_10"], 1e-3, 1e-5, "layer4.2.prelu.weight", "features.bias"),
        (before_40, sizes["base_50_to_10"], 1e-4, 1e-6, "layer3.28.bn2.bias", "layer4.2.bn2.bias"),
        (before_50, sizes["base_100_to_50"], 1e-5, 1e-6, "layer3.22.bn3.bias", "layer3.28.bn2.weight"),
    ):
        assert sum(p.numel() for p in group["params"]) == size
        assert (group["lr"], group["weight_decay"]) == (rate, decay)
        assert (names[id(group["params"][0])], names[id(group["params"][-1])]) == (first, last)
    rest = list(model.base_model.parameters())[:363]
    assert sum(p.numel() for p in rest) == sizes["base_first_363"]
    assert not any(p.requires_grad for p in rest)
    assert names[id(rest[-1])] == "layer3.22.bn3.weight"

    fill(model.double())
    with torch.no_grad():
        output = model.regressor(model.base_model(golden_input()))
    assert output.abs()[:, 0].tolist() == pytest.approx(wanted["forward"][0]["l2"], rel=1e-9)
    assert output.sum(dim=1).tolist() == pytest.approx(wanted["forward"][0]["sum"], rel=1e-9)


class Tensors(nn.Module):
    """A network of n parameter tensors."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.list = nn.ParameterList(nn.Parameter(torch.ones(3)) for _ in range(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) * sum(self.list)


@pytest.mark.parametrize(
    ("n", "sizes"), [(5, [5]), (10, [10]), (11, [10, 1]), (50, [10, 40]), (94, [10, 40, 44]), (130, [10, 40, 50])]
)
@pytest.mark.parametrize("freeze_rest", [True, False])
def test_shorter_networks_fill_as_many_groups_as_they_can(n, sizes, freeze_rest):
    model = made(Recognizer("tensors", Tensors(n), Preprocessing(), 3, ""))
    groups = parameter_groups(model, freeze_rest=freeze_rest)[1:]
    assert [len(g["params"]) for g in groups] == sizes
    grouped = [p for g in reversed(groups) for p in g["params"]]
    assert [id(p) for p in grouped] == [id(p) for p in model.base_model.list[n - sum(sizes) :]]
    trained = [p.requires_grad for p in model.base_model.parameters()]
    assert trained == [not freeze_rest] * (n - sum(sizes)) + [True] * sum(sizes)


def test_a_training_step_moves_groups_and_statistics_only():
    recognizer = load_recognizer(SMALL, weights="random:0")
    model = made(recognizer)
    groups = parameter_groups(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.Adam(groups)
    model.train()
    (model(some_faces(4)) - torch.tensor([0.0, 0.3, 0.6, 1.0])).abs().mean().backward()
    optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    names = {id(p): k for k, p in model.named_parameters()}
    assert moved >= {names[id(p)] for p in groups[0]["params"] + groups[1]["params"]}
    untouched = list(model.base_model.parameters())[: 183 - 100]
    assert not moved & {names[id(p)] for p in untouched}
    statistics = {k for k in before if k.endswith(("running_mean", "running_var"))}
    assert statistics <= moved
    # The recogniser itself is another copy.
    assert all(torch.equal(v, before[f"base_model.{k}"]) for k, v in recognizer.backbone.state_dict().items())
    assert not any(p.requires_grad for p in recognizer.parameters())


def test_saved_regressor_loads_anywhere_and_is_a_scorer():
    model = made(load_recognizer(SMALL, weights="random:4"))
    fill(model)
    files = save_regressor(model, {"method": "faceqan", "theta": 0.001})
    assert list(files) == ["weights.pt", "card.json"]
    assert files == save_regressor(model, {"theta": 0.001, "method": "faceqan"})
    uri = stored("memory://regressors/a", files)
    again, card = load_regressor(uri)
    assert (card["method"], card["recognizer"], card["dim"]) == ("faceqan", SMALL, 512)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    faces = some_faces(3)
    with torch.no_grad():
        wanted = model.eval()(faces)
        assert wanted.shape == (3,)
        x = (faces.float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(wanted, model.base_model(x) @ model.regressor.weight[0] + model.regressor.bias)
        assert torch.equal(again(faces), wanted)
    scorer = load_scorer(uri)
    assert np.array_equal(scorer(faces, np.arange(3)), wanted.numpy())
    assert scorer.card == card
    with pytest.raises(FiqaRayError, match="no option 'epsilon'"):
        load_scorer(uri, epsilon=1)


def test_a_regressor_on_an_onnx_file_needs_the_file_no_more(tmp_path):
    helper = pytest.importorskip("onnx").helper
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 16, 16)).astype(np.float32), "s": np.array([1, -1], dtype=np.int64)}
    weights |= {name: rng.uniform(0.5, 1, 4).astype(np.float32) for name in ("gain", "shift", "mean", "variance")}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], strides=[16, 16]),
            helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["n"]),
            helper.make_node("Relu", ["n"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Reshape", ["p", "s"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("y", 1, [1, 4])],
        [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    recognizer, faces = load_recognizer(str(path), mean=0, scale=255.0), some_faces(3)
    head, trained = made(recognizer), made(recognizer.with_gradients("test"))
    before = copy.deepcopy(trained.base_model.state_dict())
    trained.train()(some_faces(2)).sum().backward()
    torch.optim.Adam(parameter_groups(trained)).step()  # a trained backbone, not the file's
    after = trained.base_model.state_dict()
    names = [name for name, _ in trained.base_model.named_parameters()]
    assert [tuple(after[name].shape) for name in names] == [(4, 3, 16, 16), (4,), (4,)]
    assert not any(torch.equal(before[name], after[name]) for name in names)
    statistics = [name for name in after if "running" in name]
    assert len(statistics) == 2
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not any(p.requires_grad for p in head.base_model.parameters())
    path.unlink()
    for model in (head, trained):
        uri = stored(str(tmp_path / f"regressor{len(model.state_dict())}"), save_regressor(model, {}))
        with torch.no_grad():
            assert torch.equal(load_regressor(uri)[0](faces), model(faces))
    files = save_regressor(head, {})
    state = torch.load(io.BytesIO(files["weights.pt"]), weights_only=True)
    del state["base_model.onnx_file"]  # as before onnxruntime ran these networks
    weights_pt = state_bytes(state)
    card = json.loads(files["card.json"]) | {"weights_sha256": sha256_of(weights_pt)}
    uri = stored(str(tmp_path / "old"), {"weights.pt": weights_pt, "card.json": as_card(card)})
    with pytest.raises(FiqaRayError, match=r"card\.json: the regressor on .*net\.onnx was saved by an earlier version"):
        load_regressor(uri)


def test_percentiles_by_hand():
    """Against 0, 0.001 .. 1, and against 40 zeros, 20 halves and 40 ones; the rule is the share below."""

    def percentiles(scores, table):
        return Quantiles(tuple(table["quantiles"]))(scores)

    even = score_table(np.arange(1001) / 1000)
    scores = np.array([-1, 0, 0.0005, 0.25, 0.3333, 1, 7, np.nan])
    assert percentiles(scores, even) == pytest.approx([0, 0, 0.05, 25, 33.33, 100, 100, np.nan], nan_ok=True)
    lumps = score_table(np.repeat([0, 0.5, 1], [400, 200, 400]))
    assert lumps["n_images"] == 1000
    assert percentiles(np.array([0, 0.5, 1, 2]), lumps) == pytest.approx([0, 40, 60, 100], abs=0.11)
    assert percentiles(np.array([0.1, 0.3, 0.5]), score_table(np.array([0.3]))).tolist() == [0, 0, 100]


OWN = """
from torch import nn
calls = []
class Net(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(3, dim)
    def forward(self, x):
        return self.linear(x.mean(dim=(2, 3)))
def build(weights=None, dim=2):
    calls.append(dim)
    return Net(dim)
"""


def test_a_card_imports_code_only_when_allowed(tmp_path, monkeypatch):
    (tmp_path / "my_backbone.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import my_backbone

    model = made(load_recognizer("my_backbone:build", dim=5))
    uri = stored(str(tmp_path / "regressor"), save_regressor(model, {}))
    my_backbone.calls.clear()
    with pytest.raises(
        FiqaRayError, match=r"card\.json: this regressor uses the network 'my_backbone:build'.*allow_import=True"
    ):
        load_scorer(uri)
    assert my_backbone.calls == []
    faces = some_faces(2)
    with torch.no_grad():
        assert np.array_equal(load_scorer(uri, allow_import=True)(faces), model(faces).numpy())
    assert my_backbone.calls == [5]


def test_a_job_runs_the_code_that_its_settings_name_from_wherever_it_lies_now(tmp_path):
    """The file was moved since the regressor was trained; the one that the card names is not run."""
    (tmp_path / "my_moved.py").write_text(OWN)
    files = save_regressor(made(load_recognizer(f"{tmp_path}/my_moved.py:build", dim=3)), {})
    uri, place = stored(str(tmp_path / "regressor"), files), tmp_path / "elsewhere"
    place.mkdir()
    (tmp_path / "my_moved.py").rename(place / "my_moved.py")
    (tmp_path / "my_moved.py").write_text("1 / 0")
    records = {n: {"crc32": f"{zlib.crc32(data):08x}"} for n, data in files.items()}
    expected = {"recognizer": f"{place}/my_moved.py:build", "options": {"dim": 3}, "files": records}
    faces = some_faces(2)
    scores = load_scorer(uri, expected=expected)(faces)
    with torch.no_grad():
        embeddings = load_recognizer(f"{place}/my_moved.py:build", dim=3)(faces)
        assert np.array_equal(load_head(uri, expected)(embeddings)[:, 0].numpy(), scores)
    for change in ({"options": {"dim": 4}}, {"recognizer": f"{place}/my_other.py:build"}):
        with pytest.raises(FiqaRayError, match="the card was exchanged"):
            load_head(uri, expected | change)


def test_regressors_of_an_earlier_version_are_refused_with_what_to_do(tmp_path):
    files = save_regressor(made(load_recognizer(SMALL, weights="random:0")), {})
    card = json.loads(files["card.json"])
    assert card["schema_version"] == 4
    without_version = {k: v for k, v in card.items() if k != "schema_version"}
    moved = {**card, "schema_version": 1, "recognizer": "fiqa_ray.models.compact:build"}
    for changed, message in (
        (
            without_version,
            r"card\.json: .* by an earlier version .*schema_version None, this one reads 4.*train it again",
        ),
        ({**card, "schema_version": "3"}, r"earlier version .*schema_version '3'"),
        (moved, r"by an earlier version of fiqa_ray \(schema_version 1, .*train it again"),
        ([card], r"card\.json is damaged: it holds list, wanted a JSON object"),
    ):
        uri = stored(str(tmp_path / "r"), {**files, "card.json": as_card(changed)})
        with pytest.raises(FiqaRayError, match=message):
            load_regressor(uri, allow_import=True)


def test_a_card_may_name_only_one_network_of_this_package_without_leave(tmp_path):
    model = made(load_recognizer("fiqa_ray.synthetic.compact:build"))
    files = save_regressor(model, {})
    faces = some_faces(2)
    with torch.no_grad():
        assert np.array_equal(load_scorer(stored(str(tmp_path / "own"), files))(faces), model.eval()(faces).numpy())
    card = {**json.loads(files["card.json"]), "recognizer": "fiqa_ray.cli:main"}
    with pytest.raises(
        FiqaRayError, match=r"uses the network 'fiqa_ray\.cli:main', whose code would have to be imported"
    ):
        load_regressor(stored(str(tmp_path / "other"), {**files, "card.json": as_card(card)}))


def test_damaged_folders_are_refused(tmp_path):
    files = save_regressor(made(load_recognizer(SMALL, weights="random:0")), {})
    card = json.loads(files["card.json"])

    def broken(**changes: object) -> str:
        changed = {k: v for k, v in {**card, **changes}.items() if v is not None}
        return stored(str(tmp_path / "r"), {**files, "card.json": as_card(changed)})

    for changes, message in (
        (
            {"schema_version": 9},
            r"card\.json: .* by a newer version .*schema_version 9, this one reads 4.*train it again",
        ),
        (
            {"schema_version": 1},
            r"card\.json: .* by an earlier version .*schema_version 1, this one reads 4.*train it again",
        ),
        ({"dim": None}, r"card\.json: dim is None, wanted int"),
        ({"head": "cubic"}, r"card\.json: head is 'cubic', wanted linear or norm"),
        ({"dim": 7}, r"weights\.pt: does not fit .*1 of another shape \(regressor\.weight"),
        ({"preprocessing": {"mean": 1}}, r"preprocessing \{'mean': 1\} must have"),
        ({"validation_scores": {"quantiles": [0, 2, 1]}}, "holds no ascending quantiles"),
        ({"validation_scores": {"quantiles": "123"}}, "holds no ascending quantiles"),
        ({"weights_sha256": "0"}, r"weights\.pt: not the file that .*card\.json belongs to"),
        ({"recognizer": "arcface_r18"}, r"weights\.pt: does not fit .*regressor on curricularface_mobilefacenet"),
    ):
        with pytest.raises(FiqaRayError, match=message):
            load_regressor(broken(**changes))
    compact = save_regressor(made(load_recognizer("fiqa_ray.synthetic.compact:build")), {})
    changed = as_card(json.loads(compact["card.json"]) | {"options": {"weights": "somebody's.pt"}})
    with pytest.raises(FiqaRayError, match=r"odd/card\.json: fiqa_ray\.synthetic\.compact:build\(.*fails"):
        load_scorer(stored(str(tmp_path / "odd"), {**compact, "card.json": changed}))
    (Path(tmp_path) / "r" / "card.json").write_text("{")
    with pytest.raises(FiqaRayError, match="it is no JSON"):
        load_regressor(str(tmp_path / "r"))
    (Path(tmp_path) / "r" / "weights.pt").unlink()
    stored(str(tmp_path / "r"), {"card.json": files["card.json"]})
    with pytest.raises(FiqaRayError, match=r"weights\.pt"):
        load_regressor(str(tmp_path / "r"))
    with pytest.raises(FiqaRayError, match=r"no regressor's folder"):
        load_scorer(str(tmp_path / "nowhere"))
    with pytest.raises(FiqaRayError, match="cannot be written as JSON"):
        save_regressor(made(load_recognizer(SMALL, weights="random:0")), {"loss": float("nan")})


@pytest.mark.parametrize(
    "name",
    [
        "fiqa_ray.models.recognition:call_imported",
        "fiqa_ray.models.user_code:call_function",
        "fiqa_ray.synthetic.compact:load_strictly",
        "fiqa_ray.synthetic.compact.x:build",
        "fiqa_ray.synthetic:compact",
        "torch.hub:load",
        "os:system",
        "my_backbone:build",
    ],
)
def test_no_card_runs_code_unasked(tmp_path, monkeypatch, name):
    """Trusted names are a closed list; nothing is imported for another one, and a job runs what its settings name."""
    (tmp_path / "my_backbone.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    called = []
    monkeypatch.setattr("fiqa_ray.models.regressor.call_function", lambda *arguments: called.append(arguments))
    model = made(load_recognizer("fiqa_ray.synthetic.compact:build"))
    files = save_regressor(model, {})
    records = {n: {"crc32": f"{zlib.crc32(data):08x}"} for n, data in files.items()}
    expected = {"recognizer": "fiqa_ray.synthetic.compact:build", "options": {}, "files": records}
    card = json.loads(files["card.json"]) | {"recognizer": name, "options": {"command": "true"}}
    changed = as_card(card)
    uri = stored(str(tmp_path / "r"), {**files, "card.json": changed})
    with pytest.raises(FiqaRayError, match="whose code would have to be imported and run"):
        load_scorer(uri)
    with pytest.raises(FiqaRayError, match=r"card\.json: not the file that the job wrote"):
        load_scorer(uri, expected=expected)
    records["card.json"] = {"crc32": f"{zlib.crc32(changed):08x}"}  # the record was exchanged with the card
    for load in (load_scorer, load_head):  # a head scores embeddings of the job's FR model only
        with pytest.raises(FiqaRayError, match=rf"card\.json: names the recogniser '{name}' .*the card was exchanged"):
            load(uri, expected=expected)
    assert called == []
    monkeypatch.undo()
    records["card.json"] = {"crc32": f"{zlib.crc32(files['card.json']):08x}"}
    uri = stored(str(tmp_path / "whole"), files)
    with torch.no_grad():
        wanted = model.eval()(some_faces(2)).numpy()
    assert np.array_equal(load_scorer(uri, expected=expected)(some_faces(2)), wanted)
