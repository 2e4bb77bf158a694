"""What many parts cost: a resumed start of a finished dataset, its requests to S3, and the driver's time per shard.

python benchmarks/bookkeeping.py --parts 100000
python benchmarks/bookkeeping.py --parts 20000 --ray-parts 2000 --s3-parts 1000
python benchmarks/bookkeeping.py --parts 1000 --status-parts 10000      # what `status --json` takes, on disk and on S3

Prints CPU seconds and memory of a process of its own per measurement. Parts hold one row; what is measured is bookkeeping.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from fiqa_ray.config import ComputeSettings
from fiqa_ray.datasets.dataset import Dataset, Part, part_name, record_name
from fiqa_ray.datasets.parquet import table_bytes
from fiqa_ray.datasets.sums import file_sums
from fiqa_ray.documents import document_bytes
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.ray import RayMapper, ray_session
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.engine.step import Step, stateless_worker

SERVER = Path(__file__).parents[1] / "tests" / "helpers" / "s3_server.py"


STATUS_SETS = ("one", "three", "two")


def dataset_at(root: str, name: str = "train") -> Dataset:
    """Return the dataset that is measured."""
    return Dataset(f"{root}/embeddings/set={name}/v=0123456789abcdef", "embeddings")


def make_parts(root: str, n_parts: int, name: str = "train") -> None:
    """Write a finished dataset of one-row parts on a local disk."""
    from dataclasses import asdict

    dataset = dataset_at(root, name)
    dataset.write_plan({"stage": "embed", "n_parts": n_parts, "n_rows": n_parts, "unit": "images", "created_s": 0.0})
    content = table_bytes(pa.table({"image_row": [0]}))
    sums = file_sums("x.parquet", content)
    folder = Path(dataset.uri)
    for i in range(n_parts):
        file = f"{part_name(i)}.parquet"
        (folder / file).write_bytes(content)
        part = Part(i, 1, {file: sums}, {"status": {"ok": 1}}, 0.1)
        place = f"v=0123456789abcdef/{record_name(i)}"
        (folder / record_name(i)).write_bytes(document_bytes(asdict(part), place))
    dataset.commit(n_parts)


def step_of(root: str, n_parts: int, runs_in: Any = "pool") -> Step:
    """Return a step whose shards do nothing but report their part."""
    make_worker = stateless_worker(importlib.import_module("bookkeeping").tiny_part)  # as Ray's workers import it
    return Step("embed", dataset_at(root), range(n_parts), make_worker, n_parts, runs_in, unit="images")


def tiny_part(index: int) -> Part:
    """Return the record of a part as if it had been written."""
    return Part(
        index, 1, {f"{part_name(index)}.parquet": {"n_bytes": 8, "crc32": "0a0b0c0d"}}, {"status": {"ok": 1}}, 0.1
    )


def measured(target: Any, *args: Any) -> tuple[float, float, Any]:
    """Return the CPU seconds, the growth of memory in MB, and the result of a call in a new process."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, target, args))
    process.start()
    theirs.close()  # so that the end of a process that failed is seen here
    result: tuple[float, float, Any] = ours.recv()
    process.join()
    return result


def _measure(pipe: Any, target: Any, args: tuple[Any, ...]) -> None:
    before, started = psutil.Process().memory_info().rss, time.process_time()
    result = target(*args)
    # getrusage would give the parent's peak, which a child inherits
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
    pipe.send((time.process_time() - started, (peak - before) / 1e6, result))


def resume(root: str, n_parts: int) -> int:
    """Run the step of a finished dataset; return its rows."""
    (manifest,) = run_steps([step_of(root, n_parts)], local_map)
    return manifest.n_rows


def resume_on_s3(n_parts: int) -> dict[str, int]:
    """Run the step of a finished dataset in a bucket; return the requests by kind."""
    import aiobotocore.client

    counts: Counter[str] = Counter()
    call = aiobotocore.client.AioBaseClient._make_api_call

    async def counted(self: Any, operation: str, kwargs: Any) -> Any:
        counts[operation] += 1
        return await call(self, operation, kwargs)

    aiobotocore.client.AioBaseClient._make_api_call = counted
    resume("s3://bookkeeping", n_parts)
    return dict(counts)


def drive(n_parts: int, runs_in: str) -> tuple[float, float]:
    """Run shards that do nothing on Ray; return CPU seconds a shard and growth of memory in MB, after the first 100."""
    compute = ComputeSettings(n_workers=2, object_store_bytes=200_000_000)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with ray_session(compute):
        step = step_of("/nowhere", n_parts, runs_in)
        items = [(step, shard) for shard in step.shards]
        process, peak = psutil.Process(), 0
        n_seen, cpu, start_rss = 0, 0.0, 0
        for _, outcome in RayMapper(compute)(items):
            assert isinstance(outcome, Part), outcome
            n_seen += 1
            if n_seen == 100:
                cpu, start_rss = time.process_time(), process.memory_info().rss
            if n_seen % 100 == 0:
                peak = max(peak, process.memory_info().rss)
        return (time.process_time() - cpu) / (n_seen - 100), (peak - start_rss) / 1e6


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=20_000)
    parser.add_argument("--ray-parts", type=int, default=0)
    parser.add_argument("--s3-parts", type=int, default=0)
    parser.add_argument("--status-parts", type=int, default=0, help="parts of each of three datasets")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        make_parts(root, arguments.parts)
        cpu, memory, n_rows = measured(resume, root, arguments.parts)
        assert n_rows == arguments.parts
        print(f"resumed start, {arguments.parts:,} parts: {cpu:.2f} s of CPU, {memory:.0f} MB")
    if arguments.s3_parts:
        with tempfile.TemporaryDirectory() as root:
            make_parts(root, arguments.s3_parts)
            (cpu, memory, counts), _ = _on_s3(root, resume_on_s3, arguments.s3_parts)
        print(f"resumed start on S3, {arguments.s3_parts:,} parts: {cpu:.2f} s of CPU, requests {counts}")
    if arguments.status_parts:
        print_status(arguments.status_parts)
    for runs_in in ("tasks", "pool") if arguments.ray_parts else ():
        _, _, (per_part, memory) = measured(drive, arguments.ray_parts, runs_in)
        print(
            f"Ray {runs_in}, {arguments.ray_parts:,} shards that do nothing: {1e3 * per_part:.2f} ms of driver CPU a shard, "
            f"{memory:+.0f} MB"
        )


def print_status(n_parts: int) -> None:
    """Print what `fiqa-ray status` takes for two finished datasets and one without its manifest, on disk and on S3."""
    with tempfile.TemporaryDirectory() as root:
        for name in STATUS_SETS:
            make_parts(root, n_parts, name)
        (Path(dataset_at(root, STATUS_SETS[-1]).uri) / "_manifest.json").unlink()
        on_disk, (on_s3, server_cpu) = measured(look, root), _on_s3(root, look, "s3://bookkeeping")
    for place, (cpu, memory, wall_s) in {"disk": on_disk, "S3": on_s3}.items():
        text = f"{wall_s:.2f} s, {cpu:.2f} s of CPU, {memory:.0f} MB"
        print(f"status of 3 datasets of {n_parts:,} parts, one unfinished, on {place}: {text}")
    print(f"of that, the S3 server, which shares this machine: {server_cpu:.2f} s of CPU")


def look(root: str) -> float:
    """Read the status of a run, as `fiqa-ray status` does; return the seconds without the start of Python."""
    from fiqa_ray.tools.status import run_now, run_status

    started = time.perf_counter()
    assert not run_now(root)["is_at_work"]
    assert [r["finished"] for r in run_status(root)].count(True) == len(STATUS_SETS) - 1
    return time.perf_counter() - started


def _on_s3(root: str, target: Any, *args: Any) -> tuple[tuple[float, float, Any], float]:
    """Start an S3 server that holds a run, and measure there; return the measurement and the server's CPU seconds."""
    import s3fs

    port = 5599
    url = f"http://127.0.0.1:{port}"
    names = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update({**names, "AWS_ENDPOINT_URL": url})
    command = [sys.executable, str(SERVER), str(port), "--folder", root, "bookkeeping"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        fs = s3fs.S3FileSystem(endpoint_url=url)
        for _ in range(600):
            try:
                fs.ls("bookkeeping")
                break
            except Exception:
                time.sleep(0.2)
        before = sum(psutil.Process(server.pid).cpu_times()[:2])
        result = measured(target, *args)
        return result, sum(psutil.Process(server.pid).cpu_times()[:2]) - before
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
