"""Table IV of the paper: run time per image of each method and of its regressor, from what `fiqa-ray time --json` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fiqa_ray.datasets.results import OPTIMIZED
from fiqa_ray.errors import UsageError
from fiqa_ray.storage import read_bytes

if TYPE_CHECKING:
    import pandas as pd

KEYS = {"methods", "n_images", "n_warm_up", "device", "n_threads", "versions", "decode_mean", "decode_sd"}


def read_times(uri: str) -> dict[str, Any]:
    """Return what `fiqa-ray time --json` wrote.

    Raises:
        UsageError: The file is something else.
    """
    try:
        times = json.loads(read_bytes(uri))
    except ValueError as exc:
        raise UsageError(f"{uri} is no JSON ({exc}); give the output of fiqa-ray time --json") from exc
    if not isinstance(times, dict) or not times.keys() >= KEYS:
        raise UsageError(f"{uri} holds no run times; give the output of fiqa-ray time --json")
    return times


def time_table(times: Mapping[str, Any]) -> tuple[pd.DataFrame, str]:
    """Return Table IV as numbers, in milliseconds per image, and its caption.

    A row per method: its own time at batch size 1 and in its best batch, then those of its regressor, and the speed-up by
    the regressor: 2 means twice as fast.
    """
    import pandas as pd

    own = [m for m in times["methods"] if m.get("variant") != OPTIMIZED]
    regressors = {m["method"]: m for m in times["methods"] if m.get("variant") == OPTIMIZED}
    rows = []
    for m in own:
        row = {"method": m["method"], **_columns("", m)}
        if regressors:
            r = regressors.get(m["method"])
            row |= _columns("regressor ", r) if r else {}
            row["speed-up"] = m["mean"] / r["mean"] if r else float("nan")
        rows.append(row)
    versions = ", ".join(f"{name} {version}" for name, version in times["versions"].items())
    caption = (
        f"Milliseconds per image, mean and standard deviation, on {times['device']} with {times['n_threads']} threads. "
        f"Batch 1: over {times['n_images']} images or more, each alone, after {times['n_warm_up']} calls that do not count; "
        "best batch: the fastest of several batch sizes, with the standard deviation over the batches. Without decoding, "
        f"which takes {times['decode_mean']:.3f} ± {times['decode_sd']:.3f} ms per image. {versions}."
    )
    if regressors:
        caption += " Speed-up: time of the method at batch size 1 over that of its regressor on optimized labels."
    return pd.DataFrame(rows), caption


def _columns(prefix: str, m: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{prefix}batch 1": m["mean"],
        f"{prefix}batch 1 SD": m["sd"],
        f"{prefix}best batch": m["best_batch"],
        f"{prefix}in best batch": m["best_mean"],
        f"{prefix}in best batch SD": m["best_sd"],
    }


def time_text(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text: mean ± standard deviation in one column."""
    import pandas as pd

    text = {"method": numbers["method"]}
    for name in numbers.columns[1:]:
        if f"{name} SD" in numbers:
            pairs = zip(numbers[name], numbers[f"{name} SD"], strict=True)
            text[name] = ["" if pd.isna(mean) else f"{mean:.2f} ± {sd:.2f}" for mean, sd in pairs]
        elif not name.endswith(" SD"):
            text[name] = ["" if pd.isna(v) else f"{v:.1f}" if name == "speed-up" else f"{v:.0f}" for v in numbers[name]]
    return pd.DataFrame(text)
