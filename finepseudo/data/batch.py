"""What reaches a model: one block of a plan, as tensors.

Axes: B clips, T frames, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finepseudo.data.manifest import UNKNOWN
from finepseudo.data.plan import Plan
from finepseudo.errors import StreamError


def too_many_rejected(rejected: int, rows: int, max_share: float) -> bool:
    """Whether more rows could not be decoded than the recipe admits; one row is, unless it admits none."""
    return rejected > max(max_share * rows, 1 if max_share else 0)


@dataclass(frozen=True)
class ClipBatch:
    """One block: decoded clips, and beside them what the plan says of its rows.

    Where features of frames are stored, they stand in the place of pixels: feat_BTC, fp16.
    """

    row_B: list[int]  # positions in the plan
    video_ids: list[str]
    clip_BTHWC: Tensor  # uint8; the global clip in pre-training
    other_BTHWC: Tensor | None  # uint8; the local clip in pre-training
    time_BT: Tensor  # frame indices of the clip, float32
    other_time_BT: Tensor | None
    seed_B: list[int]
    video_B: Tensor
    label_B: Tensor  # UNKNOWN: the row has none, as in pre-training
    weight_B: Tensor  # 0: the row could not be decoded and takes no part
    target_BK: Tensor | None  # soft targets, where the plan has them; rows without one carry the label as one-hot
    errors: dict[int, str]  # reasons of the rows that could not be decoded, by position
    decode_s: float  # seconds that decoding these rows took, in the process that did it
    cache_hits: int

    def to(self, device: torch.device) -> ClipBatch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    def decoded(self) -> ClipBatch:
        """The batch without the rows that could not be decoded: their black clips must not reach a BatchNorm.

        Where none could be decoded it is the batch itself, since a block is never empty; all its weights are 0.
        """
        kept = [index for index, row in enumerate(self.row_B) if row not in self.errors]
        if not kept or len(kept) == len(self.row_B):
            return self
        lists = {name: [getattr(self, name)[index] for index in kept] for name in ("row_B", "video_ids", "seed_B")}
        tensors = {name: value[kept] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, **lists)


def make_batch(plan: Plan, num_classes: int, columns: Mapping[str, Any]) -> ClipBatch:
    """Join decoded columns (row, clip_0, clip_1, error, decode_s, cache_hit) with their rows of the plan.

    Raises StreamError where the columns are not consecutive rows of the plan.
    """
    positions = [int(row) for row in columns["row"]]
    start, stop = positions[0], positions[0] + len(positions)
    if positions != list(range(start, stop)) or not 0 <= start < stop <= len(plan):
        raise StreamError(f"rows out of order: expected consecutive ones of {len(plan)}, got {positions}")
    rows = plan.rows(start, stop)
    errors = {row: str(text) for row, text in zip(positions, columns["error"], strict=True) if text}
    weight = [0.0 if row["row"] in errors else row["weight"] for row in rows]
    label = [UNKNOWN if row["label"] is None else row["label"] for row in rows]
    two = "clip_1" in columns
    return ClipBatch(
        row_B=positions,
        video_ids=[row["video_id"] for row in rows],
        clip_BTHWC=torch.from_numpy(np.array(columns["clip_0"])),
        other_BTHWC=torch.from_numpy(np.array(columns["clip_1"])) if two else None,
        time_BT=torch.tensor(np.stack([row["frames_0"] for row in rows]), dtype=torch.float32),
        other_time_BT=torch.tensor(np.stack([row["frames_1"] for row in rows]), dtype=torch.float32) if two else None,
        seed_B=[row["aug_seed"] for row in rows],
        video_B=torch.tensor([row["video"] for row in rows]),
        label_B=torch.tensor(label),
        weight_B=torch.tensor(weight, dtype=torch.float32),
        target_BK=_targets(plan, rows, num_classes),
        errors=errors,
        decode_s=float(np.sum(columns["decode_s"])),
        cache_hits=int(np.sum(columns["cache_hit"])),
    )


def _targets(plan: Plan, rows: list[dict[str, Any]], num_classes: int) -> Tensor | None:
    """The kept classes of each pseudo-label, the rest of the mass even over the others; one-hot labels beside them."""
    if not plan.soft:
        return None
    target_BK = torch.zeros(len(rows), num_classes)
    for index, row in enumerate(rows):
        top, top_p = ([row["label"]], [1.0]) if row["top"] is None else (row["top"], row["top_p"])
        others = num_classes - len(top)
        target_BK[index] = max(0.0, 1 - sum(top_p)) / others if others else 0.0
        target_BK[index, top] = torch.tensor(top_p)
    return target_BK
