"""A cluster that scales from zero: Ray's own autoscaler, which starts nodes on this machine in the place of a cloud.

A network namespace keeps its ports and processes apart from those of other tests.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hosts import Network, environment, why_not

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.recipes import find
from finepseudo.results import Results
from finepseudo.storage.store import Store

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LIMIT_S = 1500  # of a run beside others, on two busy cores
HEAD = "f" * 51 + "00000"  # the name that the autoscaler's provider of such nodes gives to a head
PLACES = {"train": 1, "score": 1, "decode": 3}
SHORT = ("--methods", "finepseudo", "--gitdl.frame-steps", "0", "--gitdl.video-steps", "0")

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]


def config(address):
    """Groups as those of cluster/base, each from no node at all."""
    groups = {
        name: {
            "resources": {"CPU": cpus, name: cpus, "object_store_memory": 100 << 20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        }
        for name, cpus in PLACES.items()
    }
    return {
        "cluster_name": "scales",
        "max_workers": 8,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD,
            "gcs_address": f"{address}:6379",
            "launch_multiple": True,
        },
        **{f"{whose}setup_commands": [] for whose in ("", "head_", "worker_")},
        **{f"{whose}_start_ray_commands": [] for whose in ("head", "worker")},
        "initialization_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **groups,
        },
    }


@pytest.mark.timeout(2 * LIMIT_S)
def test_a_run_asks_an_autoscaler_for_nodes_and_ends_as_any_other(tmp_path):
    env = environment(
        RAY_FAKE_CLUSTER="1", RAY_enable_autoscaler_v2="1", AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_CLOUD_INSTANCE_ID=HEAD, RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD,
    )  # fmt: skip
    places = [word for name in PLACES for word in (f"--scale.{name}-resource", name)]
    # Hosts have a /tmp of their own.
    with Network(tmp_path, rate="1gbit") as network, tempfile.NamedTemporaryFile("w", dir="/var/tmp") as scaling:
        json.dump(config(f"10.77.{network.number}.1"), scaling)
        scaling.flush()
        head = network.start(BIN / "ray", ["--num-cpus=0", f"--autoscaling-config={scaling.name}"], env)
        command = [sys.executable, str(ROOT / "jobs/run.py"), "rehearsal_smoke", "--run", "/tmp/run", *SHORT, *places]
        done = subprocess.run(
            head.command(*command), env={**env, "RAY_ADDRESS": f"{head.address}:6379"},
            capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        found = Results.from_json((tmp_path / head.name / "run/results.json").read_bytes())
    recipe = find("rehearsal_smoke")
    recipe = replace(recipe, gitdl=replace(recipe.gitdl, frame_steps=0, video_steps=0), methods=("finepseudo",))
    plain = ensure_results(run_rounds(recipe, Store(str(tmp_path / "plain")), InProcess(recipe)))
    assert replace(found, timing={}) == replace(plain, timing={})
