"""Whole runs over several hosts whose nodes die and whose links go down, and must end as one that nothing disturbs.

    python benchmarks/chaos_hosts.py --faults 12 --to hosts.jsonl     # half an hour on two cores

As root, on Linux: the hosts are network namespaces of this machine (hosts.py). Trainings have two of them, decoders
and scorers one each. What is lost comes anew, as a scheduler of pods would have it; where only a link was down, the
node stays if Ray still has it when the link is back. Files, what is compared and the table are those of chaos.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import chaos
from chaos import Driver, Strike
from faulty_s3 import moto
from hosts import Host, Network, environment, why_not

from finepseudo.storage.store import Store

RAY = Path(sys.executable).parent / "ray"
PLACES = [f"--scale.{group}-resource={group}" for group in ("train", "score", "decode")]
WORK = ["--scale.train-workers=2", "--optimiser.blocks-per-step=2"]
NODES = {"train": (4, 4), "score": (1,), "decode": (4,)}  # processors of the nodes that each group has
LEFT_S = 40.0  # for the raylet of a node that was given up to see that it was, once its link is back


@dataclass
class Ground:
    """What a fault may strike."""

    driver: Driver
    network: Network
    env: dict[str, str]  # of all of Ray's processes
    nodes: dict[str, list[Host]] = field(default_factory=dict[str, list[Host]])

    def start(self, group: str, cpus: int) -> None:
        """One more node of a group."""
        options = [f"--num-cpus={cpus}", f"--resources={json.dumps({group: cpus})}", "--object-store-memory=300000000"]
        self.nodes.setdefault(group, []).append(self.network.start(RAY, options, self.env))

    def replace(self, group: str) -> None:
        """The youngest node of a group dies, and another comes."""
        self.nodes[group].pop().die()
        self.start(group, NODES[group][-1])


def node_lost(group: str) -> Strike:
    """As if its power were cut."""

    def strike(ground: Ground) -> bool:
        ground.replace(group)
        return True

    return strike


def link_down(group: str, seconds: float) -> Strike:
    """Nothing comes to the youngest node of a group, or from it, for a while; all on it goes on."""

    def strike(ground: Ground) -> bool:
        host = ground.nodes[group][-1]
        host.plug(into=False)
        time.sleep(seconds)
        host.plug(into=True)
        ends = time.monotonic() + LEFT_S
        while there := any(process.name() == "raylet" for process in host.processes()):
            if time.monotonic() > ends:
                break
            time.sleep(1)
        if not there:
            ground.replace(group)
        return True

    return strike


FAULTS: dict[str, Strike] = {
    "node of a training dies": node_lost("train"),
    "node of scorers dies": node_lost("score"),
    "node of decoders dies": node_lost("decode"),
    "link of a training's node down for 5 s": link_down("train", 5),
    "link of a training's node down for 60 s": link_down("train", 60),
    "link of a scorers' node down for 60 s": link_down("score", 60),
    "link of a decoders' node down for 60 s": link_down("decode", 60),
}


def main() -> None:
    """Run after run, each on hosts of its own."""
    options = chaos.asked(__doc__ or "")
    if why_not():
        raise SystemExit(why_not())
    with (
        tempfile.TemporaryDirectory() as folder,
        Network(Path(folder), rate="1gbit") as network,
        moto(network.address) as (_, url),
    ):
        s3 = chaos.of_s3(url)
        whole = Store(f"{folder}/whole")
        subprocess.run(chaos.command_of(whole.root, *WORK), cwd=chaos.ROOT, env=s3, check=True)

        def begun(run: str) -> Ground:
            network.clear()
            env = environment(**{key: value for key, value in s3.items() if key.startswith("AWS_")})
            head = network.start(RAY, ["--num-cpus=0", "--object-store-memory=300000000"], env)
            command = head.command(*chaos.command_of(run, *WORK, *PLACES))
            ground = Ground(Driver(command, {**env, "RAY_ADDRESS": f"{head.address}:6379"}), network, env)
            for group, sizes in NODES.items():
                for cpus in sizes:
                    ground.start(group, cpus)
            return ground

        chaos.repeatedly(options, FAULTS, begun, whole)


if __name__ == "__main__":
    main()
