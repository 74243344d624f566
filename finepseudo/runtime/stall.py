"""Work that stands still for too long ends the job in words, whatever it waits for: that may never come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ray.exceptions import RayError

from finepseudo.stop import end_for_now

LOOK_S = 2.0
TURN_S = 30.0  # counted of one turn at most: the rest of a longer one this process was stopped


@contextmanager
def kept_moving(what: str, progress: Callable[[], object], limit_s: float) -> Iterator[None]:
    """Within the block `progress` must give another answer at least every `limit_s` seconds, or the job ends for now.

    Nobody can take the waiting thread out of what it waits for, so the process ends. Seconds count while this process
    runs: one that was stopped, with all others of its machine, has missed nothing.
    """
    over = threading.Event()

    def watch() -> None:
        seen, still_s, before_s = object(), 0.0, time.monotonic()
        while not over.wait(LOOK_S):
            now_s = time.monotonic()
            still_s, before_s = still_s + min(now_s - before_s, TURN_S), now_s
            with suppress(RayError, TimeoutError):  # who would know does not answer: it may be starting again
                if (now := progress()) != seen:
                    seen, still_s = now, 0.0
            if still_s > limit_s and not over.is_set():
                end_for_now(f"ClusterError: {what} has stood still for {limit_s:g} s (scale.stall-deadline-s)")

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
