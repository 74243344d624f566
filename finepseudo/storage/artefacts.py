"""Committed artefacts: folders whose marker, written last, says what they hold and what made them.

Object stores have no rename, so the parts of an artefact are written first and the marker last; readers
look only at folders with a marker. Making an artefact again with the same lineage is a look-up; with
another lineage it is an error that shows the difference. Nothing is replaced silently.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finepseudo.errors import ArtefactError
from finepseudo.storage.lease import check_fence, held
from finepseudo.storage.lineage import differences, plain
from finepseudo.storage.store import Store, is_below

MARKER = "committed.json"
DIGEST = re.compile("[0-9a-f]{64}")  # it also names files of a node (tables.py)


def part_record(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def file_record(path: str) -> dict[str, Any]:
    """The same of a file of this machine, which is not in memory as a whole."""
    with open(path, "rb") as file:
        return {"bytes": os.path.getsize(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def commit(store: Store, folder: str, parts: Mapping[str, bytes], lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Write the parts, then the marker. Safe to repeat after a crash."""
    for name, data in parts.items():
        store.write(f"{folder}/{name}", data)
    return seal(store, folder, {name: part_record(data) for name, data in parts.items()}, lineage)


def seal(store: Store, folder: str, records: Mapping[str, Any], lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Write only the marker, over parts that others have written (each worker of a training writes its own).

    Raises LeaseError: another job has taken the run directory over.
    """
    check_fence(store)
    marker = {"lineage": plain(lineage), "parts": dict(sorted(records.items()))}
    data = json.dumps(marker, indent=1, sort_keys=True).encode()
    store.write(f"{folder}/{MARKER}", data)
    return json.loads(data)


def committed(store: Store, folder: str) -> dict[str, Any] | None:
    """The marker of a folder, or None if it is not committed."""
    try:
        data = store.read(f"{folder}/{MARKER}")
    except FileNotFoundError:
        return None
    try:
        return _checked(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ArtefactError(
            f"{store.uri(folder)}/{MARKER} is damaged ({error}); delete the folder to have it made again"
        ) from None


def _checked(marker: Any) -> dict[str, Any]:
    """What was read as a marker. Raises ValueError: it is none, or a part's name leaves the folder."""
    if not isinstance(marker, dict) or not all(isinstance(marker.get(key), dict) for key in ("lineage", "parts")):
        raise ValueError("expected an object with the objects lineage and parts")
    for name, record in marker["parts"].items():
        if not is_below(name):
            raise ValueError(f"a part has the name {name!r}, which is not below its folder")
        whole = isinstance(record, dict) and type(record.get("bytes")) is int and isinstance(record.get("sha256"), str)
        if not whole:
            raise ValueError(f"part {name!r} lacks its size or its digest")
        if not DIGEST.fullmatch(record["sha256"]):
            raise ValueError(f"part {name!r} has no digest of 64 hexadecimal digits")
    return marker


def required(store: Store, folder: str) -> dict[str, Any]:
    """The marker of a folder. Raises ArtefactError where it is not committed."""
    marker = committed(store, folder)
    if marker is None:
        raise ArtefactError(f"{store.uri(folder)}: not committed (no {MARKER}); run the stage that makes it")
    return marker


def part_of(store: Store, folder: str, name: str) -> dict[str, Any]:
    """Size and digest of a part. Raises ArtefactError where the folder is not committed, or has no such part."""
    parts = required(store, folder)["parts"]
    if name not in parts:
        raise ArtefactError(f"{store.uri(folder)}: no part {name!r}, it has {', '.join(parts)}")
    return parts[name]


def ensure(
    store: Store, folder: str, lineage: Mapping[str, Any], make: Callable[[], Mapping[str, bytes]]
) -> dict[str, Any]:
    """The marker of the artefact, which is made and committed if it is not there yet.

    Raises ArtefactError where the folder is committed with another lineage.
    """
    marker = committed(store, folder)
    if marker is None:
        return commit(store, folder, make(), lineage)
    check_lineage(store, folder, marker, lineage)
    return marker


@contextmanager
def making(store: Store, folder: str) -> Iterator[Store]:
    """The store, within the block this process's alone if the folder is still to be made. Raises LeaseError."""
    with held(store) if committed(store, folder) is None else nullcontext(store) as mine:
        yield mine


def copy(source: Store, target: Store, folder: str, to: str = "") -> None:
    """The committed artefact of another store, here too: in the same folder, or in `to`.

    Raises ArtefactError where the folder is committed here with another lineage.
    """
    marker = required(source, folder)
    parts = marker["parts"]
    ensure(target, to or folder, marker["lineage"], lambda: {name: read_part(source, folder, name) for name in parts})


def check_lineage(store: Store, folder: str, marker: Mapping[str, Any], lineage: Mapping[str, Any]) -> None:
    """Raise unless a committed artefact was made from what is asked for now."""
    changed = differences(lineage, marker["lineage"])
    if changed:
        raise ArtefactError(
            f"{store.uri(folder)} was made from something else: {'; '.join(changed)}. "
            "Use another run directory, or delete this folder to have it made again"
        )


def read_part(store: Store, folder: str, name: str) -> bytes:
    """One part of a committed artefact, checked against the marker's size and digest."""
    expected = part_of(store, folder, name)
    try:
        data = store.read(f"{folder}/{name}")
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{store.uri(folder)}/{name} is gone, though the folder is committed; "
            "delete the folder to have it made again"
        ) from error
    found = part_record(data)
    if found != expected:
        raise ArtefactError(
            f"{store.uri(folder)}/{name} is damaged: expected {expected['bytes']} bytes, sha256 "
            f"{expected['sha256'][:12]}, got {found['bytes']} bytes, {found['sha256'][:12]}; "
            "delete the folder to have it made again"
        )
    return data


def marker_digest(marker: Mapping[str, Any]) -> str:
    """One digest for all parts of an artefact, for the lineage of what is made from it."""
    return hashlib.sha256(json.dumps(marker["parts"], sort_keys=True).encode()).hexdigest()[:12]


def table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def tables_bytes(parts: Iterable[pa.Table]) -> bytes:
    """One table of several of one schema, of which one is held at a time; at least one."""
    sink, writer = io.BytesIO(), None
    for part in parts:
        writer = writer or pq.ParquetWriter(sink, part.schema, compression="zstd")
        writer.write_table(part)
    assert writer is not None, "a table of no parts has no schema"
    writer.close()
    return sink.getvalue()


def read_table(store: Store, folder: str, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(read_part(store, folder, name)))
