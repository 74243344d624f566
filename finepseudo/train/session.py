"""What the training loop knows of its launcher: rank, world, and a few collectives over torch.distributed.

The same loop runs under Ray Train and in plain processes; the process group exists before a session is made.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def join_alone(backend: str = "gloo") -> None:
    """A process group of this process alone, where there is none yet; DeepSpeed needs it until the process ends."""
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)


@dataclass(frozen=True)
class Session:
    device: torch.device
    report: Callable[[Mapping[str, Any]], None]
    """Called by rank 0 now and then; what it is told are arguments of `progress.tell`, for the user's log."""
    asked: Callable[[], int] = lambda: 0
    """How often the launcher has asked for a commit before its time, as rank 0 knows; 0 on other ranks."""

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def world(self) -> int:
        return dist.get_world_size()

    def totals(self, *here: float) -> list[float]:
        sums = torch.tensor(here, dtype=torch.float32, device=self.device)
        if self.world > 1:
            dist.all_reduce(sums)
        return sums.tolist()

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(value)
            value /= self.world
        return value

    def gather(self, here: Any) -> list[Any]:
        """One small object from every rank, on every rank."""
        if self.world == 1:
            return [here]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, here)
        return found
