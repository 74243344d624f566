"""A data set again at another place, packed: small files that are quick to seek in, and annotations of the same clips.

Below the new root: the packed files under their old paths, one table of the usable clips, the names of the classes, and
`pack/` with the manifest of the originals and what became of every file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from statistics import mean
from typing import Any

import pyarrow as pa

from finepseudo.data.child import Child
from finepseudo.data.manifest import Manifest
from finepseudo.data.pack import How
from finepseudo.driver.executor import Executor
from finepseudo.driver.prepare import ensure_manifest
from finepseudo.errors import DecodeError, RecipeError
from finepseudo.recipe import Data, Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store
from finepseudo.storage.tables import pc

CLIPS, CLASSES = "clips.parquet", "classes.json"  # below the new root
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
        ManifestError: as `ensure_manifest`.
    """
    check_places(recipe.data, to)
    data, run = Store(recipe.data.root), to.child("pack")
    manifest = ensure_manifest(recipe, run, executor)
    files, rejected = _files(manifest)
    if inside := [path for path in files if path.startswith("pack/")]:
        raise RecipeError(f"{inside[0]}: files below pack/ cannot be packed, the packed set has its records there")
    names = packed_names([*files])
    digests = {path: row["sha256"] for path, row in files.items()}
    lineage = {"how": asdict(how), "files": fingerprint(digests), "manifest": manifest.fingerprint}

    def make() -> dict[str, bytes]:
        task = functools.partial(_pack_group, data, to, how, recipe.scale.probe_deadline_s)
        groups = _groups([{**row, "packed": names[path]} for path, row in files.items()])
        found = executor.spread(task, groups, f"packing files, groups of {GROUP} at most")
        rows = [row for group in found for row in group]
        rows += [{"path": path, "reason": reason} for path, reason in rejected.items()]
        _write_clips(manifest, to, names)
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
    if ".." in PurePosixPath(data.videos).parts:
        raise RecipeError(f"data.videos: expected a path below data.root, got {data.videos!r}")


def packed_data(data: Data, to: Store) -> Data:
    """What a recipe says of the packed data set."""
    where = {"root": to.uri(), "train": CLIPS, "test": "", "vocab": CLASSES, "unlabelled": "", "format": ""}
    return replace(data, **where)


def _files(manifest: Manifest) -> tuple[dict[str, Row], dict[str, str]]:
    """A row of each file that has a usable clip, and why each other file has none."""
    good, bad = (manifest.clips.filter(some) for some in (manifest.usable, pc.invert(manifest.usable)))
    files = {row["path"]: row for row in good.to_pylist()}
    reasons = {row["path"]: row["reason"] for row in bad.select(["path", "reason"]).to_pylist()}
    return files, {path: reason for path, reason in reasons.items() if path not in files}


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
    if to.exists(record) and (known := json.loads(to.read(record)))["source"] == source:
        return known["row"]
    child.deadline_s = deadline_s * max(1, row["file_frames"] / DEADLINE_FRAMES)
    uri = data.inside(row["path"])
    try:
        found, packed = child.pack(uri, row, how)
    except DecodeError as error:
        return {**made, "reason": str(error).removeprefix(f"{uri}: ")}
    to.write(row["packed"], packed)
    made |= {**found, "raw_bytes": row["bytes"], "packed_bytes": len(packed), "reason": ""}
    to.write(record, json.dumps({"source": source, "row": made}).encode())
    return made


def _write_clips(manifest: Manifest, to: Store, names: Mapping[str, str]) -> None:
    """The usable clips with their ids, labels and splits, as parts of the packed files in frames; and the classes."""
    clips: Any = manifest.clips.filter(manifest.usable)
    whole = pc.and_(pc.equal(clips["start"], 0), pc.equal(clips["num_frames"], clips["file_frames"]))
    classes = pa.array(manifest.class_names)
    columns = {
        "video_id": clips["video_id"],
        "path": pa.array([names[path] for path in clips["path"].to_pylist()]),
        "label": pc.take(classes, pc.filter(manifest.label, manifest.usable)),
        "split": clips["split"],
        "start_frame": pc.if_else(whole, None, clips["start"]),
        "end_frame": pc.if_else(whole, None, pc.add(clips["start"], clips["num_frames"])),
    }
    to.write(CLIPS, artefacts.table_bytes(pa.table([*columns.values()], [*columns])))
    to.write(CLASSES, json.dumps(manifest.class_names).encode())
