"""Stored features: what a frozen backbone made of frames, in the place of pixels. A clip of theirs is rows of a table.

One table a part of the pass that made them, fp16, a file that processes map: the clips of a part one after the other,
the same number of frames each. Axes: N clips of a part, F stored frames of a clip, C features, X = N F rows of a table,
T frames of a clip.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.data.manifest import CLIPS, Manifest
from finepseudo.storage import tables
from finepseudo.storage.store import Store
from finepseudo.storage.tables import pc

ACCESS = "features"  # of a clip in the manifest
BYTES = 2  # of a number in fp16
OPEN = 4096  # tables that a process keeps mapped


def table_name(number: int) -> str:
    """Of the file with the features of a part."""
    return f"{number:07d}.npy"


def write(run: Store, folder: str, number: int, feat_NFC: np.ndarray) -> bytes:
    """Put the table of a part; its digest, of 32 bytes."""
    sink = io.BytesIO()
    np.save(sink, feat_NFC.reshape(-1, feat_NFC.shape[-1]), allow_pickle=False)
    run.write(f"{folder}/{table_name(number)}", sink.getvalue())
    return hashlib.sha256(sink.getvalue()).digest()


def taken(data: Store, row: Mapping[str, Any], wanted: Sequence[np.ndarray]) -> list[np.ndarray]:
    """feat_TC for each list of stored frames of the clip of a row. Raises ArtefactError: the table is gone, damaged."""
    data.inside(row["path"])
    table_XC = _mapped(data, row["path"], row["sha256"])
    return [np.asarray(table_XC[row["start"] + index_T]) for index_T in wanted]


@functools.lru_cache(maxsize=OPEN)
def _mapped(data: Store, path: str, sha256: str) -> np.ndarray:
    return np.load(tables.on_node(data, path, sha256), mmap_mode="r", allow_pickle=False)


def stored_clips(
    videos: Manifest, row_N: np.ndarray, frames: int, block: int, sha256: Sequence[str], rejected: Mapping[int, str]
) -> pa.Table:
    """The manifest's table of clips with stored features in the place of the videos; rows keep their numbers.

    Args:
        row_N: the clips that have features, in the order in which the pass took them.
        frames: F.
        block: N.
        sha256: of each part's table.
        rejected: reasons, by row, of what could not be decoded.
    """
    place = np.full(len(videos.clips), -1, np.int64)
    place[row_N] = np.arange(len(row_N))
    there, part = place >= 0, np.maximum(place, 0) // block
    sizes = np.minimum(block, len(row_N) - np.arange(len(sha256)) * block) * frames
    reasons = np.full(len(place), None, object)
    reasons[list(rejected)] = list(rejected.values())
    reason = pa.array(reasons, pa.string())
    new: dict[str, Any] = {
        "path": pc.take(pa.array([table_name(number) for number in range(len(sha256))], pa.string()), part),
        "sha256": pc.take(pa.array(sha256, pa.string()), part),
        "start": place % block * frames,
        "num_frames": np.full(len(place), frames),
        "file_frames": sizes[part],
        "access": np.full(len(place), ACCESS),
    }
    table = videos.clips
    for name, column in new.items():
        column = pc.if_else(pa.array(there), pa.array(column), table[name]).cast(CLIPS.field(name).type)
        table = table.set_column(CLIPS.names.index(name), name, column)
    status = pc.if_else(reason.is_null(), table["status"], "rejected")
    table = table.set_column(CLIPS.names.index("status"), "status", status)
    return table.set_column(CLIPS.names.index("reason"), "reason", pc.coalesce(reason, table["reason"])).cast(CLIPS)
