"""A Ray cluster on this machine: a head without processors, nodes of one each. Kills one on `node N` or `head` on stdin."""

import sys

from ray.cluster_utils import Cluster

FAST = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}
STORE_BYTES = 80 * 2**20

if __name__ == "__main__":
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False, "_system_config": FAST}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(int(sys.argv[1]))]
    print("ADDRESS", cluster.address, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "node":
            cluster.remove_node(nodes[int(rest[0])], allow_graceful=False)
        elif word == "head":
            cluster.head_node.kill_gcs_server(check_alive=False)
        else:
            break
    cluster.shutdown()
