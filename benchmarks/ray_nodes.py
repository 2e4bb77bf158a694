"""Bytes moved by each ranking engine on one to four Ray nodes simulated on this machine, over an S3 server.

python benchmarks/ray_nodes.py [--share 0.005] [--nodes 1 2 3 4] [--json FILE]

Every node has one CPU; all data lie in a bucket of moto's server, so that what a task reads or writes, and what Ray itself
sends, passes the loopback device: its counter is what is reported, per stage. Labels must be the same bytes in every run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import time
from pathlib import Path

import psutil
from moto.server import ThreadedMotoServer
from shapes import SHAPES, label_settings, write_inputs

from fiqa_ray.engine.ray import RayMapper
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.job import Job
from fiqa_ray.stages import stage_steps
from fiqa_ray.storage import filesystem, read_bytes


def moved_bytes() -> int:
    """Bytes sent over the loopback device so far."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def run(job: Job) -> tuple[dict[str, float], dict[str, float], str]:
    """Megabytes and seconds per stage, and the labels' checksum."""
    mapper = RayMapper(job.settings.compute)
    megabytes, seconds = {}, {}
    for stage in ("pair", "rank", "optimize"):
        before, started = moved_bytes(), time.perf_counter()
        for steps in stage_steps(stage, job):
            run_steps(steps, mapper)
        megabytes[stage] = round((moved_bytes() - before) / 1e6, 1)
        seconds[stage] = round(time.perf_counter() - started, 1)
    labels = read_bytes(job.optimized_labels(job.settings.methods[0], 0.001).at("part-00000.parquet"))
    return megabytes, seconds, hashlib.sha256(labels).hexdigest()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.005, help="share of VGGFace2's identities")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    import ray
    from ray.cluster_utils import Cluster

    sizes = SHAPES["vggface2"].sizes(a.share)
    rows, checksums = [], set()
    for n_nodes in a.nodes:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
        for _ in range(n_nodes - 1):
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        for engine in ("counting", "sort"):
            bucket = f"nodes-{n_nodes}-{engine}"
            fs, _ = filesystem(f"s3://{bucket}")
            fs.mkdir(bucket)
            rank = {"engine": engine}
            job = Job(label_settings(f"s3://{bucket}/run", 1, [0.001], rank=rank, compute={"n_workers": n_nodes}))
            write_inputs(job, sizes, 2)
            megabytes, seconds, checksum = run(job)
            checksums.add(checksum)
            rows.append({"n_nodes": n_nodes, "engine": engine, "megabytes": megabytes, "seconds": seconds})
            print(json.dumps(rows[-1]), flush=True)
        ray.shutdown()
        cluster.shutdown()
    server.stop()
    assert len(checksums) == 1, "labels differ between runs"
    if a.json:
        result = {"n_images": int(sizes.sum()), "labels_sha256": checksums.pop(), "rows": rows}
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
