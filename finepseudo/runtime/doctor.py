"""Look at every node of a cluster at once, each by tasks that are pinned to it; doctor/judge.py says what follows."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from finepseudo.costs.resources import workers
from finepseudo.doctor import probe
from finepseudo.doctor.judge import Facts, Finding, Place, judge
from finepseudo.doctor.sample import sample, tiny_clip
from finepseudo.errors import ClusterError, FinePseudoError
from finepseudo.recipe import Recipe
from finepseudo.run import data_store
from finepseudo.runtime.cluster import connected, preflight
from finepseudo.storage.store import Store, default_cache_dir

PROBE = Path(probe.__file__).read_text()
STORE_S = 15.0  # for the driver to leave the files that nodes look for
CLOCK_S = 15.0  # for every node to say its time; the first time it starts a worker
CLOCKS = 3  # times that it is asked, of which the quickest answer counts
LOOK_S = 25.0  # for each look of a node
START_S = 10.0  # for a process more than for its looks
GROUP_S = 20.0  # for training nodes to find each other
ROOM_S = 3.0  # for workers to find a place
TINY = "clip.mp4"
GROUP_MOST = 16  # processes of the group


@dataclass
class _Node:
    """A node that is alive, and what is being found out about it."""

    id: str
    name: str
    address: str
    session: str
    resources: dict[str, float]
    found: dict[str, Any] = field(default_factory=dict[str, Any])
    faults: dict[str, str] = field(default_factory=dict[str, str])
    skew: tuple[float, float] | None = None


def examine(recipe: Recipe, run: Store, base: Store) -> list[Finding]:
    """All findings about the cluster that a job of this recipe would run on: joined or started here as a job does."""
    with _Ground(recipe, run, base) as ground, ThreadPoolExecutor(1) as beside:
        driver = beside.submit(_look_here, ground)
        address, room, nodes, backend = "", "", list[_Node](), ""
        try:
            with connected(recipe):
                nodes, room = _nodes(), _room(recipe)
                backend = _look(recipe, ground, nodes)
        except FinePseudoError as error:
            address = probe.clean(str(error))
        places = [Place(node.name, node.found, node.faults, node.resources, node.skew) for node in nodes]
        return judge(recipe, Facts(driver.result(), places, address, room, ground.fault, backend))


def _look_here(ground: _Ground) -> Place:
    """What is found where the driver runs; nodes are compared with it."""
    request = ground.request("driver", "")
    return Place("driver", *_told(request, *_ask(PROBE, request, LOOK_S + START_S)))


def _nodes() -> list[_Node]:
    """Those that are alive; several of one name are told apart."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = Counter(node["NodeName"] for node in alive)
    return [
        _Node(
            id=node["NodeID"],
            name=node["NodeName"] if names[node["NodeName"]] == 1 else f"{node['NodeName']} ({node['NodeID'][:6]})",
            address=node["NodeManagerAddress"],
            session=str(Path(node["ObjectStoreSocketName"]).parents[1]),
            resources=node["Resources"],
        )
        for node in alive
    ]


def _room(recipe: Recipe) -> str:
    """Why the workers of the run have no place; empty if they have."""
    deadline_s = min(ROOM_S, recipe.scale.resources_deadline_s)
    try:
        preflight(replace(recipe, scale=replace(recipe.scale, resources_deadline_s=deadline_s)))
    except ClusterError as error:
        return str(error)
    return ""


def _look(recipe: Recipe, ground: _Ground, nodes: Sequence[_Node]) -> str:
    """Fill in what every node says of itself; returns the backend of the group that was tried."""
    ports = _set_clocks(nodes)
    asked = dict[Any, tuple[_Node, dict[str, Any]]]()
    for node in nodes:
        request = ground.request(node.id, node.session)
        asked[_pinned(_ask, node)(PROBE, request, LOOK_S + START_S)] = (node, request)
    backend, meetings = _meetings(recipe, nodes, ports)
    for node, looks in meetings:
        request = {"deadline_s": GROUP_S + START_S, "looks": looks}
        gpus = 1 if "gpu" in looks else 0
        asked[_pinned(_ask, node, gpus)(PROBE, request, GROUP_S + 2 * START_S)] = (node, request)
    answers, missing = _gathered(list(asked), LOOK_S + 2 * START_S)
    for reference, (answer, _) in answers.items():
        node, request = asked[reference]
        found, faults = _told(request, *answer)
        node.found.update(found)
        node.faults.update(faults)
    for reference, why in missing.items():
        node, request = asked[reference]
        node.faults.update({next(iter(request["looks"])): why})
    return backend


def _meetings(
    recipe: Recipe, nodes: Sequence[_Node], ports: Mapping[str, int]
) -> tuple[str, list[tuple[_Node, dict[str, Any]]]]:
    """Processes that form a group as a training's workers do, or hold a GPU: one on each node that may have them."""
    scale, training = recipe.scale, workers(recipe)[0].need
    backend = "nccl" if scale.train_gpus else "gloo"
    members = [node for node in nodes if all(node.resources.get(key, 0) >= need for key, need in training.items())]
    members = [node for node in members if node.id in ports][:GROUP_MOST] if scale.train_workers > 1 else []
    if len(members) == 1 and backend == "gloo":
        members *= 2  # as two workers of one node
    looks: list[tuple[_Node, dict[str, Any]]] = []
    for rank, node in enumerate(members):
        meeting = {
            "backend": backend,
            "address": members[0].address,
            "port": ports[members[0].id],
            "rank": rank,
            "world": len(members),
            "timeout_s": GROUP_S,
        }
        looks.append((node, {"gpu": {}, "group": meeting} if scale.train_gpus else {"group": meeting}))
    if scale.train_gpus or scale.score_gpus:
        there = {node.id for node, look in looks if "gpu" in look}
        looks += [(node, {"gpu": {}}) for node in nodes if node.resources.get("GPU") and node.id not in there]
    return backend if members else "", looks


def _set_clocks(nodes: Sequence[_Node]) -> dict[str, int]:
    """How far each node's clock is from this one's, bounded by the time of the answer; by node, a port to meet at."""
    ports = dict[str, int]()
    for _ in range(CLOCKS):
        asked = {_pinned(_clock, node)(): (node, time.time()) for node in nodes}
        answers, missing = _gathered(list(asked), CLOCK_S)
        for reference, ((there, port), came) in answers.items():
            node, sent = asked[reference]
            bound = (came - sent) / 2
            ports[node.id] = port
            if node.skew is None or bound < node.skew[1]:
                node.skew = (there - (sent + came) / 2, bound)
        for reference in missing:
            ray.cancel(reference, force=True)
        if missing:
            break  # it has had its time
    return ports


def _pinned(do: Callable[..., Any], node: _Node, gpus: int = 0) -> Callable[..., Any]:
    """A task that runs on this node or nowhere."""
    where: Any = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return cast(Any, ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=where)(do)).remote


def _gathered(references: list[Any], deadline_s: float) -> tuple[dict[Any, tuple[Any, float]], dict[Any, str]]:
    """Answers with the time when each came, and why others did not."""
    ends, waiting = time.monotonic() + deadline_s, references
    answers, missing = dict[Any, tuple[Any, float]](), dict[Any, str]()
    while waiting and time.monotonic() < ends:
        done, waiting = ray.wait(waiting, timeout=ends - time.monotonic())
        for reference in done:
            came = time.time()
            try:
                answers[reference] = (ray.get(reference), came)
            except RayError as error:
                missing[reference] = f"a task on this node failed: {probe.clean(str(error))}"
    late = f"no answer within {deadline_s:g} s: it is overloaded, starts no process, or has no GPU that is free"
    return answers, missing | dict.fromkeys(waiting, late)


def _told(
    request: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], why: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """By look, what was found or why not; a look that said nothing had its deadline, or died with its process."""
    at = {look: asked.get("root") or asked.get("uri") for look, asked in request["looks"].items()}
    faults = {look: f"{where}: {why}" if where else why for look, where in at.items()}
    found = {answer["look"]: answer["found"] for answer in answers if "found" in answer}
    faults |= {answer["look"]: answer["fault"] for answer in answers if "fault" in answer}
    return found, {look: said for look, said in faults.items() if look not in found}


class _Ground:
    """What the driver leaves in the run directory for the nodes to find, for as long as they look."""

    def __init__(self, recipe: Recipe, run: Store, base: Store) -> None:
        self.recipe, self.run, self.base = recipe, run, base
        self.data = data_store(recipe, base)
        self.folder, self.said = f"doctor-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
        self.names, self.clip, self.fault = list[str](), "", ""

    def __enter__(self) -> _Ground:
        """At the same time: a store that does not answer costs its deadline once. What fails here, looks tell."""
        with ThreadPoolExecutor(2) as pool:
            chosen, left = pool.submit(_within, STORE_S, self._choose), pool.submit(_within, STORE_S, self._leave)
        self.fault, self.left = chosen.result(), not left.result()
        if not self.clip and self.left:
            self.clip = self.run.uri(f"{self.folder}/{TINY}")
        return self

    def __exit__(self, *_: object) -> None:
        if self.left:
            _within(STORE_S, lambda: self.run.delete(self.folder))

    def _choose(self) -> None:
        self.names, clip = sample(self.recipe, self.data, self.base)
        self.clip = self.data.uri(clip) if clip else ""

    def _leave(self) -> None:
        self.run.write(f"{self.folder}/said", self.said.encode())
        self.run.write(f"{self.folder}/{TINY}", tiny_clip())

    def request(self, node: str, session: str) -> dict[str, Any]:
        """What to look at on one node."""
        cache = self.recipe.scale.cache_dir or os.path.basename(default_cache_dir())
        looks: dict[str, Any] = {"machine": {"cache": cache, "session": session}, "kernel": {}}
        looks["run"] = {"root": self.run.root, "folder": self.folder, "node": node, "said": self.said}
        if self.clip:
            looks["clip"] = {"uri": self.clip, "deadline_s": LOOK_S}
        if self.names:
            looks["data"] = {"root": self.data.root, "names": self.names}
        return {"deadline_s": LOOK_S, "looks": looks}


def _within(deadline_s: float, do: Callable[[], None]) -> str:
    """Why something was not done in time; empty if it was. A client that hangs is left to itself."""
    why = [f"not done within {deadline_s:g} s"]

    def work() -> None:
        try:
            do()
            why[0] = ""
        except Exception as error:  # noqa: BLE001  clients of stores raise errors of many libraries
            why[0] = probe.clean(str(error) or type(error).__name__)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(deadline_s)
    return why[0]


def _asker() -> Callable[[str, Mapping[str, Any], float], tuple[list[dict[str, Any]], str]]:
    """The function that runs the probe. Nested, so that it travels as code: a node may have another finepseudo."""

    def ask(text: str, request: Mapping[str, Any], deadline_s: float) -> tuple[list[dict[str, Any]], str]:
        import json
        import os
        import subprocess
        import sys

        # The process finds what workers find, in that order, and nothing before it.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
        try:
            done = subprocess.run(
                [sys.executable, "-c", text], input=json.dumps(request).encode(), capture_output=True, env=env,
                timeout=deadline_s,
            )  # fmt: skip
            said, why = done.stdout, f"no answer within {request['deadline_s']:g} s"
            if done.returncode:
                why = f"its process died: exit status {done.returncode}"
        except subprocess.TimeoutExpired as late:
            said, why = late.stdout or b"", f"no answer within {deadline_s:g} s"
        return [json.loads(line) for line in said.splitlines() if line.endswith(b"}")], why

    return ask


_ask = _asker()


def _clock() -> tuple[float, int]:
    """Time of day, and a port that was free."""
    import socket
    import time

    with socket.socket() as free:
        free.bind(("", 0))
        return time.time(), free.getsockname()[1]
