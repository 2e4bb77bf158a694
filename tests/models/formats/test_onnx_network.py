"""ONNX networks: onnxruntime's embeddings, torch's gradients, any batch size, one of several outputs."""

from __future__ import annotations

import pickle
from copy import deepcopy

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.formats import onnx_gradients, onnx_network
from fiqa_ray.models.networks.vit import FaceViT
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from fiqa_ray.synthetic.dataset import aligned_faces
from onnx_files import by_onnxruntime, exported, f32, graph, i64, node
from released import fill

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
PIXELS = {"mean": 0, "scale": 1}
W = f32(4, 3, 5, 5) * 0.1


@pytest.fixture(scope="module")
def faces():
    """5 synthetic faces, (5, 3, 112, 112) uint8."""
    return torch.from_numpy(aligned_faces((0, 0, 0, 2))[:5].transpose(0, 3, 1, 2).copy())


def stored(tmp_path, data):
    path = tmp_path / "net.onnx"
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return str(path)


def tail(source):
    return [node("GlobalAveragePool", source, out="g"), node("Flatten", "g")]


# --- settings of operators: onnxruntime's values, and the gradients of padding worked by hand ---


def same_pads(size, kernel, stride, dilation, upper):
    """Padding before and after by the standard's formula: ceil(size / stride) outputs, the odd pixel after or before."""
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def padded(x, kernel, stride, dilation, mode, value=0.0):
    sides = [same_pads(n, kernel, stride, dilation, mode == "SAME_UPPER") for n in x.shape[2:]]
    return x if mode == "VALID" else functional.pad(x, (*sides[1], *sides[0]), value=value)


def average(x, mode, stride):
    """An average over pixels of the image only, whatever the padding."""
    total = functional.avg_pool2d(padded(x, 3, stride, 1, mode), 3, stride)
    return total / functional.avg_pool2d(padded(torch.ones_like(x), 3, stride, 1, mode), 3, stride)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("kind", ["Conv", "MaxPool", "AveragePool"])
def test_auto_pad_in_every_mode(tmp_path, faces, kind, mode):
    stride = 3
    if kind == "Conv":
        nodes = [node("Conv", "x", "w", out="a", strides=[3, 3], auto_pad=mode)]
    else:
        nodes = [node(kind, "x", out="a", kernel_shape=[3, 3], strides=[3, 3], auto_pad=mode)]
    data = graph([*nodes, *tail("a")], {"w": W} if kind == "Conv" else {}).SerializeToString()
    recognizer = load_recognizer(stored(tmp_path, data), **PIXELS)
    x = faces.float()
    np.testing.assert_array_equal(recognizer(faces).numpy(), by_onnxruntime(data, (faces.float() / 255 * 255).numpy()))

    def by_torch(x):
        if kind == "AveragePool":
            return average(x, mode, stride).mean(dim=(2, 3))
        if kind == "MaxPool":
            return functional.max_pool2d(padded(x, 3, stride, 1, mode, -torch.inf), 3, stride).mean(dim=(2, 3))
        return functional.conv2d(padded(x, 5, stride, 1, mode), torch.from_numpy(W), None, stride).mean(dim=(2, 3))

    check_gradient(recognizer, by_torch, x)


def check_gradient(recognizer, by_torch, x, tolerance=1e-5):
    """Compare embeddings and gradients with torch, on pixels ``x`` as the network wants them."""
    network = recognizer.with_gradients("test").backbone
    weight = torch.from_numpy(f32(len(x), recognizer.dim))
    wanted, got = (torch.autograd.grad((f(y) * weight).sum(), y)[0]
                   for f, y in ((by_torch, x.clone().requires_grad_()), (network, x.clone().requires_grad_())))  # fmt: skip
    assert wanted.abs().max() > 0
    assert (got - wanted).norm() <= tolerance * wanted.norm()
    with torch.no_grad():
        gap = (recognizer.backbone(x) - by_torch(x)).norm(dim=1) / by_torch(x).norm(dim=1)
    assert gap.max() <= tolerance


def test_what_onnxruntime_does_not_compute_is_refused(tmp_path):
    dilated = graph([node("Conv", "x", "w", out="a", dilations=[2, 2], auto_pad="SAME_UPPER"), *tail("a")], {"w": W})
    with pytest.raises(FiqaRayError, match=r"net\.onnx: .*Dilation not supported"):
        load_recognizer(stored(tmp_path, dilated), **PIXELS)


POOL = {"kernel_shape": [3, 3], "strides": [2, 2]}
ONES = torch.ones(3, 1, 3, 3)
SETTINGS = {  # nodes, opset, and the same in torch
    "uneven conv": (
        [node("Conv", "x", "w", out="a", pads=[1, 0, 2, 3])],
        17,
        lambda x: functional.conv2d(functional.pad(x, (0, 3, 1, 2)), torch.from_numpy(W)),
    ),
    "dilated conv": (
        [node("Conv", "x", "w", out="a", dilations=[3, 2], pads=[1, 0, 2, 3])],
        17,
        lambda x: functional.conv2d(functional.pad(x, (0, 3, 1, 2)), torch.from_numpy(W), dilation=(3, 2)),
    ),
    "dilated average": (
        [node("AveragePool", "x", out="a", kernel_shape=[3, 3], dilations=[2, 2])],
        19,
        lambda x: functional.conv2d(x, ONES / 9, dilation=2, groups=3),
    ),
    "uneven average": (
        [node("AveragePool", "x", out="a", **POOL, pads=[1, 0, 0, 1])],
        17,
        lambda x: average_of_pixels(x, (0, 1, 1, 0)),
    ),
    "average that counts padding": (
        [node("AveragePool", "x", out="a", **POOL, pads=[1, 1, 1, 1], count_include_pad=1)],
        17,
        lambda x: functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2),
    ),
    "average with a last part": (
        [node("AveragePool", "x", out="a", **POOL, ceil_mode=1)],
        17,
        lambda x: average_of_pixels(x, (0, 1, 0, 1)),
    ),
    "maximum with a last part": (
        [node("MaxPool", "x", out="a", **POOL, ceil_mode=1)],
        17,
        lambda x: functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2),
    ),
    "uneven maximum": (
        [node("MaxPool", "x", out="a", **POOL, pads=[1, 0, 0, 1])],
        17,
        lambda x: functional.max_pool2d(functional.pad(x, (0, 1, 1, 0), value=-torch.inf), 3, 2),
    ),
    "dilated maximum": (
        [node("MaxPool", "x", out="a", **POOL, dilations=[2, 2])],
        17,
        lambda x: functional.max_pool2d(x, 3, 2, dilation=2),
    ),
    "settings as attributes": (
        [
            node("Clip", "x", out="c", min=5.0, max=200.0),
            node("Slice", "c", out="s", starts=[1], ends=[100], axes=[2]),
            node("Pad", "s", out="a", pads=[0, 0, 1, 0, 0, 0, 0, 1], value=2.0),
        ],
        9,
        lambda x: functional.pad(x.clamp(5, 200)[:, :, 1:100], (0, 1, 1, 0), value=2.0),
    ),
}


def average_of_pixels(x, sides):
    """An average of 3x3 every 2 pixels over pixels of the image only; sides: left, right, top, bottom."""
    total = functional.avg_pool2d(functional.pad(x, sides), 3, 2)
    return total / functional.avg_pool2d(functional.pad(torch.ones_like(x), sides), 3, 2)


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_count_with_and_without_gradients(tmp_path, faces, case):
    nodes, opset, by_torch = SETTINGS[case]
    data = graph([*nodes, *tail("a")], {"w": W} if "conv" in case else {}, opset=opset).SerializeToString()
    recognizer = load_recognizer(stored(tmp_path, data), **PIXELS)
    wanted = by_onnxruntime(data, faces.float().numpy())
    for embeddings in (recognizer(faces), recognizer.with_gradients("test")(faces)):
        np.testing.assert_allclose(embeddings.detach().numpy(), wanted, rtol=1e-5)
    x = faces.float() + torch.from_numpy(f32(*faces.shape)).sigmoid() / 2  # no two pixels are equally large
    check_gradient(recognizer, lambda y: by_torch(y).mean(dim=(2, 3)), x)


def test_the_gradient_of_units_at_0_is_torchs(tmp_path):
    """Of a black picture all units of a network without biases lie at 0."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.PReLU(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    converted = load_recognizer(stored(tmp_path, exported(network)), **PIXELS).with_gradients("test").backbone
    x = torch.zeros(1, 3, 112, 112, requires_grad=True)
    wanted, got = (torch.autograd.grad(f(x).sum(), x)[0] for f in (network, converted))
    assert wanted.norm() > 0
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()
    for shape in ((1,), (4, 1, 1), (1, 4, 1, 1), (4,), (4, 1, 4), (4, 4, 4)):  # of the slope
        y, slope = torch.from_numpy(f32(2, 4, 4, 4)), torch.from_numpy(f32(*shape))
        assert torch.equal(onnx_gradients._PRelu()(y, slope), y.clamp(min=0) + y.clamp(max=0) * slope)


# --- whole networks ---

EXPORTS = [
    ("arcface_torch_mobilefacenet", 20),
    *[
        pytest.param(*export, marks=pytest.mark.slow)
        for export in (
            ("arcface_torch_mobilefacenet", 11),
            ("arcface_torch_mobilefacenet", 13),
            ("arcface_torch_mobilefacenet", 17),
            ("curricularface_mobilefacenet", 11),
            ("curricularface_mobilefacenet", 20),
            ("ediffiqa_mobilefacenet", 13),
            ("ediffiqa_mobilefacenet", 17),
            ("arcface_r18", 17),
            ("sddfiqa_r50_recognition", 20),
            ("adaface_ir18", 13),
        )
    ],
]
"""Every class of networks, every opset; the smallest network with all opsets."""


@pytest.mark.parametrize(("name", "opset"), EXPORTS)
def test_an_exported_network_has_the_networks_embeddings_and_gradients(tmp_path, faces, name, opset):
    network = fill(RECOGNIZERS[name].build()).requires_grad_(False)
    recognizer = load_recognizer(stored(tmp_path, exported(network, opset)), mean=127.5, scale=127.5)
    x = recognizer.preprocess(faces[:2].float() / 255)
    with torch.no_grad():
        wanted = network(x)
    assert ((recognizer(faces[:2]) - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 1e-5
    converted = recognizer.with_gradients("test").backbone
    deepcopy(converted).load_state_dict(converted.state_dict())  # its names, unlike the file's, hold no dots
    # of one face, in float64: in float32 a PReLU near 0 bends the gradient of a few pixels
    weight, gradients = torch.from_numpy(f32(1, recognizer.dim)).double(), []
    for module in (network.double(), converted.double()):
        y = x[:1].double().requires_grad_()
        gradients.append(torch.autograd.grad((module(y) * weight).sum(), y)[0])
    assert (gradients[1] - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


# --- batches ---


def small_net(batch="b", *, opset=17, dtype=np.float32, image="x"):
    """A recogniser with 4 values, whose Reshape names the file's own batch size."""
    number = batch if batch in (1, 2) else 0
    weights = {"w": f32(4, 3, 16, 16), "slope": f32(4, 1, 1), "half": np.array(0.5, np.float32)}
    nodes = [
        node("Conv", image, "w", out="c", strides=[16, 16]),
        node("Add", "c", "half", out="a"),
        node("PRelu", "a", "slope", out="d"),
        node("GlobalAveragePool", "d", out="e"),
        node("Reshape", "e", "shape"),
    ]
    kind = {np.float32: onnx.TensorProto.FLOAT, np.float16: onnx.TensorProto.FLOAT16}[dtype]
    weights = {k: v.astype(dtype) for k, v in weights.items()} | {"shape": i64(number, -1)}
    return graph(nodes, weights, batch=batch, opset=opset, image=image, dtype=kind)


@pytest.mark.parametrize("batch", [1, 2, "b", -1, "no shape"])
def test_fixed_and_free_batch_sizes_take_any_number_of_faces(tmp_path, faces, batch):
    model = small_net(batch)
    if batch == "no shape":
        model.graph.input[0].type.tensor_type.ClearField("shape")
    data = model.SerializeToString()
    recognizer = load_recognizer(stored(tmp_path, data), mean=0, scale=255.0, colour="BGR")
    x = (faces.flip(1).float() / 255).numpy()[:4]
    step = batch if batch in (1, 2) else 4
    wanted = np.concatenate([by_onnxruntime(data, x[i : i + step]) for i in range(0, 4, step)])
    for n in (1, 2, 3, 4):
        np.testing.assert_allclose(recognizer(faces[:n]).numpy(), wanted[:n], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            recognizer.with_gradients("test")(faces[:n]).numpy(), wanted[:n], rtol=1e-5, atol=1e-6
        )


def test_a_batch_size_that_cannot_be_freed_is_kept(tmp_path, faces):
    """Pixels of both faces in one row: a Reshape names the batch size among others."""
    nodes = [
        node("Conv", "x", "w", out="c", strides=[16, 16]),
        node("Reshape", "c", "flat", out="f"),
        node("MatMul", "f", "m", out="e"),
        node("Reshape", "e", "two"),
    ]
    weights = {"w": f32(4, 3, 16, 16), "flat": i64(1, 2, 196), "m": f32(196, 5), "two": i64(2, 5)}
    data = graph(nodes, weights, batch=2).SerializeToString()
    recognizer = load_recognizer(stored(tmp_path, data), **PIXELS)
    wanted = np.concatenate([by_onnxruntime(data, faces[i : i + 2].float().numpy()) for i in (0, 2)])
    np.testing.assert_array_equal(recognizer(faces[:3]).numpy(), wanted[:3])
    converted = recognizer.with_gradients("test")
    np.testing.assert_allclose(converted(faces[:3]).numpy(), wanted[:3], rtol=1e-4)

    def by_hand(x):
        planes = functional.conv2d(x, torch.from_numpy(weights["w"]).double(), stride=16)
        return (planes.reshape(-1, 196) @ torch.from_numpy(weights["m"]).double()).reshape(-1, 5)

    gradients = []
    for network in (converted.backbone.double(), by_hand):
        x = faces[:3].double().requires_grad_()
        gradients.append(torch.autograd.grad(network(x).square().sum(), x)[0])
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[1].norm()


def test_a_network_with_a_quality_token_is_exported_for_any_number_of_faces(faces):
    network = fill(FaceViT(28, 16, depth=1, n_heads=2, mlp_ratio=2, quality_token=True, n_feature_tokens=17)).eval()
    x = faces.float() / 255
    with torch.no_grad():
        wanted = network(x).numpy()
    np.testing.assert_allclose(by_onnxruntime(exported(network), x.numpy()), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arcface_r18", "arcface_torch_mobilefacenet"])
def test_bits_depend_on_neither_place_nor_thread(tmp_path, name):
    recognizer = load_recognizer(stored(tmp_path, exported(fill(RECOGNIZERS[name].build()))), **PIXELS)
    pool = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 3, 112, 112), np.uint8))
    first = recognizer(pool[:8])
    assert torch.equal(recognizer(pool[:8].roll(3, 0)), first.roll(3, 0))
    others = pool[8:].clone()
    others[5] = pool[0]
    assert torch.equal(recognizer(others)[5], first[0])
    again = pickle.loads(pickle.dumps(deepcopy(recognizer)))  # another session, in another process by chance
    assert torch.equal(again(pool[:8]), first)


def test_a_network_that_mixes_faces_is_refused(tmp_path):
    mixed = node("ReduceMean", "x", axes=[0, 2, 3], keepdims=0)
    with pytest.raises(FiqaRayError, match=r"net\.onnx: returned embeddings of shape \(3,\)"):
        load_recognizer(stored(tmp_path, graph([mixed])), **PIXELS)
    centred = [
        node("ReduceMean", "x", out="m", axes=[2, 3], keepdims=0),
        node("ReduceMean", "m", out="c", axes=[0], keepdims=1),
        node("Sub", "m", "c"),
    ]
    norm = {k: np.ones(3, np.float32) for k in "abmv"}
    training = [
        onnx.helper.make_node("BatchNormalization", ["x", "a", "b", "m", "v"], ["n", "rm", "rv"], training_mode=1),
        *tail("n"),
    ]
    first = {"from": i64(0), "to": i64(1), "axis": i64(0)}  # all faces get what belongs to the first
    as_first = [
        node("GlobalAveragePool", "x", out="all"),
        node("Slice", "all", "from", "to", "axis", out="one"),
        node("Shape", "all", out="size"),
        node("Expand", "one", "size", out="g"),
        node("Flatten", "g"),
    ]
    for model in (graph(centred), graph([*training], norm), graph(as_first, first)):
        with pytest.raises(FiqaRayError, match="depends on the others in its batch"):
            load_recognizer(stored(tmp_path, model), **PIXELS)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.kill(os.getpid(), 8)", r"breaks down on it \(exit code -8\)"),
        (
            "import resource, sys; s = int(sys.argv[2]); resource.setrlimit(resource.RLIMIT_CPU, (s, s))\nwhile 1: pass",
            "does not end on it within its CPU time",
        ),
    ],
)
def test_a_file_on_which_onnxruntime_dies_or_hangs(tmp_path, monkeypatch, program, words):
    (tmp_path / "trial.py").write_text(program)
    monkeypatch.setattr(onnx_network.onnx_trial, "__file__", str(tmp_path / "trial.py"))
    monkeypatch.setattr(onnx_network, "TRIAL_CPU_S", 1)
    with pytest.raises(FiqaRayError, match=rf"net\.onnx: onnxruntime {words}"):
        load_recognizer(stored(tmp_path, small_net()), **PIXELS)


# --- gradients that cannot be had ---


def test_a_network_that_changes_when_converted_is_refused(tmp_path, faces):
    """onnx2pytorch reads a negative axis of Gather as the first one; onnxruntime's embeddings stay right."""
    nodes = [node("ReduceMean", "x", out="m", axes=[2], keepdims=0), node("Gather", "m", "i", axis=-1)]
    data = graph(nodes, {"i": np.array(7)}).SerializeToString()
    recognizer = load_recognizer(stored(tmp_path, data), **PIXELS)
    np.testing.assert_array_equal(recognizer(faces).numpy(), by_onnxruntime(data, faces.float().numpy()))
    with pytest.raises(
        FiqaRayError, match=r"net\.onnx: cannot be run with gradients: .* operators are Gather, ReduceMean;"
    ):
        load_scorer("faceqan", recognizer)
    rounded = graph([node("Round", "x", out="a"), *tail("a")]).SerializeToString()
    with pytest.raises(FiqaRayError, match="has no gradient at its input"):
        load_recognizer(stored(tmp_path, rounded), **PIXELS).with_gradients("test")
    with pytest.raises(FiqaRayError, match="runs in onnxruntime, which computes no gradients"):
        recognizer.embed_unit(torch.zeros(1, 3, 112, 112).requires_grad_())


@pytest.mark.slow
def test_faceqan_on_onnx_equals_faceqan_on_torch(tmp_path, faces):
    network = fill(RECOGNIZERS["arcface_torch_mobilefacenet"].build())
    with_gradients = load_recognizer(stored(tmp_path, exported(network)), mean=127.5, scale=127.5)
    by_torch = load_recognizer("arcface_torch_mobilefacenet", "random:0")
    by_torch.backbone.load_state_dict(network.state_dict())
    got, wanted = (
        load_scorer("faceqan", r, n_samples=2, n_iterations=2)(faces[:3], np.arange(3))
        for r in (with_gradients, by_torch)
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


# --- outputs ---


def adaface_like():
    """A unit embedding and its length, as AdaFace returns them, and a map that is neither."""
    nodes = [
        node("Conv", "x", "w", out="maps", strides=[16, 16]),
        node("GlobalAveragePool", "maps", out="p"),
        node("Flatten", "p", out="raw"),
        node("ReduceL2", "raw", out="norm", axes=[1], keepdims=1),
        node("Div", "raw", "norm", out="unit"),
    ]
    return graph(nodes, {"w": f32(6, 3, 16, 16)}, outputs=("maps", "norm", "unit"))


@pytest.mark.slow
def test_of_several_outputs_the_shape_tells(tmp_path, faces):
    data = adaface_like().SerializeToString()
    path, x = stored(tmp_path, data), faces.float().numpy()
    np.testing.assert_array_equal(load_recognizer(path, **PIXELS)(faces).numpy(), by_onnxruntime(data, x, "unit"))
    norm = by_onnxruntime(data, x, "norm")[:, 0]
    assert np.ptp(norm) > 0
    for options in ({}, {"output": "norm"}):
        np.testing.assert_array_equal(load_scorer(path, **PIXELS, **options)(faces), norm)
    with pytest.raises(FiqaRayError, match="embedding_norm: all embeddings have length 1"):
        load_scorer("embedding_norm", load_recognizer(path, **PIXELS))(faces)
    with pytest.raises(FiqaRayError, match="has no output 'unti'; its outputs are maps, norm, unit"):
        load_recognizer(path, **PIXELS, output="unti")
    with pytest.raises(FiqaRayError, match=r"output 'norm' has the shape \(3, 1\), wanted an embedding per face"):
        load_recognizer(path, **PIXELS, output="norm")
    two = graph([*tail("x"), node("Identity", "y", out="z")], outputs=("y", "z"))
    with pytest.raises(FiqaRayError, match=r"2 of its outputs are \(b, d\): y \(3, 3\), z \(3, 3\); name one"):
        load_recognizer(stored(tmp_path, two), **PIXELS)
    assert load_recognizer(stored(tmp_path, two), **PIXELS, output="z").dim == 3


# --- pixels ---


def affine(*steps, image="x"):
    """Nodes that scale pixels, each ``(operator, number)``, then a small network."""
    nodes, weights, value = [], {"w": f32(4, 3, 16, 16)}, image
    for i, (kind, number) in enumerate(steps):
        weights[f"n{i}"] = np.array(number, np.float32).reshape((-1, 1, 1) if np.ndim(number) else ())
        nodes.append(node(kind, value, f"n{i}", out=f"s{i}"))
        value = f"s{i}"
    return graph([*nodes, node("Conv", value, "w", out="c", strides=[16, 16]), *tail("c")], weights, image=image)


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize(
    ("model", "mean", "scale"),
    [
        (affine(("Sub", 127.5), ("Mul", 1 / 128)), 0, 1),  # MXNet's exports, whose nodes have other names
        (affine(("Sub", 127.5), ("Div", 127.5)), 0, 1),
        (affine(("Mul", 1 / 255)), 0, 1),
        (affine(("Div", 255), ("Sub", MEAN), ("Div", STD)), 0, 1),
        (affine(("Sub", 0.5), ("Div", 0.5)), 0, 255),
        (affine(("Mul", 2), ("Add", -1)), 0, 255),
        (affine(image="input.1"), 127.5, 127.5),
        (affine(image="data"), 127.5, 127.5),
    ],
)
def test_scaling_is_found_where_the_file_shows_it(tmp_path, caplog, model, mean, scale):
    recognizer = load_recognizer(stored(tmp_path, model))
    assert (recognizer.preprocessing.colour, recognizer.preprocessing.mean, recognizer.preprocessing.scale) == (
        "RGB", mean, scale
    )  # fmt: skip
    assert f"net.onnx: pixels go in as (v - {mean:g}) / {scale:g}, RGB (" in caplog.text


def test_given_scaling_and_colours_count_more_than_those_of_the_file(tmp_path):
    path = stored(tmp_path, affine(("Sub", 127.5), ("Div", 127.5)))
    assert load_recognizer(path, colour="BGR").preprocessing.colour == "BGR"
    given = load_recognizer(path, mean=3, scale=4)
    assert (given.preprocessing.mean, given.scaling_source) == (3, "")


@pytest.mark.parametrize("model", [affine(), affine(("Sub", 100)), affine(("Mul", 300))])
def test_scaling_that_nothing_shows_must_be_given(tmp_path, model):
    with pytest.raises(
        UsageError, match=r"net\.onnx: the file does not show how pixels are scaled; give mean and scale"
    ):
        load_recognizer(stored(tmp_path, model))


# --- other formats, damage ---


@pytest.mark.slow
def test_float16_and_weights_in_a_second_file(tmp_path, faces):
    half = small_net(dtype=np.float16).SerializeToString()
    recognizer = load_recognizer(stored(tmp_path, half), **PIXELS)
    wanted = by_onnxruntime(half, faces.numpy().astype(np.float16)).astype(np.float32)
    np.testing.assert_array_equal(recognizer(faces).numpy(), wanted)
    assert recognizer(faces).dtype == torch.float32
    stored_half = [node("Cast", "w", out="f", to=1), node("Conv", "x", "f", out="a"), *tail("a")]
    data = graph(stored_half, {"w": W.astype(np.float16)}).SerializeToString()
    check_gradient(
        load_recognizer(stored(tmp_path, data), **PIXELS),
        lambda x: functional.conv2d(x, torch.from_numpy(W.astype(np.float16)).float()).mean(dim=(2, 3)),
        faces.float(),
    )
    model = small_net()
    whole = model.SerializeToString()
    path = tmp_path / "split.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="split.bin", size_threshold=0)
    recognizer = load_recognizer(str(path), **PIXELS)
    np.testing.assert_array_equal(recognizer(faces).numpy(), by_onnxruntime(whole, faces.float().numpy()))
    weights = (tmp_path / "split.bin").read_bytes()
    (tmp_path / "split.bin").write_bytes(weights[:-4])
    with pytest.raises(
        FiqaRayError, match=r"split\.onnx: the weights '.*' of shape .* need \d+ bytes, and the file holds"
    ):
        load_recognizer(str(path), **PIXELS)
    (tmp_path / "split.bin").write_bytes(b"\1" + weights[1:])
    assert load_recognizer(str(path), **PIXELS).weights_sha256 != recognizer.weights_sha256
    (tmp_path / "split.bin").unlink()
    with pytest.raises(FiqaRayError, match=r"split\.bin"):
        load_recognizer(str(path), **PIXELS)
    data = path.read_bytes().replace(b"split.bin", b"../pl.bin")
    with pytest.raises(FiqaRayError, match="outside its folder"):
        load_recognizer(stored(tmp_path, data), **PIXELS)


def changed(**fields):
    """The small network with a first weight that says something else of itself."""
    model = small_net()
    tensor = model.graph.initializer[0]
    for key, value in fields.items():
        if key == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, key, value)
    return model


def of_nodes(*nodes, **weights):
    return graph([*nodes, *tail("a")], weights)


DAMAGED = {
    "short weights": (changed(raw_data=bytes(100)), r"weights 'w' of shape .* need 12,288 bytes, .* holds 100"),
    "absurd shape": (changed(dims=[4, 3, 16, 2**40]), r"need .* bytes, and the file holds 12,288"),
    "negative shape": (changed(dims=[4, 3, -16, -16]), r"have the shape \[4, 3, -16, -16\]"),
    "not a number": (changed(raw_data=np.full((4, 3, 16, 16), np.nan, np.float32).tobytes()), "hold NaN"),
    "unknown type": (changed(data_type=99), "have the type 99, which is unknown"),
    "absurd padding": (
        of_nodes(node("Pad", "x", "p", out="a"), p=i64(0, 0, 0, 0, 0, 0, 2**20, 2**20)),
        "; the file is damaged, or not made",
    ),
    "absurd fill": (
        of_nodes(
            node("ConstantOfShape", "s", out="f"), node("ReduceMean", "f", out="m"), node("Add", "x", "m", out="a"),
            s=i64(2**20, 2**20),
        ),
        "; the file is damaged, or not made",
    ),
    "sizes below zero": (  # at which onnxruntime 1.32 aborts
        of_nodes(
            node("MaxPool", "x", out="m", kernel_shape=[3, 300]), node("Slice", "m", "i", "n", "axes", out="a"),
            i=i64(0), n=i64(9), axes=i64(3),
        ),
        "; the file is damaged, or not made",
    ),
    "unknown operator": (of_nodes(node("Konv", "x", out="a")), "onnxruntime .* cannot run it: .*Konv"),
    "no value of that name": (of_nodes(node("Relu", "z", out="a")), "onnxruntime .* cannot run it: .*z"),
    "two inputs": (graph([node("Add", "x", "z")]), "cannot run it"),
    "channels last": (
        onnx.helper.make_model(
            onnx.helper.make_graph(
                [node("Identity", "x")], "g",
                [onnx.helper.make_tensor_value_info("x", 1, (1, 112, 112, 3))],
                [onnx.helper.make_tensor_value_info("y", 1, None)],
            ),
        ),
        r"its input is \(1, 112, 112, 3\); wanted \(b, 3, 112, 112\), channels first",
    ),
    "cut": (small_net().SerializeToString()[:500], "not a readable ONNX file"),
    "empty": (b"", "not a readable ONNX file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-LFS pointer"),
    "page": (b"<!DOCTYPE html><html></html>", "an HTML page"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_ends_in_one_error_with_its_name(tmp_path, case):
    data, words = DAMAGED[case]
    path = stored(tmp_path, data)
    with pytest.raises(FiqaRayError, match=words) as caught:
        load_recognizer(path, **PIXELS)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)
