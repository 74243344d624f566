"""Join a Ray cluster, or start one here; and check that it has what the recipe needs before anything waits for it."""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from finepseudo.costs.resources import Need, Workers, at_least, needed, workers
from finepseudo.errors import ClusterError, NotReadyError
from finepseudo.recipe import Recipe
from finepseudo.stop import end_for_now

log = logging.getLogger("finepseudo")

WAIT_S = 10.0  # between two words about what a run waits for
NODES_SHOWN = 8
REACH_S = 10.0  # for the head of a cluster to take a connection
RAYS = ("raylet", "gcs_server")  # programs without which a cluster of this machine is none
SOCKET_BYTES = 107  # longest path of a Unix socket


@contextmanager
def cluster(recipe: Recipe) -> Iterator[None]:
    """Connected to Ray within the block, to a cluster that has room for the run. Raises as `connected`, `preflight`."""
    with connected(recipe):
        preflight(recipe)
        yield


@contextmanager
def connected(recipe: Recipe) -> Iterator[None]:
    """Connected to Ray within the block. RAY_ADDRESS (set inside a submitted job) names a cluster to join.

    A cluster started here answers only holders of a token made afresh for it (see the package's __init__).

    Raises:
        ClusterError: the cluster cannot be reached.
        NotReadyError: no cluster can be reached, or started, in this way.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        raise NotReadyError(
            f"RAY_ADDRESS={address} is where `ray job` finds a cluster; a job that is started here needs none (unset "
            "it: Ray is started on this machine), or host:port of a cluster that runs"
        )
    with _own_sigterm():
        if address:
            _check_listening(address)
            log.info("joining the Ray cluster at %s", address)
            try:
                ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
            except (ConnectionError, RuntimeError, TimeoutError) as error:
                raise ClusterError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
            log.info("joined the Ray cluster whose head is %s", ray.get_runtime_context().gcs_address)
        else:
            _start_local(recipe)
    over = threading.Event()
    if not address:
        _follow(over)
    try:
        yield
    finally:
        over.set()
        ray.shutdown()


def _follow(over: threading.Event) -> None:
    """End the job in words when a process that Ray stands on is gone. (Ray may be first where it is the raylet.)"""
    pids = {pid: name for pid, name in _children() if name in RAYS}
    poll, opened = select.poll(), dict[int, str]()
    for pid, name in pids.items() if hasattr(os, "pidfd_open") else ():
        opened[handle := os.pidfd_open(pid)] = name
        poll.register(handle, select.POLLIN)

    def wait() -> None:
        ((handle, _), *_) = poll.poll()
        if not over.is_set():
            end_for_now(f"ClusterError: Ray's {opened[handle]} on this machine is gone: killed, or out of memory")

    if opened:
        threading.Thread(target=wait, daemon=True).start()


def _children() -> Iterator[tuple[int, str]]:
    """Processes that this one has started, and the names of their programs."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            head, _, rest = path.read_text().rpartition(")")
            if int(rest.split()[1]) == os.getpid():
                yield int(path.parent.name), head.partition("(")[2]


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray answers SIGTERM by an exit of its own; what the job does about it stays."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_listening(address: str) -> None:
    """Ray itself tries for a minute or more. Raises ClusterError: nothing listens at host:port."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
        except OSError as error:
            raise ClusterError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error


def _check_folder() -> None:
    """Ray's processes talk by sockets below its temporary folder, whose paths the kernel limits.

    Raises NotReadyError: they would be too long, or could not be made, of which Ray would say no more than that.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  where Ray's is
    session = f"session_{time.strftime('%Y-%m-%d_%H-%M-%S')}_000000_{os.getpid()}"
    longest = len(os.fsencode(os.path.join(folder, "ray", session, "sockets", "plasma_store")))
    if longest > SOCKET_BYTES:
        raise NotReadyError(
            f"the temporary folder {folder} is too long by {longest - SOCKET_BYTES} characters: paths of Ray's sockets "
            f"below it would have {longest} bytes, at most {SOCKET_BYTES} are allowed; set RAY_TMPDIR to a shorter one"
        )
    sessions = os.path.join(folder, "ray")
    if os.path.exists(sessions) and not os.access(sessions, os.W_OK | os.X_OK):
        raise NotReadyError(
            f"{sessions}, where Ray keeps its sessions, belongs to user number {os.stat(sessions).st_uid}, and you "
            "cannot write there; set RAY_TMPDIR to a folder of your own"
        )


def _start_local(recipe: Recipe) -> None:
    # Ray Data's actors make Ray's core print a known, harmless line at level error for every stream.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Nobody gives notice before taking this machine away: every training would start one more process to wait for it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    _check_folder()
    need = needed(recipe)
    # Logical processors: the processes of a laptop run share the real ones.
    cpus = max(os.cpu_count() or 1, int(need["CPU"]))
    log.info("starting Ray on this machine")
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=recipe.scale.object_store_mib << 20,
            logging_level=logging.WARNING,
            log_to_driver=False,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
        )
    except Exception as error:  # Ray raises it bare where its processes are not up in time
        raise ClusterError(f"Ray did not start on this machine: {error}; start the same command again") from error


def preflight(recipe: Recipe) -> None:
    """Wait until every worker of the run has a place on one of the nodes, at most `scale.resources_deadline_s`.

    Of a training that may do with fewer workers, as few of them. A placement group asks for all at once: of what is
    free, node by node, and of an autoscaler where there is one. It is given back before the run starts, which finds the
    places free.

    Raises ClusterError: what has no place, what is there, and which options lower the need.
    """
    recipe = at_least(recipe)
    asked = [some for some in workers(recipe) if some.need]
    group = placement_group([some.need for some in asked for _ in range(some.count)])
    ends, waited = time.monotonic() + recipe.scale.resources_deadline_s, False
    try:
        # Ray waits for whole seconds: for a part of one, not at all.
        while not group.wait(max(1, math.ceil(min(WAIT_S, ends - time.monotonic())))):
            missing = "; ".join(_missing(asked, needed(recipe)))
            if time.monotonic() >= ends:
                raise ClusterError(
                    f"the cluster has no room for the run after {recipe.scale.resources_deadline_s:g} s: {missing}. "
                    "Lower what scale.train-*, scale.decode-* and scale.score-* ask for, add nodes, or wait longer for "
                    "them with scale.resources-deadline-s"
                )
            log.info("waiting for room on the cluster: %s", missing)
            waited = True
    finally:
        remove_placement_group(group)
    if waited:
        log.info("the cluster has room for the run")


def _missing(asked: Sequence[Workers], need: Need) -> list[str]:
    """Workers that fit no node, or resources of which too little is free."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    small = [
        f"no node has {_text(some.need)} for a {some.kind} worker, of which there are {some.count}"
        for some in asked
        if not any(all(node.get(name, 0.0) >= amount for name, amount in some.need.items()) for node in nodes)
    ]
    if small:
        return [*small, f"nodes have {' | '.join(_text(_own(node)) for node in nodes[:NODES_SHOWN])}"]
    there, free = ray.cluster_resources(), ray.available_resources()
    lacking = [name for name, amount in need.items() if free.get(name, 0.0) < amount]
    return [
        f"{name}: {need[name]:g} needed, {free.get(name, 0.0):g} free of {there.get(name, 0.0):g}" for name in lacking
    ] or [f"{_text(need)} are free, but not where a whole worker fits: {', '.join(_each(some) for some in asked)}"]


def _each(some: Workers) -> str:
    return f"{some.count} {some.kind} of {_text(some.need)}"


def _own(node: Need) -> Need:
    """What people name: no memory, no marks of the node."""
    return {name: amount for name, amount in node.items() if "memory" not in name and ":" not in name}


def _text(need: Need) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in need.items()) or "nothing"
