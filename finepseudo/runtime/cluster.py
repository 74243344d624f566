"""Join a Ray cluster, or start one here; and check that it has what the recipe needs before anything waits for it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from finepseudo.costs.resources import needed
from finepseudo.errors import ClusterError
from finepseudo.recipe import Recipe

log = logging.getLogger("finepseudo")


@contextmanager
def cluster(recipe: Recipe) -> Iterator[None]:
    """Connected to Ray within the block. RAY_ADDRESS (set inside a submitted job) names a cluster to join.

    A cluster started here answers only holders of a token made afresh for it (see the package's __init__).

    Raises ClusterError: the cluster lacks what the recipe needs, or cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        log.info("joining the Ray cluster at %s", address)
        try:
            ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            raise ClusterError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
    else:
        _start_local(recipe)
    try:
        preflight(recipe)
        yield
    finally:
        ray.shutdown()


def _start_local(recipe: Recipe) -> None:
    # Ray Data's actors make Ray's core print a known, harmless line at level error for every stream.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Nobody gives notice before taking this machine away: every training would start one more process to wait for it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    need = needed(recipe)
    # Logical processors: the processes of a laptop run share the real ones.
    cpus = max(os.cpu_count() or 1, int(need["CPU"]))
    log.info("starting Ray on this machine")
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=recipe.scale.object_store_mib << 20,
        logging_level=logging.WARNING,
        log_to_driver=False,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
    )


def preflight(recipe: Recipe) -> None:
    """Wait until the cluster has what the run needs, at most `scale.resources_deadline_s`.

    Raises ClusterError: one line for each resource that is missing: needed, there, and which options lower the need.
    """
    need, ends = needed(recipe), time.monotonic() + recipe.scale.resources_deadline_s
    while True:
        there = ray.cluster_resources()
        lacking = {name: amount for name, amount in need.items() if there.get(name, 0.0) < amount}
        if not lacking:
            return
        if time.monotonic() >= ends:
            lines = [f"{name}: {amount:g} needed, {there.get(name, 0.0):g} there" for name, amount in lacking.items()]
            raise ClusterError(
                f"the cluster lacks resources after {recipe.scale.resources_deadline_s:g} s: {'; '.join(lines)}. "
                "Lower scale.train-workers, scale.decode-workers or scale.score-workers, or add nodes"
            )
        log.info("waiting for %s", ", ".join(f"{name} ({amount:g})" for name, amount in lacking.items()))
        time.sleep(min(2.0, recipe.scale.resources_deadline_s))
