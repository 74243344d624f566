"""Which blocks of a plan a block of its stream holds, and which worker takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Which blocks of a plan a stream block holds."""

    start: int  # first step
    stop: int  # step to stop before
    workers: int  # W, the training workers that share a step's blocks
    blocks_per_step: int
    steps_per_block: int

    @staticmethod
    def of(start: int, stop: int, workers: int, blocks_per_step: int, most_steps: int) -> Layout:
        """As many steps in a stream block as divide the stream, so that all stream blocks are equal."""
        count = max(1, stop - start)
        fitting = max(steps for steps in range(1, most_steps + 1) if count % steps == 0)
        return Layout(start, stop, workers, blocks_per_step, fitting)

    def __len__(self) -> int:
        return self.workers * max(1, (self.stop - self.start) // self.steps_per_block)

    def blocks(self, number: int) -> Iterator[int]:
        """Blocks of the plan in stream block `number`, in the order in which its worker takes them."""
        part, rank = divmod(number, self.workers)
        first = self.start + part * self.steps_per_block
        for step in range(first, min(first + self.steps_per_block, self.stop)):
            for block in range(rank, self.blocks_per_step, self.workers):
                yield step * self.blocks_per_step + block
