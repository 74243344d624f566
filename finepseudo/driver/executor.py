"""Who does the work: what the driver asks for, and the executor that does it all in this process.

`runtime/` has the one that asks Ray. Both give the same results; this one is for debugging, notebooks and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from finepseudo.data.plan import Plan
from finepseudo.data.stream import BlockReader
from finepseudo.models.encoders import GENERATOR
from finepseudo.progress import Progress, tell
from finepseudo.recipe import Recipe
from finepseudo.storage.store import Store
from finepseudo.train.loop import run_stage
from finepseudo.train.predict import Pass, Predictor
from finepseudo.train.session import Session, join_alone
from finepseudo.train.stage import Stage

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Does the work of one recipe. Files are in `run` (plans, trainings) and `data` (videos)."""

    def spread(self, task: Callable[[T], R], groups: Sequence[T], name: str) -> list[R]:
        """Results of a task over groups of something, in their order."""
        ...

    def train(self, stage: Stage, run: Store, data: Store, *, stop: int) -> None:
        """Train from the last committed step to step `stop`.

        Raises TrainingError: it cannot go on; its committed steps stay.
        """
        ...

    def score(
        self, what: Pass, plan: str, blocks: Sequence[int], num_classes: int, run: Store, data: Store, out: str
    ) -> Iterator[int]:
        """Commit results of blocks of a committed plan to the folder `out`; numbers of videos, as they are done."""
        ...


class InProcess:
    """An Executor: everything one after the other in this process, on the CPU, without Ray."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def spread(self, task: Callable[[T], R], groups: Sequence[T], name: str) -> list[R]:
        progress, results = Progress(name, len(groups)), list[R]()
        for group in groups:
            results.append(task(group))
            progress.add(1)
        return results

    def train(self, stage: Stage, run: Store, data: Store, *, stop: int) -> None:
        with GENERATOR, _threads(self.recipe.scale.train_cpus):
            join_alone()
            plan = Plan.load(run, stage.plan)
            reader = BlockReader.of(self.recipe, data, plan)
            k = stage.optimiser.blocks_per_step
            session = Session(torch.device("cpu"), report=lambda message: tell(**message))
            run_stage(
                stage, self.recipe.scale, run, session, lambda start, stop: reader.each(start * k, stop * k), stop=stop
            )

    def score(
        self, what: Pass, plan: str, blocks: Sequence[int], num_classes: int, run: Store, data: Store, out: str
    ) -> Iterator[int]:
        reader, predictor = self.reader(data, Plan.load(run, plan)), self.predictor(what, num_classes)
        for block in blocks:
            columns = reader.read([block])
            with GENERATOR, _threads(self.recipe.scale.score_cpus):
                count = predictor.write(columns, run, out, block)
            yield count

    def reader(self, data: Store, plan: Plan) -> BlockReader:
        """What decodes the blocks of a pass."""
        return BlockReader.of(self.recipe, data, plan)

    def predictor(self, what: Pass, num_classes: int) -> Predictor:
        """What scores them."""
        return Predictor(self.recipe, num_classes, what, torch.device("cpu"))


@contextmanager
def _threads(cpus: float) -> Generator[None]:
    """As many threads as a worker would have: another number sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
