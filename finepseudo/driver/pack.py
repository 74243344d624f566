"""A data set again at another place, packed: small files that are quick to seek in, and annotations of the same clips.

Below the new root: the packed files under their old paths, annotations and vocabulary under their old names, and
`pack/` with the manifest of the originals and what became of every file.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from statistics import mean
from typing import Any

import pyarrow as pa

from finepseudo.data.child import Child
from finepseudo.data.formats import Annotation, id_of, read_annotations
from finepseudo.data.manifest import Manifest
from finepseudo.data.pack import How
from finepseudo.driver.executor import Executor
from finepseudo.driver.prepare import ensure_manifest
from finepseudo.errors import DecodeError, ManifestError, RecipeError
from finepseudo.recipe import Data, Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store

log = logging.getLogger("finepseudo")

FOLDER, RECORDS = "packed", "records"  # below `pack/`: the committed table, and what is known before it is
GROUP, GROUP_FRAMES = 16, 20_000  # files, and frames of all of them, that one task packs
DEADLINE_FRAMES = 300  # frames of a file for which packing may take as long as a probe

Row = dict[str, Any]
SCHEMA = pa.schema(
    {"path": pa.string(), "packed": pa.string(), "sha256": pa.string(), "reason": pa.string()}
    | {"num_frames": pa.int32(), "fps": pa.float64(), "height": pa.int32(), "width": pa.int32(), "access": pa.string()}
    | {"raw_bytes": pa.int64(), "packed_bytes": pa.int64(), "raw_s": pa.float64(), "packed_s": pa.float64()}
    | {"psnr": pa.float64(), "ssim": pa.float64()}
)


def ensure_packed(recipe: Recipe, to: Store, how: How, executor: Executor) -> list[Row]:
    """Pack every usable file of a recipe's data, once; what is finished is not made again.

    Returns:
        rows of SCHEMA, one a file; those with a `reason` could not be used.
    Raises:
        RecipeError: the new root is none.
        ManifestError: as `ensure_manifest`, or the same clips cannot be written down in the new place.
    """
    check_places(recipe.data, to)
    data, run = Store(recipe.data.root), to.child("pack")
    manifest = ensure_manifest(recipe, run, executor)
    files, rejected = _files(manifest)
    names = packed_names([*files])
    digests = {path: row["sha256"] for path, row in files.items()}
    lineage = {"how": asdict(how), "files": fingerprint(digests), "manifest": manifest.fingerprint}

    def make() -> dict[str, bytes]:
        task = functools.partial(_pack_group, data, to, how, recipe.scale.probe_deadline_s)
        groups = _groups([{**row, "packed": names[path]} for path, row in files.items()])
        found = executor.spread(task, groups, f"packing files, groups of {GROUP} at most")
        rows = [row for group in found for row in group]
        rows += [{"path": path, "reason": reason} for path, reason in rejected.items()]
        _write_annotations(recipe.data, data, to, {path: names[path] for path in files})
        return {"files.parquet": artefacts.table_bytes(pa.Table.from_pylist(rows, schema=SCHEMA))}

    artefacts.ensure(run, FOLDER, lineage, make)
    run.delete(RECORDS)
    return artefacts.read_table(run, FOLDER, "files.parquet").to_pylist()


def summary(rows: Sequence[Row]) -> str:
    """A few lines: files, bytes, quality, and what decoding costs, before and after."""
    made = [row for row in rows if not row["reason"]]
    lines = [f"rejected {row['path']}: {row['reason']}" for row in rows if row["reason"]]
    if made:
        before, after = (sum(row[f"{name}_bytes"] for row in made) for name in ("raw", "packed"))
        psnr, ssim, raw_s, packed_s = (
            mean(row[name] for row in made) for name in ("psnr", "ssim", "raw_s", "packed_s")
        )
        lines += [
            f"files    {len(made)} packed, {len(rows) - len(made)} rejected",
            f"bytes    {before:,} -> {after:,} ({after / before:.0%})",
            f"quality  PSNR {psnr:.1f} dB, SSIM {ssim:.3f} (lowest {min(row['psnr'] for row in made):.1f} dB)",
            f"decoding {1000 * raw_s:.0f} -> {1000 * packed_s:.0f} ms of CPU for 16 frames that are spread over a file",
        ]
    return "\n".join(lines)


def packed_names(paths: Sequence[str]) -> dict[str, str]:
    """The new path of every file: its ending becomes .mp4, or is followed by it where two files would become one."""
    names, taken = dict[str, str](), set[str]()
    for path in sorted(paths, key=lambda path: (not path.endswith(".mp4"), path)):
        name = str(PurePosixPath(path).with_suffix(".mp4"))
        if name in taken:
            name = f"{path}.mp4"
        while name in taken:
            name += ".mp4"
        names[path] = name
        taken.add(name)
    return names


def check_places(data: Data, to: Store) -> None:
    """Raise RecipeError unless the data can be packed to a place."""
    if not data.root:
        raise RecipeError("data.root: expected the folder of the data to pack, got none")
    old, new = f"{Store(data.root).uri()}/", f"{to.uri()}/"
    if new.startswith(old) or old.startswith(new):
        raise RecipeError(f"--to: expected a place outside of data.root = {data.root}, got {to.uri()}")
    for name in ("videos", "train", "test", "vocab"):
        if ".." in PurePosixPath(getattr(data, name)).parts:
            raise RecipeError(f"data.{name}: expected a path below data.root, got {getattr(data, name)!r}")


def _files(manifest: Manifest) -> tuple[dict[str, Row], dict[str, str]]:
    """A row of each file that has a usable clip, and why each other file has none."""
    rows = manifest.table.to_pylist()
    files = {row["path"]: row for row in rows if row["status"] == "ok"}
    return files, {row["path"]: row["reason"] for row in rows if row["path"] not in files}


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    groups: list[list[Row]] = []
    for row in rows:
        last = groups[-1] if groups else []
        if not last or len(last) == GROUP or sum(r["file_frames"] for r in [*last, row]) > GROUP_FRAMES:
            groups.append([])
        groups[-1].append(row)
    return groups


def _pack_group(data: Store, to: Store, how: How, deadline_s: float, group: Sequence[Row]) -> list[Row]:
    child = Child(deadline_s)
    try:
        return [_pack_file(data, to, how, child, deadline_s, row) for row in group]
    finally:
        child.close()


def _pack_file(data: Store, to: Store, how: How, child: Child, deadline_s: float, row: Row) -> Row:
    """Its row of SCHEMA; looked up where the file was packed before."""
    record = f"pack/{RECORDS}/{fingerprint(row['path'])}.json"
    made = {"path": row["path"], "packed": row["packed"], "sha256": row["sha256"]}
    source = {**made, **asdict(how)}
    try:
        known = json.loads(to.read(record))
        if known["source"] == source:
            return known["row"]
    except FileNotFoundError:
        pass
    child.deadline_s = deadline_s * max(1, row["file_frames"] / DEADLINE_FRAMES)
    uri = data.uri(row["path"])
    try:
        found, packed = child.pack(uri, row, how)
    except DecodeError as error:
        return {**made, "reason": str(error).removeprefix(f"{uri}: ")}
    to.write(row["packed"], packed)
    made |= {**found, "raw_bytes": row["bytes"], "packed_bytes": len(packed), "reason": ""}
    to.write(record, json.dumps({"source": source, "row": made}).encode())
    return made


def _write_annotations(data: Data, old: Store, new: Store, names: Mapping[str, str]) -> None:
    """The same clips in files of the same names; a clip whose file is not there stays, and is rejected again."""
    rows, classes = read_annotations(old, data)
    for split, file in (("train", data.train), ("test", data.test)):
        if file:
            clips = [_entry(row, data, names, classes) for row in rows if row.split == split]
            new.write(file, WRITERS[PurePosixPath(file).suffix.lower()](clips).encode())
    if data.vocab:
        new.write(data.vocab, old.read(data.vocab))
    again, classes_again = read_annotations(new, data)
    there = {_clip(row) for row in again}
    lost = [row for row in rows if row.path(data.videos) in names and _clip(row) not in there]
    if lost or classes != classes_again:
        what = f"clip {lost[0].video_id!r} of {lost[0].where}" if lost else f"classes of {old.uri()}"
        raise ManifestError(
            f"{what}: cannot be written down for {new.uri()} in the form of the original; write it as .json"
        )


def _clip(row: Annotation) -> tuple[Any, ...]:
    return row.video_id, row.label, row.split, row.start, row.end, row.seconds


def _entry(row: Annotation, data: Data, names: Mapping[str, str], classes: Sequence[str]) -> dict[str, Any]:
    path, unit = row.path(data.videos), "s" if row.seconds else "frame"
    span = {f"start_{unit}": row.start, f"end_{unit}": row.end}
    label = None if row.label is None else classes[row.label]
    entry = {"video_id": row.video_id, "file": names.get(path, path), "label": label, **span}
    return {key: value for key, value in entry.items() if value is not None}


def _json(clips: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(clips, indent=0)


def _csv(clips: Sequence[Mapping[str, Any]]) -> str:
    sink = io.StringIO(newline="")
    columns = ("video_id", "file", "label", "start_frame", "end_frame", "start_s", "end_s")
    csv.writer(sink).writerows([columns, *([clip.get(name, "") for name in columns] for clip in clips)])
    return sink.getvalue()


def _txt(clips: Sequence[Mapping[str, Any]]) -> str:
    """Without the clips whose id is not that of their path: `data.unlabelled` finds them again."""
    named = (clip for clip in clips if clip["video_id"] == id_of(clip["file"]))
    return "".join(f"{clip['file']} {clip.get('label', '')}".rstrip() + "\n" for clip in named)


WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {".json": _json, ".csv": _csv, ".txt": _txt}
"""By the ending of the file's name, what `formats.READERS` reads."""
