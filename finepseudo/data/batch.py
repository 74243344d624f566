"""What reaches a model: one block of a plan, as tensors.

Axes: B clips, T frames, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finepseudo.data.plan import Plan


@dataclass(frozen=True)
class ClipBatch:
    """One block: decoded clips, and beside them what the plan says of its rows."""

    row_B: list[int]
    """Positions in the plan."""
    video_ids: list[str]
    clip_BTHWC: Tensor
    """uint8; the global clip in pre-training."""
    other_BTHWC: Tensor | None
    """uint8; the local clip in pre-training."""
    time_BT: Tensor
    """Frame indices of the clip, float32."""
    other_time_BT: Tensor | None
    seed_B: list[int]
    video_B: Tensor
    label_B: Tensor
    weight_B: Tensor
    """0: the row could not be decoded and takes no part."""
    target_BK: Tensor | None
    """Soft targets, where the plan has them; rows without one carry the label as one-hot."""
    errors: dict[int, str]
    """Reasons of the rows that could not be decoded, by position."""
    decode_s: float
    """Seconds that decoding these rows took, in the process that did it."""
    cache_hits: int

    def to(self, device: torch.device) -> ClipBatch:
        """The same batch with its tensors on a device."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return ClipBatch(**{**vars(self), **moved})


def make_batch(plan: Plan, num_classes: int, columns: Mapping[str, Any]) -> ClipBatch:
    """Join decoded columns (row, clip_0, clip_1, error, decode_s, cache_hit) with their rows of the plan."""
    positions = [int(row) for row in columns["row"]]
    rows = plan.rows(positions[0], positions[-1] + 1)
    if [row["row"] for row in rows] != positions:
        raise AssertionError(f"rows out of order: got {positions}")
    errors = {row: str(text) for row, text in zip(positions, columns["error"], strict=True) if text}
    weight = [0.0 if row["row"] in errors else row["weight"] for row in rows]
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
        label_B=torch.tensor([row["label"] for row in rows]),
        weight_B=torch.tensor(weight, dtype=torch.float32),
        target_BK=_targets(plan, rows, num_classes),
        errors=errors,
        decode_s=float(np.sum(columns["decode_s"])),
        cache_hits=int(np.sum(columns["cache_hit"])),
    )


def _targets(plan: Plan, rows: list[dict[str, Any]], num_classes: int) -> Tensor | None:
    if plan.targets_MK is None:
        return None
    target_BK = torch.zeros(len(rows), num_classes)
    for index, row in enumerate(rows):
        if row["target"] >= 0:
            target_BK[index] = torch.from_numpy(plan.targets_MK[row["target"]])
        else:
            target_BK[index, row["label"]] = 1
    return target_BK
