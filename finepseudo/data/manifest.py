"""The manifest: one immutable row per clip, usable or rejected with its reason; labels lie beside it.

Axes: N clips.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finepseudo.data.formats import match
from finepseudo.errors import ManifestError
from finepseudo.storage import artefacts, tables
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store
from finepseudo.storage.tables import pc

FOLDER = "manifest"
SHOWN = 5  # rejected clips that an error names
UNKNOWN = -1  # where no label is known
LATEST = 2.0**31 - 1  # frame
MOST_BEYOND, MOST_BEYOND_SHARE = 2, 0.02  # frames, and share of its length, by which a clip may end behind its file

FOUND = pa.schema(
    {"path": pa.string(), "num_frames": pa.int32(), "fps": pa.float64(), "height": pa.int32(), "width": pa.int32()}
    | {"even": pa.bool_(), "access": pa.string(), "bytes": pa.int64(), "sha256": pa.string(), "error": pa.string()}
)
"""What probing found out of a file; `error` is null where it is usable."""

CLIPS = pa.schema(
    {"video_id": pa.string(), "path": pa.string(), "split": pa.string()}
    | {"start": pa.int32(), "file_frames": pa.int32(), "num_frames": pa.int32(), "fps": pa.float64()}
    | {"height": pa.int32(), "width": pa.int32(), "bytes": pa.int64()}
    | {"access": pa.string(), "sha256": pa.string(), "status": pa.string(), "reason": pa.string()}
)
"""What all may know of a clip: its file below the data's folder, which frames of it, and the way to them; no label."""


@dataclass(frozen=True)
class Manifest:
    """The table, and the labels that only the labelled split and evaluation may read. A clip is known by its row."""

    clips: pa.Table  # CLIPS, sorted by split and id
    label: Any  # Arrow column, int32, null where none is known
    class_names: tuple[str, ...]
    folder: str = FOLDER  # where it is committed, below the run

    @cached_property
    def fingerprint(self) -> str:
        labels = pa.table([self.label], ["label"])
        return fingerprint([tables.digest(self.clips), tables.digest(labels), self.class_names])

    @staticmethod
    def load(run: Store, folder: str = FOLDER) -> Manifest:
        names = json.loads(artefacts.read_part(run, folder, "classes.json"))
        labels = tables.mapped(run, folder, "labels.parquet").column("label")
        return Manifest(load_clips(run, folder), labels, tuple(names), folder)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def usable(self) -> Any:
        """Of each clip, whether it is not rejected; an Arrow column."""
        return pc.equal(self.clips["status"], "ok")

    def rows(self, split: str) -> np.ndarray:
        """Of the usable clips of a split, ascending."""
        return np.flatnonzero(pc.and_(self.usable, pc.equal(self.clips["split"], split)).to_numpy())

    def ids(self, row_N: np.ndarray) -> list[str]:
        return pc.take(self.clips["video_id"], row_N).to_pylist()

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """Of clips by their ids, which all must be there."""
        return pc.index_in(pa.array(ids, pa.string()), self.clips["video_id"]).to_numpy()

    def truth(self, row_N: np.ndarray) -> np.ndarray:
        """Labels, UNKNOWN where there is none: for the labelled split and for evaluation only."""
        return pc.take(self.label, row_N).fill_null(UNKNOWN).to_numpy().astype(np.int64)

    def twice(self) -> dict[str, list[str]]:
        """Ids of usable clips of equal bytes that cannot both be right: in two splits, or of two classes."""
        keys = ["sha256", "start", "num_frames"]
        every = self.clips.select(["video_id", "split", *keys]).append_column("label", self.label)
        several = _with_copies(every, np.flatnonzero(self.usable.to_numpy()), keys)
        counts = several.group_by(keys).aggregate([("split", "count_distinct"), ("label", "count_distinct")])
        found: dict[str, list[str]] = {}
        for what, column in (("in two splits", "split_count_distinct"), ("under two labels", "label_count_distinct")):
            copies = counts.filter(pc.greater(counts[column], 1)).select(keys)
            if len(copies):
                joined = several.join(copies, keys, join_type="left semi")
                found[what] = sorted(pc.cast(joined["video_id"], pa.string()).to_pylist())
        return found

    def summary(self) -> dict[str, Any]:
        """Counts by split and reason, for the log and the results."""
        reasons = pc.filter(self.clips["reason"], pc.invert(self.usable))
        kinds = pc.list_element(pc.split_pattern(reasons, ":", max_splits=1), 0)
        return {
            "usable": _counted(pc.filter(self.clips["split"], self.usable)),
            "rejected": len(reasons),
            "reasons": _counted(kinds),
        }

    def rejections(self) -> list[str]:
        """`id: reason` of every rejected clip."""
        told = self.clips.select(["video_id", "reason"]).filter(pc.invert(self.usable))
        return [f"{row['video_id']}: {row['reason']}" for row in told.to_pylist()]


def load_clips(run: Store, folder: str = FOLDER) -> pa.Table:
    """The view without labels."""
    return tables.mapped(run, folder, "clips.parquet")


class Annotated:
    """Clips (`formats.CLIPS`) in the order that the manifest has them in, by split and id, and their files.

    The files have numbers in the order of their first clips, so what probing finds of them is wanted in about that
    order.
    """

    def __init__(self, clips: pa.Table) -> None:
        self._clips = clips
        self._row_N = pc.sort_indices(clips, [("split", "ascending"), ("video_id", "ascending")]).to_numpy()
        hash_N = match.hashes(match.texts_of(clips["file"]))[self._row_N]
        _, first_F, place_N = np.unique(hash_N, return_index=True, return_inverse=True)
        order_F = np.argsort(first_F)
        self._file_F = self._row_N[first_F[order_F]]  # a row of each file
        number_F = np.empty_like(order_F)
        number_F[order_F] = np.arange(len(order_F))
        self._number_N = number_F[place_N]

    def __len__(self) -> int:
        return len(self._clips)

    def groups(self, size: int) -> list[Any]:
        """Paths of all files, in Arrow arrays of so many."""
        files = self._clips.select(["file"])
        parts = (self._file_F[at : at + size] for at in range(0, len(self._file_F), size))
        return [tables.take(files, row_N)["file"].combine_chunks() for row_N in parts]

    def windows(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """All clips, some at a time, and the numbers of their files."""
        for at in range(0, len(self._row_N), tables.BATCH):
            here = slice(at, at + tables.BATCH)
            yield tables.take(self._clips, self._row_N[here]), self._number_N[here]


def manifest_parts(
    annotated: Annotated,
    class_names: Sequence[str],
    found: Callable[[np.ndarray], pa.Table],
    *,
    min_frames: int,
    to_train: bool = True,
) -> dict[str, bytes]:
    """Join clips and what probing found of their files (FOUND), by the numbers of these.

    Returns what `Manifest.load` reads; neither it nor what was found is ever in memory as a whole. Raises ManifestError
    where it is to train by, and no usable clip is left in the training split, or in the test split if there is one.
    """
    sink, usable, refused = io.BytesIO(), Counter[str](), dict[str, list[str]]({"train": []})
    labels: list[pa.Table] = []
    with pq.ParquetWriter(sink, CLIPS, compression="zstd") as writer:
        for some, file_N in annotated.windows():
            clips = _clips(some, found(file_N), min_frames)
            writer.write_table(clips)
            labels.append(some.select(["label"]))
            good = pc.equal(clips["status"], "ok")
            usable.update(_counted(pc.filter(clips["split"], good)))
            for row in clips.filter(pc.invert(good)).slice(0, SHOWN).to_pylist():
                refused.setdefault(row["split"], []).append(f"{row['video_id']}: {row['reason']}")
    for split in sorted(refused):
        if to_train and not usable[split]:
            bad = "; ".join(refused[split][:SHOWN]) or "none annotated"
            raise ManifestError(f"no usable video in split {split!r}; rejected: {bad}")
    return {
        "clips.parquet": sink.getvalue(),
        "labels.parquet": artefacts.table_bytes(pa.concat_tables(labels)),
        "classes.json": json.dumps(list(class_names)).encode(),
    }


def _clips(annotated: pa.Table, probed: pa.Table, min_frames: int) -> pa.Table:
    """Some rows of the manifest, from as many of what was annotated and of what was found of their files."""
    first_N, stop_N = _parts(annotated, probed)
    reason_N = probed["error"].to_numpy(zero_copy_only=False).copy()
    there = probed["error"].is_null()
    for row in np.flatnonzero(there.to_numpy() & (stop_N - first_N < max(min_frames, 1))).tolist():
        reason_N[row] = _why(annotated.slice(row, 1).to_pylist()[0], probed, row, first_N, stop_N, min_frames)
    refused = pa.array(reason_N, pa.string())
    columns = {
        "video_id": annotated["video_id"],
        "path": probed["path"],
        "split": annotated["split"],
        "start": pc.if_else(there, pa.array(first_N), None),
        "file_frames": probed["num_frames"],
        **{name: probed[name] for name in ("fps", "height", "width", "bytes", "access", "sha256")},
        "num_frames": pc.if_else(there, pa.array(stop_N - first_N), None),
        "status": pc.if_else(refused.is_null(), "ok", "rejected"),
        "reason": refused.fill_null(""),
    }
    return pa.table([columns[name].cast(CLIPS.field(name).type) for name in CLIPS.names], schema=CLIPS)


def _parts(annotated: pa.Table, probed: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """First frame of each clip in its file and the frame to stop before; equal where the file has no such part.

    An end a little beyond the file's, as other programs count it, is the file's.
    """
    count_N = pc.fill_null(probed["num_frames"], 0).to_numpy().astype(np.int64)
    per_N = np.where(annotated["seconds"].to_numpy(), pc.fill_null(probed["fps"], 0.0).to_numpy(), 1.0)
    first_N, end_N = (
        np.rint(np.minimum(pc.fill_null(annotated[name], 0.0).to_numpy() * per_N, LATEST)).astype(np.int64)
        for name in ("start", "end")
    )
    stop_N = np.where(annotated["end"].is_null().to_numpy(), count_N, end_N)
    slack_N = np.maximum(MOST_BEYOND, MOST_BEYOND_SHARE * (stop_N - first_N))
    there_N = (first_N < count_N) & (stop_N <= count_N + slack_N)
    there_N &= ~(annotated["seconds"].to_numpy() & ~pc.fill_null(probed["even"], fill_value=True).to_numpy())
    return np.where(there_N, first_N, 0), np.where(there_N, np.minimum(stop_N, count_N), 0)


def _why(clip: dict[str, Any], probed: pa.Table, row: int, first_N: Any, stop_N: Any, min_frames: int) -> str:
    """Of a clip of too few frames."""
    if stop_N[row] > first_N[row]:
        return f"too short: {stop_N[row] - first_N[row]} frames, data.min_frames is {min_frames}"
    if clip["seconds"] and probed["even"][row].as_py() is False:
        return "frames at uneven times: give start and end of this part in frames (start_frame, end_frame)"
    end = "" if clip["end"] is None else f"{clip['end']:g}"
    part = f"{clip['start'] or 0:g}..{end}"
    unit = "seconds" if clip["seconds"] else "frames"
    return f"no such part: {unit} {part} of a file of {probed['num_frames'][row].as_py()} frames"


def _with_copies(clips: pa.Table, row_N: np.ndarray, keys: Sequence[str]) -> pa.Table:
    """Those of the rows whose keys another one seems to have: by hashes, so that a large table is not in memory."""
    windows = (clips.select(keys).slice(at, tables.BATCH).to_pydict() for at in range(0, len(clips), tables.BATCH))
    hash_N = match.hashes(row for window in windows for row in zip(*window.values(), strict=True))
    copies = row_N[match.repeated(hash_N[row_N])]
    return tables.take(clips, copies)


def _counted(column: Any) -> dict[str, int]:
    counts = {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
    return dict(sorted(counts.items()))
