"""A whole job in miniature: patterns as identities, noise as degradation, and a network of two layers as recogniser."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import nn

from fiqa_ray.config import load_settings
from fiqa_ray.models.networks.iresnet import SplitNetwork


def free_port() -> int:
    """A port of the loopback interface that nobody uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def await_server(url: str, process: subprocess.Popen, seconds: float = 300) -> None:
    """Wait until a server answers, with whatever code; fail where its process ends or the time is over."""
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.1)


def make_faces(root: Path, *, n_identities=8, per_identity=9, seed=0, benchmark=True) -> Path:
    """root/train/<identity>/<n>.jpg, 112x112, and root/bench in LFW's layout with pairs.txt and scores.csv."""
    rng = np.random.default_rng(seed)
    with open(root / "scores.csv" if root.exists() else _made(root) / "scores.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["image_id", "score"])
        for k in range(n_identities):
            for i in range(per_identity):
                name = f"p{k:02d}/{i:03d}.jpg"
                noise = _write(rng, root / "train" / name, k)
                writer.writerow([name, -noise])
    if benchmark:
        _make_benchmark(root, rng)
    return root


def _made(root: Path) -> Path:
    root.mkdir(parents=True)
    return root


def _write(rng, path: Path, identity: int) -> float:
    pattern = np.random.default_rng(1000 + identity).uniform(0, 255, (5, 5, 3))
    noise = float(rng.uniform(5, 120))
    image = cv2.resize(pattern, (112, 112), interpolation=cv2.INTER_CUBIC) + noise * rng.normal(size=(112, 112, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
    return noise


def _make_benchmark(root: Path, rng, n_people=6, per_person=6, n_folds=3, n=30) -> None:
    names = [f"Name_{k}" for k in range(n_people)]
    with open(root / "degradations.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["image_id", "kind", "strength", "quality"])
        for k, name in enumerate(names):
            for i in range(1, per_person + 1):
                noise = _write(rng, root / "bench" / name / f"{name}_{i:04d}.jpg", 100 + k)
                writer.writerow([f"{name}/{name}_{i:04d}.jpg", "noise", noise / 120, -noise])
    lines = [f"{n_folds}\t{n}"]
    for _ in range(n_folds):
        for _ in range(n):
            i, j = rng.choice(per_person, 2, replace=False) + 1
            lines.append(f"{rng.choice(names)}\t{i}\t{j}")
        for _ in range(n):
            a, b = rng.choice(names, 2, replace=False)
            lines.append(f"{a}\t{rng.integers(1, per_person + 1)}\t{b}\t{rng.integers(1, per_person + 1)}")
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")


def write_job(path: Path, faces: str | Path, run_uri: str, **changes) -> str:
    """A job's YAML; ``changes`` replace top-level settings. Returns its path."""
    values = {
        "name": "smoke",
        "run_uri": run_uri,
        "seed": 3,
        "source": {"kind": "folder", "uri": f"{faces}/train"},
        "recognizer": {"name": "smoke:tiny"},
        "methods": [
            {"name": "faceqan", "options": {"n_samples": 2, "n_iterations": 2}},
            {"name": "embedding_norm"},
        ],
        "pair": {"n_clusters": 4, "n_repeats": 3},
        "optimize": {"theta": 0.05},
        "train": {"mode": "head", "n_epochs": 3},
        "benchmarks": [
            {
                "name": "bench",
                "source": {"kind": "folder", "uri": f"{faces}/bench"},
                "pairs": {"kind": "lfw", "uri": f"{faces}/pairs.txt"},
                "degradations": f"{faces}/degradations.csv",
            }
        ],
        "evaluate": {"fmr": 0.1, "draws": 20},
        "compute": {"engine": "local", "rows_per_part": 20, "train_workers": 0},
    }
    path.write_text(yaml.safe_dump({**values, **changes}))
    return str(path)


def settings(tmp_path: Path, faces: Path, run_uri: str, *overrides: str, **changes):
    """Settings of the smoke job."""
    return load_settings(write_job(tmp_path / "job.yaml", faces, run_uri, **changes), overrides)


class Tiny(nn.Module):
    """Average colours of 8x8 fields, projected to 32 numbers by fixed random weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.pool = nn.AvgPool2d(14)
        self.linear = nn.Linear(192, 32, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(32, 192, generator=generator))

    def forward(self, x):
        return self.linear(torch.tanh(4 * (self.pool(x) - 0.5)).flatten(1))


def tiny(weights=None):
    return Tiny()


def wrong_shape(weights=None):
    return nn.Sequential(Tiny(), nn.Unflatten(1, (4, 8)))


class Split(SplitNetwork):
    """Trunk: the red pixels and the size of their fine grain, 25,088 numbers. Tail: some pixels, which noise moves."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(256, 32, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(32, 256, generator=generator))

    def trunk(self, x):
        red = x[:, :1]
        grain = (red - nn.functional.avg_pool2d(red, 3, stride=1, padding=1)).abs()
        return torch.cat([4 * (red - 0.5), 4 * grain], dim=1).flatten(1)

    def tail(self, features):
        return self.linear(features.view(-1, 2, 112, 112)[:, 0, ::7, ::7].flatten(1))


def split(weights=None):
    return Split()


class Sometimes(Tiny):
    """A value of its own, such as NaN, for faces that are dark at the top left."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x):
        dark = x[:, :, :40, :40].mean(dim=(1, 2, 3)) < 0.45
        return torch.where(dark[:, None], self.value, super().forward(x))


def sometimes_nan(weights=None):
    return Sometimes(torch.nan)


def sometimes_zero(weights=None):
    return Sometimes(0.0)


class Mortal(Tiny):
    """Kills its process in the middle of training, once."""

    def __init__(self, marker) -> None:
        super().__init__()
        self.marker = Path(marker)
        self.n_training = 0

    def forward(self, x):
        if self.training:
            self.n_training += 1
            if self.n_training == 8 and not self.marker.exists():
                self.marker.touch()
                os._exit(9)
        return super().forward(x)


def mortal(weights=None, marker=""):
    return Mortal(marker)


class Deep(nn.Module):
    """Sixty small layers, 120 tensors: more than the released recipe trains."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList([nn.Linear(48 if i == 0 else 16, 16) for i in range(60)])

    def forward(self, x):
        x = nn.functional.avg_pool2d(x, 28).flatten(1)
        for i, layer in enumerate(self.layers):
            x = torch.tanh(layer(x)) + (x if i else 0)
        return x


def deep(weights=None):
    return Deep()
