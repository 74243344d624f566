"""The executor that asks Ray: tasks for groups of videos, Ray Train for trainings, the actor pool for passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError

from finepseudo.errors import ClusterError
from finepseudo.progress import Progress
from finepseudo.recipe import Recipe
from finepseudo.runtime import faults, scorers
from finepseudo.runtime.board import listening
from finepseudo.runtime.cluster import cluster
from finepseudo.runtime.trainer import fit
from finepseudo.storage.store import Store
from finepseudo.train.predict import Pass
from finepseudo.train.stage import Stage

GROUP_DEADLINE_S = 600.0
SLOWEST = 60  # files at their deadline that a group may hold, and more than it does

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def on_ray(recipe: Recipe) -> Iterator[RayExecutor]:
    """A cluster, joined or started here, that has what the recipe needs.

    Raises ClusterError: it has not, or cannot be reached.
    """
    with cluster(recipe), listening() as board:
        yield RayExecutor(recipe, board)


def _call(task: Callable[[T], R], group: T) -> R:
    return task(group)


@dataclass(frozen=True)
class RayExecutor:
    """The driver's Executor, on Ray."""

    recipe: Recipe
    board: Any

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
        fit(stage, self.recipe, run, data, self.board, stop=stop)

    def score(
        self, what: Pass, plan: str, blocks: Sequence[int], num_classes: int, run: Store, data: Store, out: str
    ) -> Iterator[int]:
        """One pass of the pool."""
        return scorers.score(what, plan, blocks, num_classes, self.recipe, run, data, out)
