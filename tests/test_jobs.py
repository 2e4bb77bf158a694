import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from fiqa_ray.config import load_settings

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "fiqa_ray" / "jobs").glob("*.yaml"))


def test_there_are_jobs():
    assert {p.name for p in JOBS} >= {"demo.yaml", "identity_folder.yaml", "vggface2.yaml"}


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_every_job_is_valid_and_says_how_it_is_run(path):
    settings = load_settings(str(path))
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(re.search(rf"fiqa-ray run \S*\b{path.name}", line) for line in header)
    assert settings.methods


def test_the_paper_settings():
    s = load_settings(str(ROOT / "fiqa_ray" / "jobs" / "vggface2.yaml"))
    assert (s.pair.n_clusters, s.pair.n_repeats, s.optimize.theta, s.optimize.index_scale) == (20, 10, (0.001,), "raw")


def test_cluster_is_valid_for_ray():
    from ray.autoscaler._private.util import validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config({**config, "cluster_synced_files": []})  # `ray up` fills in this one
    nodes = config["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    spot = [n for n in nodes.values() if n["resources"].get("GPU")]
    assert all(
        n["min_workers"] == 0 and n["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for n in spot
    )
    assert config["head_node_type"] in nodes
    with pytest.raises(Exception, match="'resources' is a required property"):
        validate_config({**config, "available_node_types": {"head": {"node_config": {}}}})


def test_rayjob_has_the_fields_of_kuberays_resource():
    """Names and types of KubeRay's resource; Kubernetes would drop or refuse others.

    Compared with the Go types of KubeRay's `ray-operator/apis/ray/v1`, the schema of its RayJob resource, and its reference
    of 1.5.1 to 1.6, which has what came last: `authOptions` (1.5.1), groups' `labels` and `resources`, SidecarMode (1.5).
    """
    job = yaml.safe_load((ROOT / "rayjob.yaml").read_text())
    pod = {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "items": closed(
                        {"name": TEXT, "image": TEXT, "resources": closed({"limits": QUANTITIES, "requests": QUANTITIES}),
                         "envFrom": {"type": "array"}}, "name", "image",
                    ),
                },
                "terminationGracePeriodSeconds": COUNT,
            },
            "additionalProperties": False,
        }
    }  # fmt: skip
    group = {"rayStartParams": TEXTS, "template": closed(pod, "spec"), "labels": TEXTS, "resources": TEXTS}
    counts = dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "numOfHosts"), COUNT)
    worker = closed({**group, **counts, "groupName": TEXT}, "groupName", "template", "minReplicas", "maxReplicas")
    cluster = {
        "rayVersion": TEXT,
        "enableInTreeAutoscaling": {"type": "boolean"},
        "authOptions": closed({"mode": {"enum": ["disabled", "token"]}, "secretName": TEXT}),
        "autoscalerOptions": closed(
            {"idleTimeoutSeconds": COUNT, "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]}}
        ),
        "headGroupSpec": closed(group, "template"),
        "workerGroupSpecs": {"type": "array", "items": worker},
    }
    spec = {
        "entrypoint": TEXT,
        "backoffLimit": COUNT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "rayClusterSpec": closed(cluster, "headGroupSpec"),
    }
    ray_job = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": "RayJob"}, "metadata": {"type": "object"}}
    jsonschema.validate(job, closed({**ray_job, "spec": closed(spec)}, "apiVersion", "kind", "metadata", "spec"))
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # no work on the head
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)  # older versions know no token
    assert job["spec"]["backoffLimit"] > 0


TEXT, TEXTS = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
QUANTITY = {"type": ["integer", "string"], "pattern": r"^\d+(\.\d+)?(m|k|[KMGTPE]i|[MGTPE])?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
"""Kubernetes' amounts, such as 500m and 32Gi."""


def closed(properties, *required):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def test_the_role_may_read_and_write_a_run_and_no_more():
    statements = json.loads((ROOT / "deploy" / "iam_policy.json").read_text())["Statement"]
    actions = {a for s in statements for a in s["Action"]}
    assert not any("*" in a or "Delete" in a for a in actions)  # a run deletes nothing in a bucket
    writes = [s for s in statements if "s3:PutObject" in s["Action"]]
    assert [s["Resource"] for s in writes] == ["arn:aws:s3:::BUCKET/runs/*"]


def test_the_slurm_script_starts_a_run_on_all_nodes(tmp_path):
    """With stand-ins for Slurm and Ray: every node joins, and the job's exit code is the script's."""
    log = tmp_path / "log"
    programs = {
        "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "scontrol $*" >>LOG; fi',
        "srun": 'echo "srun $*" >>LOG',
        "ray": 'echo "ray $*" >>LOG; [ "$1" = status ] && echo Active; true',
        "fiqa-ray": 'echo "fiqa-ray $*" >>LOG; exit ${CODE:-0}',
    }
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{body}\n".replace("LOG", str(log)))
        program.chmod(0o755)
    (tmp_path / "bin" / "activate").write_text("")
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8", "SLURM_NNODES": "2"}
    for code in (0, 3):
        log.write_text("")
        result = subprocess.run(
            ["bash", ROOT / "slurm.sbatch", "mine.yaml", "seed=1"],
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "VENV": str(tmp_path), "CODE": str(code), **slurm},
            capture_output=True, timeout=400, check=False,
        )  # fmt: skip
        assert result.returncode == code, result.stderr
        lines = log.read_text()
        assert "fiqa-ray run mine.yaml seed=1 compute.address=n1:10007 compute.n_workers=16" in lines
        assert "-w n1 ray start --head --port=10007 --num-cpus=8" in lines
        assert "ray start --address='n1:10007' --num-cpus=8" in lines
        assert ("scontrol requeue 7" in lines) == (code == 3)  # stopped at the time limit
