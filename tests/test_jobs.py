import re
from pathlib import Path

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
