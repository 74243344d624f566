"""What workers and the driver tell each other while a stage runs: one small actor, and a thread that logs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from finepseudo.progress import tell

POLL_S = 2.0
ASK_EVERY_S = 0.5  # between two looks of a training for what the driver wants
RECENT_S = 60.0  # a training that has not looked for longer is over, or in a step that takes longer than anybody waits


class _Board:
    """Messages since the driver last took them; and how often it asked all trainings for a commit."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.asked, self.at_work = 0, dict[str, float]()

    def tell(self, message: Mapping[str, Any]) -> None:
        self.messages.append(dict(message))

    def take(self) -> list[dict[str, Any]]:
        taken, self.messages = self.messages, []
        return taken

    def ask(self) -> list[str]:
        """Ask every training for a commit; names of those that will hear of it within a step."""
        self.asked += 1
        return [name for name, when in self.at_work.items() if time.monotonic() - when < RECENT_S]

    def times_asked(self, training: str) -> int:
        """As a training's first rank looks now and then."""
        self.at_work[training] = time.monotonic()
        return self.asked

    def last_look(self, training: str) -> float:
        """When a training's first rank last looked, as it does while it takes steps; 0 before."""
        return self.at_work.get(training, 0.0)


class Asked:
    """In the first rank of a training: how often the driver has asked for a commit, as far as is known.

    Never waits, and a board that is lost is no fault of the training.
    """

    def __init__(self, board: Any, training: str) -> None:
        self._ask = lambda: board.times_asked.remote(training)
        self._answer, self._next = self._ask(), 0.0
        self._times: Any = 0

    def __call__(self) -> int:
        if time.monotonic() > self._next and ray.wait([self._answer], timeout=0)[0]:
            with suppress(RayError):
                self._times = ray.get(self._answer)
            self._answer, self._next = self._ask(), time.monotonic() + ASK_EVERY_S
        return self._times


@contextmanager
def listening() -> Iterator[Any]:
    """An actor handle for workers to tell their progress to; what arrives is logged within the block.

    It lives on the driver's node: the loss of another one is none of its business.
    """
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote_board: Any = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Board)
    board, done = remote_board.remote(), threading.Event()

    def listen() -> None:
        while not done.wait(POLL_S):
            with suppress(RayError):  # it is started again, without what it was told last
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
