"""Table IV from the output of `fiqa-ray time`: rows, speed-up, caption, and what is refused."""

import json

import pytest

from fiqa_ray.errors import UsageError
from fiqa_ray.tools.time_table import read_times, time_table, time_text


def times(*methods: dict) -> dict:
    versions = {"torch": "2.9"}
    return {
        "methods": list(methods), "n_images": 100, "n_warm_up": 10, "device": "cpu0", "n_threads": 2,
        "versions": versions, "decode_mean": 0.5, "decode_sd": 0.1,
    }  # fmt: skip


def method(name: str, variant: str, mean: float) -> dict:
    return {
        "method": name, "variant": variant, "mean": mean, "sd": 0.5, "best_batch": 32, "best_mean": mean / 2,
        "best_sd": 0.25,
    }  # fmt: skip


def test_a_regressor_stands_beside_its_method() -> None:
    numbers, caption = time_table(
        times(
            method("faceqan", "baseline", 346.5), method("faceqan", "optimized", 11.3), method("pcnet", "baseline", 3)
        )
    )
    assert numbers["method"].tolist() == ["faceqan", "pcnet"]
    assert numbers["speed-up"][0] == pytest.approx(346.5 / 11.3)  # 30.7, as the paper's Table IV says in other words
    text = time_text(numbers)
    assert text.iloc[0].tolist() == [
        "faceqan", "346.50 ± 0.50", "32", "173.25 ± 0.25", "11.30 ± 0.50", "32", "5.65 ± 0.25", "30.7",
    ]  # fmt: skip
    assert text.iloc[1].tolist() == ["pcnet", "3.00 ± 0.50", "32", "1.50 ± 0.25", "", "", "", ""]
    for part in ("cpu0", "2 threads", "100 images", "10 calls", "0.500 ± 0.100 ms", "torch 2.9", "Speed-up"):
        assert part in caption


def test_other_files_are_refused(tmp_path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps(times(method("pcnet", "", 3.0))))
    numbers, _ = time_table(read_times(str(path)))
    assert "speed-up" not in numbers
    for content in ("no JSON", "[]", '{"methods": []}'):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"give the output of fiqa-ray time --json"):
            read_times(str(path))
