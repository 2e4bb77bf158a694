"""An ONNX network run by onnxruntime: a torch module without gradients.

The file's bytes are a buffer of the module, so a state dict alone rebuilds the network, and the buffer's device is the one
that onnxruntime computes on.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats import onnx_trial
from fiqa_ray.models.formats.onnx_file import fixed_batch, free_batch, keep_output
from fiqa_ray.models.trial import run_trial

FILE_ENTRY = "onnx_file"
"""Name of the buffer, and so of its entry in a state dict."""
SAME = 1e-5
"""Two ways to compute an embedding agree if they differ by less than this share of its length."""
TRIAL_MEMORY, TRIAL_CPU_S, TRIAL_S = 2**29, 40, 1200
"""Bytes beside three times the file, seconds of CPU, and seconds on a busy machine that the first faces may take; damaged
sizes ask for more."""


class OnnxNetwork(nn.Module):
    """A network with one image input and one output.

    On a CPU a session has as many threads as torch has where it is called, one in the workers of a job.

    Args:
        data: the network's bytes, as from `one_output`, or as a state dict keeps them.
        name: what to call the file in messages.
    """

    onnx_file: Tensor

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_buffer(FILE_ENTRY, torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self._lock = threading.Lock()
        self._session: tuple[tuple[str, int], Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, 3, 112, 112)` pixels, scaled as the file wants them, to the network's output in float32.

        Raises:
            FiqaRayError: onnxruntime cannot run the network, or a gradient is asked for.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise FiqaRayError(f"{self.name}: runs in onnxruntime, which computes no gradients")
        output = self._run(x.detach().cpu().numpy())
        return torch.from_numpy(output).to(x.device)

    def _run(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        session = self._find_session()
        size = next(iter(session.get_inputs()[0].shape), None)  # None: the file gives its input no shape
        if not isinstance(size, int) or size < 1 or size == len(pixels):
            return run_session(session, pixels, self.name)[0]
        n_missing = -len(pixels) % size  # a file that fixes its batch size gets pieces of that size
        padded = np.concatenate([pixels, np.zeros((n_missing, *pixels.shape[1:]), pixels.dtype)])
        pieces = [run_session(session, padded[at : at + size], self.name)[0] for at in range(0, len(padded), size)]
        return np.concatenate(pieces)[: len(pixels)]

    def _find_session(self) -> Any:
        """Return the session for this device and torch's number of threads; one is kept."""
        device = self.onnx_file.device
        key = (str(device), torch.get_num_threads())
        with self._lock:
            if self._session is None or self._session[0] != key:
                self._session = (key, open_session(self.onnx_file.cpu().numpy().tobytes(), self.name, device))
            return self._session[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the session and its lock, which cannot be copied."""
        return {**self.__dict__, "_lock": None, "_session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the module; a session is opened at its first use."""
        super().__setstate__({**state, "_lock": threading.Lock()})


def open_session(data: bytes, name: str, device: torch.device | None = None) -> Any:
    """Return an onnxruntime session that gives the same bits for the same batch, whatever runs beside it.

    Args:
        data: a network's bytes.
        name: what to call it in messages.
        device: device to compute on; None: the CPU.

    Raises:
        FiqaRayError: onnxruntime cannot load the network, or has no such device.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is not None and device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise FiqaRayError(_no_cuda(name))
        # Full float32, and one choice of algorithms: the defaults compute in TF32 and measure which algorithm is fastest.
        cuda = {"device_id": device.index or 0, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
        providers = [("CUDAExecutionProvider", cuda), *providers]
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime has a class for each fault, all straight below Exception
        raise FiqaRayError(
            f"{name}: onnxruntime {onnxruntime.__version__} cannot load it: {first_line(error)}; fetch or export it again"
        ) from error
    if len(providers) > 1 and "CUDAExecutionProvider" not in session.get_providers():
        raise FiqaRayError(_no_cuda(name))  # its libraries did not load: onnxruntime would go on on the CPU
    return session


def try_network(data: bytes, name: str, n_faces: int) -> dict[str, tuple[int, ...]]:
    """Run a network once in a process of its own, and return the shapes of its outputs by name.

    Args:
        data: the network's bytes.
        name: what to call it in messages.
        n_faces: faces of the batch.

    Raises:
        FiqaRayError: onnxruntime cannot load or run the network, asks for absurd memory, hangs or breaks down.
    """
    arguments = TRIAL_MEMORY + 3 * len(data), TRIAL_CPU_S, n_faces
    advice = "the file is damaged, or not made for faces of 112x112: fetch or export it again"
    outputs = run_trial(onnx_trial.__file__, arguments, data, TRIAL_S, f"{name}: onnxruntime", advice)
    if "error" in outputs:
        raise FiqaRayError(f"{name}: onnxruntime {onnxruntime.__version__} cannot run it: {outputs['error']}; {advice}")
    return {output: tuple(shape) for output, (shape, _) in outputs.items()}


def _no_cuda(name: str) -> str:
    return (
        f"{name}: this onnxruntime {onnxruntime.__version__} cannot compute on the GPU; replace it: pip uninstall "
        "onnxruntime, then pip install onnxruntime-gpu. Or set device=cpu"
    )


def first_line(error: Exception) -> str:
    """Return what an error says, as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def run_session(session: Any, pixels: NDArray[Any], name: str) -> list[NDArray[np.float32]]:
    """Run a session on pixels, in the type that its input has.

    Args:
        session: an onnxruntime session with one input.
        pixels: `(N, 3, h, w)`.
        name: what to call the network in messages.

    Returns:
        All outputs; those of floating point as float32.

    Raises:
        FiqaRayError: onnxruntime cannot run the network on such pixels.
    """
    image = session.get_inputs()[0]
    dtype = onnx_trial.DTYPES.get(image.type)
    if dtype is None:
        raise FiqaRayError(f"{name}: its input is {image.type}, wanted floating point or uint8 pixels")
    if dtype is np.uint8 and pixels.dtype != np.uint8:
        pixels = np.clip(np.rint(pixels), 0, 255)
    try:
        outputs = session.run(None, {image.name: np.ascontiguousarray(pixels, dtype)})
    except Exception as error:  # as in open_session
        raise FiqaRayError(
            f"{name}: onnxruntime fails on faces of shape {pixels.shape}: {first_line(error)}; the file is damaged, or not "
            "made for such faces"
        ) from error
    arrays = [np.asarray(output) for output in outputs]
    return [a.astype(np.float32, copy=False) if np.issubdtype(a.dtype, np.floating) else a for a in arrays]


# --- which output ---


def one_output(
    model: ModelProto, name: str, probe: NDArray[np.float32], *, quality: bool, output: str | None = None
) -> OnnxNetwork:
    """Return the network of one of a file's outputs, for any number of faces.

    Args:
        model: the network, from `read_onnx`; loses its other outputs.
        name: what to call the file in messages.
        probe: `(N, 3, 112, 112)` pixels as the network wants them, N at least 2.
        quality: whether one number per face is wanted, `(N,)` or `(N, 1)`, instead of an embedding `(N, D)`.
        output: name of the output; None: the only one that has the wanted shape.

    Raises:
        FiqaRayError: there is no such output, or several have the wanted shape.
    """
    names = [value.name for value in model.graph.output]
    if output is not None and output not in names:
        raise FiqaRayError(f"{name}: has no output {output!r}; its outputs are {', '.join(names)}")
    size = fixed_batch(model) or len(probe)
    shapes = try_network(model.SerializeToString(), name, size)
    wanted = [n for n in names if _fits(shapes[n], size, quality)]
    if output is None and len(names) == 1:
        output = names[0]  # whoever calls the network judges its shape
    elif output is None:
        if len(wanted) != 1:
            listed = ", ".join(f"{n} {tuple(s)}" for n, s in shapes.items())
            shape = "(b,) or (b, 1)" if quality else "(b, d)"
            problem = f"none of its outputs is {shape}" if not wanted else f"{len(wanted)} of its outputs are {shape}"
            raise FiqaRayError(f"{name}: {problem}: {listed}; name one by the option output")
        output = wanted[0]
    elif output not in wanted:
        shape = "one number per face" if quality else "an embedding per face"
        raise FiqaRayError(f"{name}: output {output!r} has the shape {tuple(shapes[output])}, wanted {shape}")
    keep_output(model, output)
    return _for_any_batch(model, name, probe)


def _fits(shape: tuple[int, ...], n: int, quality: bool) -> bool:
    if quality:
        return shape in ((n,), (n, 1))
    return len(shape) == 2 and shape[0] == n and shape[1] > 1


def _for_any_batch(model: ModelProto, name: str, probe: NDArray[np.float32]) -> OnnxNetwork:
    """Return the network with a free batch size where that computes the same, else as it is."""
    network = OnnxNetwork(model.SerializeToString(deterministic=True), name)
    if fixed_batch(model) is None:
        return network
    freed = OnnxNetwork(free_batch(model).SerializeToString(deterministic=True), name)
    try:
        same = differ_by(freed._run(probe), network._run(probe)) < SAME
    except FiqaRayError:
        same = False
    return freed if same else network


def differ_by(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return by how much two sets of outputs `(N, ...)` differ, as a share of the length of the second; NaN if unlike."""
    if a.shape != b.shape:
        return float("nan")
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    length = np.linalg.norm(b, axis=1)
    return float((np.linalg.norm(a - b, axis=1) / np.maximum(length, 1e-12)).max())
