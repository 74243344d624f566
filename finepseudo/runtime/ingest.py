"""Ray Data: from positions in a plan to decoded uint8 clips, in the order of the plan.

What streams is block numbers, not rows: the decoding actor takes the rows from the committed plan. A stream block
holds some consecutive steps' worth of one worker's micro-batches, and stream block q goes to worker q mod W, since
all blocks have the same size. So every global step consumes exactly its rows of the plan, whatever the decode times.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, ExecutionOptions
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import DataConfig

from finepseudo.data.layout import Layout
from finepseudo.data.plan import Plan
from finepseudo.data.stream import BlockReader
from finepseudo.recipe import Recipe
from finepseudo.storage.store import Store

Blocks = Callable[[int], Iterator[int]]  # number of a stream block -> numbers of the plan's blocks in it


class DecodeBlocks:
    """Actor of a stream: stream block numbers in, decoded columns out."""

    def __init__(self, run: Store, data: Store, plan: str, recipe: Recipe, blocks_of: Blocks) -> None:
        self.reader = BlockReader.of(recipe, data, Plan.load(run, plan))
        self.blocks_of = blocks_of

    def __call__(self, numbers: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return self.reader.read(block for number in numbers["id"] for block in self.blocks_of(int(number)))


class Deal(DataConfig):
    """Makes the stream of a training anew whenever its workers (re)start, for as many of them as there are.

    `layout` reads the committed position for a number of workers, so a restart streams the plan from there on. What
    Train calls for a data set before this knows no number of workers, so it gets a stand-in.
    """

    def __init__(self, run: Store, data: Store, plan: str, recipe: Recipe, layout: Callable[[int], Layout]) -> None:
        super().__init__(execution_options=ExecutionOptions(preserve_order=True))
        self.of, self.layout = (run, data, plan, recipe), layout

    @staticmethod
    def stand_in() -> Dataset:
        """What Train is told to be the data set."""
        return ray.data.range(1)

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, DataIterator]]:
        """An iterator of the stream for each worker; called in an actor of Train once for each group of workers."""
        # Here is not the driver's context, whatever Train makes of it: a block must stay one block.
        context = DataContext.get_current()
        context.target_max_block_size = None
        prepare_context(context)
        here = self.layout(world_size)
        stream = _decode_blocks(*self.of, len(here), here.blocks)
        return super().configure(dict.fromkeys(datasets, stream), world_size, *args, **kwargs)


def scoring_stream(run: Store, data: Store, plan: str, blocks: Sequence[int], recipe: Recipe) -> Dataset:
    """Some blocks of a plan, each once and each whole."""
    prepare_context(DataContext.get_current())
    return _decode_blocks(run, data, plan, recipe, len(blocks), lambda number: iter((blocks[number],)))


def _decode_blocks(run: Store, data: Store, plan: str, recipe: Recipe, count: int, blocks_of: Blocks) -> Dataset:
    scale = recipe.scale
    resources = {scale.decode_resource: 1.0} if scale.decode_resource else None
    return ray.data.range(count, override_num_blocks=count).map_batches(
        DecodeBlocks,
        fn_constructor_args=(run, data, plan, recipe, blocks_of),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(scale.decode_workers, count)),
        num_cpus=1,
        resources=resources,
        zero_copy_batch=True,
    )


class Pause(ExecutionCallback):
    """Rests the control loop of a stream for a moment at each turn.

    The loop turns without rest while finished blocks wait for a slower consumer, which on a small machine takes as
    much processor time as the training itself. A block holds seconds of work, so the pause delays nothing.
    """

    SECONDS = 0.05

    def on_execution_step(self, executor: object) -> None:
        """Called at every turn of the loop."""
        time.sleep(self.SECONDS)


def prepare_context(context: DataContext) -> None:
    """Settings of every stream: no progress bars (the driver logs progress itself), and a calm control loop."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if Pause not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Pause)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
