"""Whether a cluster has room for a run: several raylets on this machine, each a node of its own."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from finepseudo.errors import ClusterError, NotReadyError
from finepseudo.recipes import find
from finepseudo.runtime.cluster import cluster, preflight, ray  # which sets the token before Ray is imported

SMOKE = find("rehearsal_smoke")


def asking(deadline_s=3.0, **scale):
    """2 trainings, 3 decoding workers and 1 scoring one, of a CPU each."""
    optimiser = replace(SMOKE.optimiser, blocks_per_step=6)  # which up to three workers can share
    return replace(SMOKE, optimiser=optimiser, scale=replace(SMOKE.scale, resources_deadline_s=deadline_s, **scale))


@pytest.fixture(scope="module")
def nodes():
    """A head without a processor, and nodes of one each."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(8):
        found.add_node(num_cpus=1)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.mark.long
def test_room_is_counted_node_by_node(nodes, caplog):
    caplog.set_level(logging.INFO, "finepseudo")
    preflight(asking())
    ends = time.monotonic() + 30
    while ray.available_resources()["CPU"] < 8:
        assert time.monotonic() < ends, "what was asked for is not given back"
        time.sleep(0.1)
    with pytest.raises(ClusterError, match="no node has 2 CPU for a training worker, of which there are 2; nodes have"):
        preflight(asking(train_cpus=2))
    with pytest.raises(ClusterError, match="CPU: 10 needed, 8 free of 8. Lower .* with scale.resources-deadline-s"):
        preflight(asking(decode_workers=2, score_workers=2))
    with pytest.raises(ClusterError, match="CPU: 10 needed, 8 free of 8"):
        preflight(asking(train_workers=3))
    preflight(asking(train_workers=3, train_workers_min=2))
    with pytest.raises(ClusterError, match="no node has 1 CPU, 1 score for a scoring worker, of which there are 1"):
        preflight(asking(score_resource="score"))
    assert len(caplog.records) < 10, "waits, and says so now and then"


@pytest.mark.long
def test_what_others_hold_is_no_room(nodes):
    @ray.remote(num_cpus=1)
    class Other:
        def ready(self):
            return True

    others = [Other.remote() for _ in range(3)]
    ray.get([other.ready.remote() for other in others])
    with pytest.raises(ClusterError, match="CPU: 6 needed, 5 free of 8"):
        preflight(asking())
    threading.Timer(2.0, lambda: [ray.kill(other) for other in others]).start()
    began = time.monotonic()
    preflight(asking(deadline_s=30.0))
    assert time.monotonic() - began > 1


@pytest.mark.long
def test_nodes_that_come_later_are_waited_for(nodes):
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(preflight, asking(deadline_s=90.0, score_resource="score"))
        time.sleep(2)
        assert not asked.done()
        nodes.add_node(num_cpus=1, resources={"score": 1})
        asked.result()


def test_the_address_of_ray_job_is_told_from_that_of_a_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    message = "RAY_ADDRESS=http://127.0.0.1:8265 is where `ray job` finds a cluster"
    with pytest.raises(NotReadyError, match=message), cluster(SMOKE):
        pass
