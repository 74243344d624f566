"""The executor that asks Ray: tasks for groups of videos, Ray Train for trainings, the actor pool for passes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError

from finepseudo.errors import ClusterError
from finepseudo.progress import Progress
from finepseudo.recipe import Recipe
from finepseudo.runtime import faults, scorers
from finepseudo.runtime.board import listening
from finepseudo.runtime.cluster import cluster
from finepseudo.runtime.preemption import heeded
from finepseudo.runtime.stall import kept_moving
from finepseudo.runtime.trainer import fit
from finepseudo.stop import before_the_end
from finepseudo.storage.store import Store
from finepseudo.train import checkpoint
from finepseudo.train.predict import Pass
from finepseudo.train.stage import Stage

log = logging.getLogger("finepseudo")

GROUP_DEADLINE_S = 600.0
ANSWER_S = 10.0  # of the board
SLOWEST = 60  # files at their deadline that a group may hold, and more than it does

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def on_ray(recipe: Recipe) -> Iterator[RayExecutor]:
    """A cluster, joined or started here, that has what the recipe needs.

    Raises ClusterError: it has not, or cannot be reached.
    """
    with cluster(recipe), listening() as board:
        executor = RayExecutor(recipe, board)
        with before_the_end(executor.commit), heeded(executor.commit):
            yield executor


def _call(task: Callable[[T], R], group: T) -> R:
    return task(group)


@dataclass(frozen=True)
class RayExecutor:
    """The driver's Executor, on Ray."""

    recipe: Recipe
    board: Any
    trainings: dict[str, tuple[Store, Stage]] = field(default_factory=dict[str, tuple[Store, Stage]])  # under way

    def spread(self, task: Callable[[T], R], groups: Sequence[T], name: str) -> list[R]:
        """A bounded number of the groups is under way at a time.

        Raises ClusterError: no group ended for longer than all its files may take, or one was lost with its node.
        """
        deadline_s = max(GROUP_DEADLINE_S, SLOWEST * self.recipe.scale.probe_deadline_s)
        limit = max(os.cpu_count() or 1, int(ray.cluster_resources().get("CPU", 1)) // 4)
        remote, shared = cast(Any, ray.remote(num_cpus=1)(_call)), ray.put(task)
        progress, results = Progress(name, len(groups)), dict[int, R]()
        waiting, under_way = list(enumerate(groups)), dict[Any, int]()
        while waiting or under_way:
            while waiting and len(under_way) < limit:
                number, group = waiting.pop(0)
                under_way[remote.remote(shared, group)] = number
            done, _ = ray.wait(list(under_way), timeout=deadline_s)
            if not done:
                raise ClusterError(f"{name}: no group ended within {deadline_s:g} s; is the storage reachable?")
            for reference in done:
                try:
                    results[under_way.pop(reference)] = ray.get(reference)
                except RayTaskError as error:
                    raise faults.own(error) or error from None
                except RayError as error:
                    raise ClusterError(f"{name}: a group was lost: {error}; the same command continues") from error
            progress.add(len(done))
        return [results[number] for number in range(len(groups))]

    def train(self, stage: Stage, run: Store, data: Store, *, stop: int) -> None:
        """Raises TrainingError or ClusterError when the workers failed more often than `scale.max_failures`."""
        self.trainings[run.uri(stage.folder)] = run, stage
        limit_s = self.recipe.scale.stalled_after_s
        try:
            with kept_moving(f"{stage.name} (training)", lambda: self._last_look(stage.name), limit_s):
                fit(stage, self.recipe, run, data, self.board, stop=stop)
        finally:
            del self.trainings[run.uri(stage.folder)]

    def _last_look(self, training: str) -> float:
        """When a training last took a step, by the board's clock."""
        return ray.get(self.board.last_look.remote(training), timeout=ANSWER_S)

    def commit(self, within_s: float) -> None:
        """Have the trainings under way commit the step that each is at."""
        ends = time.monotonic() + within_s
        at_work = ray.get(self.board.ask.remote(), timeout=within_s)
        before = {
            key: checkpoint.committed_step(run, stage.folder)
            for key, (run, stage) in self.trainings.copy().items()
            if stage.name in at_work
        }
        while before and time.monotonic() < ends:
            time.sleep(0.1)
            for key, (run, stage) in self.trainings.copy().items():
                if key in before and (step := checkpoint.committed_step(run, stage.folder)) != before[key]:
                    log.info("%s: committed at step %d", stage.name, step)
                    del before[key]
            before = {key: step for key, step in before.items() if key in self.trainings}

    def score(
        self, what: Pass, plan: str, blocks: Sequence[int], num_classes: int, run: Store, data: Store, out: str
    ) -> Iterator[int]:
        """One pass of the pool."""
        parts, limit_s = 0, self.recipe.scale.stalled_after_s
        with kept_moving(f"{out} (pass)", lambda: parts, limit_s):
            for videos in scorers.score(what, plan, blocks, num_classes, self.recipe, run, data, out):
                parts += 1
                yield videos
