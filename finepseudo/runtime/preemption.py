"""Nodes that will be taken away, as the cloud or Kubernetes says some time before: trainings commit while they can."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from ray._private.state import state
from ray.exceptions import RayError

log = logging.getLogger("finepseudo")

POLL_S = 2.0
LAST_S = 20.0  # what a last commit may take before the node is gone


class Notices:
    """Which notices call for a commit: each when it is heard of, and again when its node has `LAST_S` left."""

    def __init__(self) -> None:
        self._heard, self._last = set[str](), set[str]()

    def due(self, draining: Mapping[str, int], now_s: float) -> dict[str, float]:
        """Nodes to commit for, with the seconds that they have left.

        Args:
            draining: By node, when it goes, in milliseconds since 1970; 0 where Ray itself gives back an idle one.
        """
        found = dict[str, float]()
        for node, deadline_ms in draining.items():
            left_s = deadline_ms / 1000 - now_s
            if deadline_ms and (node not in self._heard or (left_s <= LAST_S and node not in self._last)):
                found[node] = left_s
                self._heard.add(node)
                if left_s <= LAST_S:
                    self._last.add(node)
        return found


@contextmanager
def heeded(commit: Callable[[float], None]) -> Iterator[None]:
    """Within the block, every notice has the trainings under way commit; `commit` is given the seconds that it has."""
    done, notices = threading.Event(), Notices()

    def watch() -> None:
        while not done.wait(POLL_S):
            with suppress(RayError, RuntimeError):  # of a cluster that is lost, which is told where work waits for it
                # Ray Train asks here too; the public question is one that all workers of a training must ask together.
                for node, left_s in notices.due(state.get_draining_nodes(), time.time()).items():
                    log.warning("node %s will be gone in %.0f s: trainings commit", node[:8], max(0.0, left_s))
                    commit(max(1.0, min(left_s, LAST_S)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=POLL_S)
