"""What workers tell the driver while a stage runs: one small actor, and a thread that logs what it hears."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from finepseudo.progress import tell

POLL_S = 2.0


class _Board:
    """Messages since the driver last asked."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def tell(self, message: Mapping[str, Any]) -> None:
        self.messages.append(dict(message))

    def take(self) -> list[dict[str, Any]]:
        taken, self.messages = self.messages, []
        return taken


@contextmanager
def listening() -> Iterator[Any]:
    """An actor handle for workers to tell their progress to; what arrives is logged within the block."""
    remote_board: Any = ray.remote(num_cpus=0)(_Board)
    board, done = remote_board.remote(), threading.Event()

    def listen() -> None:
        while not done.wait(POLL_S):
            for message in ray.get(board.take.remote(), timeout=60):
                tell(**message)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        done.set()
        thread.join(timeout=10)
        ray.kill(board)
