"""A leaderboard on a Ray cluster of two nodes, one of which is killed on the way; a test starts it in a process."""

import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.leaderboard.run.cluster import connect
from fuxictr_llm.leaderboard.run.engine import Listener, run_plan
from fuxictr_llm.leaderboard.run.jobs import work
from fuxictr_llm.leaderboard.run.on_ray import RayExecutor
from fuxictr_llm.leaderboard.run.results import Results

# Whether a node's process still answers is asked once a second, not every three. By itself Ray has workers step back
# behind all else that the machine does (nice 15), other tests for example.
SETTINGS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 2,
    "worker_niceness": 0,
}


class Killer(Listener):
    """Kills a node when so many runs are done."""

    def __init__(self, cluster, node, after):
        self.cluster, self.node, self.left = cluster, node, after

    def finished(self, run):
        self.left -= 1
        if self.left == 0:
            self.cluster.remove_node(self.node, allow_graceful=False)


def main(plan, folder):
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": SETTINGS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1)
    connect(cluster.address)  # once for both executors
    try:
        with RayExecutor(cluster.address, gpus=0.5):
            pass
    except UserError as error:
        print(error)
    with RayExecutor(cluster.address) as executor:
        print(f"{executor.slots()} slots, one cache: {executor.one_cache}")
        results = Results(folder, Plan.read(plan))
        run_plan(results, executor=executor, listener=Killer(cluster, node, after=1), work=work)
        deadline = time.monotonic() + 120  # until the cluster notices that the node is gone
        while executor.slots() > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        print(f"{executor.slots()} slots, {len(results.finished())} runs")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
