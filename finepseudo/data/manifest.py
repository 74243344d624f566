"""The manifest: one immutable row per clip, usable or rejected with its reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import pyarrow as pa

from finepseudo.data.formats import Annotation
from finepseudo.errors import ManifestError
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

FOLDER = "manifest"
MOST_BEYOND, MOST_BEYOND_SHARE = 2, 0.02  # frames, and share of its length, by which a clip may end behind its file

SCHEMA = pa.schema(
    {"video_id": pa.string(), "path": pa.string(), "label": pa.int32(), "label_name": pa.string(), "split": pa.string()}
    | {"start": pa.int32(), "file_frames": pa.int32(), "num_frames": pa.int32(), "fps": pa.float64()}
    | {"height": pa.int32(), "width": pa.int32(), "bytes": pa.int64()}
    | {"access": pa.string(), "sha256": pa.string(), "status": pa.string(), "reason": pa.string()}
)


@dataclass(frozen=True)
class Video:
    """What decoding needs to know of one clip; no label."""

    index: int
    video_id: str
    path: str  # below the folder of the data
    sha256: str  # of the file
    num_frames: int  # of the clip
    height: int
    width: int
    access: str  # the way to the file's frames: see data/video.py
    start: int  # the clip's first frame in the file
    file_frames: int


@dataclass(frozen=True)
class Manifest:
    """The table, and the views that the stages use. Only evaluation and the labelled split read labels."""

    table: pa.Table
    class_names: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.table.to_pylist(), self.class_names)).encode()).hexdigest()[:12]

    @staticmethod
    def load(run: Store) -> Manifest:
        names = json.loads(artefacts.read_part(run, FOLDER, "classes.json"))
        return Manifest(artefacts.read_table(run, FOLDER, "manifest.parquet"), tuple(names))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def videos(self, split: str) -> list[Video]:
        names = [item.name for item in fields(Video) if item.name != "index"]
        return [
            Video(index=index, **{name: row[name] for name in names})
            for index, row in enumerate(self.table.to_pylist())
            if row["split"] == split and row["status"] == "ok"
        ]

    def truth(self, split: str) -> dict[str, int]:
        """Labels of the usable clips of a split that have one: for the labelled split and for evaluation only."""
        rows = self.table.select(["video_id", "label", "split", "status"]).to_pylist()
        kept = (row for row in rows if row["split"] == split and row["status"] == "ok")
        return {row["video_id"]: row["label"] for row in kept if row["label"] is not None}

    def twice(self) -> dict[str, list[str]]:
        """Ids of usable clips of equal bytes that cannot both be right: in two splits, or of two classes."""
        names = ("video_id", "sha256", "start", "num_frames", "split", "label", "status")
        copies: dict[Any, list[dict[str, Any]]] = {}
        for row in self.table.select(names).to_pylist():
            if row["status"] == "ok":
                copies.setdefault((row["sha256"], row["start"], row["num_frames"]), []).append(row)
        found: dict[str, list[str]] = {}
        for rows in copies.values():
            for what, key in (("in two splits", "split"), ("under two labels", "label")):
                if len({row[key] for row in rows} - {None}) > 1:
                    found.setdefault(what, []).extend(row["video_id"] for row in rows)
        return found

    def summary(self) -> dict[str, Any]:
        """Counts by split and reason, for the log and the results."""
        rows = self.table.select(["split", "status", "reason", "num_frames"]).to_pylist()
        usable = Counter(row["split"] for row in rows if row["status"] == "ok")
        reasons = Counter(row["reason"].partition(":")[0] for row in rows if row["status"] != "ok")
        return {"usable": dict(usable), "rejected": sum(reasons.values()), "reasons": dict(reasons)}


def build_manifest(
    annotations: Sequence[Annotation],
    class_names: Sequence[str],
    probes: Mapping[str, Mapping[str, Any]],
    paths: Mapping[str, str],
    *,
    min_frames: int,
) -> Manifest:
    """Join annotations and probe results, in the order of the ids.

    Args:
        probes: what was found out about a file, by its path.
        paths: of each clip's file.
    Raises ManifestError where no usable clip is left in the training split, or in the test split if there is one.
    """
    rows = []
    for annotation in sorted(annotations, key=lambda item: (item.split, item.video_id)):
        probe = dict(probes[paths[annotation.video_id]])
        reason = probe.pop("error", None)
        if reason is None:
            probe["file_frames"], first, stop = probe["num_frames"], *_part(annotation, probe)
            probe |= {"start": first, "num_frames": stop - first}
            if stop <= first:
                part = f"{annotation.start or 0:g}..{'' if annotation.end is None else f'{annotation.end:g}'}"
                unit = "seconds" if annotation.seconds else "frames"
                reason = f"no such part: {unit} {part} of a file of {probe['file_frames']} frames"
            elif stop - first < min_frames:
                reason = f"too short: {stop - first} frames, data.min_frames is {min_frames}"
        rows.append(
            {
                "video_id": annotation.video_id,
                "path": paths[annotation.video_id],
                "label": annotation.label,
                "label_name": None if annotation.label is None else class_names[annotation.label],
                "split": annotation.split,
                "status": "ok" if reason is None else "rejected",
                "reason": reason or "",
                **probe,
            }
        )
    manifest = Manifest(pa.Table.from_pylist(rows, schema=SCHEMA), tuple(class_names))
    for split in sorted({"train", *(row["split"] for row in rows)}):
        if not any(row["split"] == split and row["status"] == "ok" for row in rows):
            bad = [f"{row['video_id']}: {row['reason']}" for row in rows if row["split"] == split][:5]
            raise ManifestError(f"no usable video in split {split!r}; rejected: {'; '.join(bad) or 'none annotated'}")
    return manifest


def _part(annotation: Annotation, probe: Mapping[str, Any]) -> tuple[int, int]:
    """First frame of a clip in its file and the frame to stop before; equal where the file has no such part.

    An end a little beyond the file's, as other programs count it, is the file's.
    """
    count, per = probe["num_frames"], probe["fps"] if annotation.seconds else 1.0
    first = round((annotation.start or 0) * per)
    stop = count if annotation.end is None else round(annotation.end * per)
    slack = max(MOST_BEYOND, MOST_BEYOND_SHARE * (stop - first))
    return (first, min(stop, count)) if first < count and stop <= count + slack else (first, first)
