"""What is still done when SIGTERM comes, and for how long at most: pods are evicted by it, `ray job stop` sends it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN = 75
"""Exit code of what ended for now (EX_TEMPFAIL of sysexits.h): the same command, started again, continues."""
FLUSH_S = 1.5  # to keep the last lines of the log: `ray job stop` kills 3 s after its SIGTERM, if told nothing else
WITHIN_S = 25.0  # for all that is to be done before the end: a pod has 30 s by default

_wishes: list[Callable[[float], None]] = []


@contextmanager
def before_the_end(wish: Callable[[float], None]) -> Iterator[None]:
    """Should SIGTERM come within the block, `wish` is called, with the seconds that it has at most."""
    _wishes.append(wish)
    try:
        yield
    finally:
        _wishes.remove(wish)


def answer_sigterm() -> None:
    """From now on SIGTERM ends this process with the code AGAIN, within WITHIN_S."""
    signal.signal(signal.SIGTERM, _stop)


def _stop(*_: object) -> None:
    """Threads wait for trainings: to unwind them could take hours. Ray ends what belongs to a driver that is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `ray job stop` sends it to every process; once is enough
    ends = time.monotonic() + WITHIN_S
    # By itself: the signal may have come in the middle of a print, or while a line was being kept.
    if _wishes:
        os.write(2, f"SIGTERM: stopping within {WITHIN_S:g} s; the same command continues\n".encode())
    _within(FLUSH_S, logging.shutdown)
    for wish in reversed(_wishes):
        left_s = ends - time.monotonic()
        _within(left_s, wish, left_s)
    os.write(2, b"stopped by SIGTERM; the same command continues from the last commit\n")
    os._exit(AGAIN)


def end_for_now(why: str) -> None:
    """End this process at once with the code AGAIN: what it stands on is gone, and waiting would not help."""
    os.write(2, f"{why}; the same command continues from the last commit\n".encode())
    os._exit(AGAIN)


def _within(limit_s: float, work: Callable[..., None], *args: object) -> None:
    """In a thread of its own: this one may hold whatever the work asks for."""

    def done() -> None:
        try:
            work(*args)
        except Exception as error:  # noqa: BLE001 (the end comes all the same)
            os.write(2, f"SIGTERM: left undone: {error!r}\n".encode())

    thread = threading.Thread(target=done, daemon=True)
    thread.start()
    thread.join(max(0.0, limit_s))
