"""Tables and files that several processes of a node map; and what names the content of a table."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from finepseudo.errors import ArtefactError
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, own_folder

pc: Any = pyarrow.compute  # its functions are made at import
BATCH = 1 << 16  # rows of a record batch of a mapped file
UNUSED_S = 7 * 86400.0  # mapped files that nobody has opened for so long are deleted


def mapped(store: Store, folder: str, name: str) -> pa.Table:
    """A part of a committed artefact, mapped: the processes of a node share its pages, and read only what they use.

    The first one converts it; the file is known again by the digest that the artefact's marker has of the part.
    """
    path = _folder() / f"{artefacts.part_of(store, folder, name)['sha256']}.arrow"
    with contextlib.suppress(OSError, pa.ArrowInvalid):  # not there (any more), or damaged by a crash
        os.utime(path)
        return _open(path)
    _convert(artefacts.read_part(store, folder, name), path)
    return _open(path)


def on_node(store: Store, path: str, sha256: str) -> Path:
    """A file of that digest as one of this node, to be mapped: itself on a disk, a copy for all processes elsewhere.

    Raises ArtefactError: it is gone, or damaged.
    """
    if not artefacts.DIGEST.fullmatch(sha256):
        raise ArtefactError(f"{store.uri(path)}: expected a digest of 64 hexadecimal digits for it, got {sha256!r}")
    there, copy = store.on_disk(path), _folder() / sha256
    if not there and copy.exists():  # it was checked before it got its name
        os.utime(copy)
        return copy
    try:
        data = store.read(path)
    except FileNotFoundError as error:
        raise ArtefactError(f"{error}, though it is committed; delete its folder to have it made again") from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ArtefactError(
            f"{store.uri(path)} is damaged: expected sha256 {sha256[:12]}, got {found[:12]}; delete its folder to have "
            "it made again"
        )
    if not there:
        _place(copy, lambda sink: sink.write(data))
    return Path(there) if there else copy


def _open(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def take(table: pa.Table, index_N: np.ndarray) -> pa.Table:
    """Rows of a large table, in the order asked for; only the batches that hold them are touched."""
    batches = table.to_batches()
    ends = np.cumsum([len(batch) for batch in batches])
    windows = (index_N[at : at + BATCH].astype(np.int64) for at in range(0, len(index_N), BATCH))
    return pa.concat_tables([table.schema.empty_table(), *(_some(batches, ends, window) for window in windows)])


def _some(batches: list[pa.RecordBatch], ends: np.ndarray, index_N: np.ndarray) -> pa.Table:
    order = np.argsort(index_N, kind="stable")
    number_N = np.searchsorted(ends, index_N[order], side="right")
    parts: list[pa.RecordBatch] = []
    for number in np.unique(number_N).tolist():
        begin = ends[number] - len(batches[number])
        parts.append(batches[number].take(index_N[order[number_N == number]] - begin))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.Table.from_batches(parts).combine_chunks().take(back)


def rows_at(table: pa.Table, index_N: np.ndarray) -> list[dict[str, Any]]:
    """A few rows as dictionaries."""
    return take(table, index_N).to_pylist()


def digest(table: pa.Table) -> str:
    """Of what the rows say, however they are chunked: 64 hexadecimal digits."""
    state = hashlib.sha256(f"{len(table)} {table.schema.remove_metadata()}".encode())
    for start in range(0, len(table), BATCH):
        for column in table.slice(start, BATCH).columns:
            _feed(state, column.combine_chunks())
    return state.hexdigest()


def _feed(state: Any, array: Any) -> None:
    state.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_list(array.type):
        state.update(array.value_lengths().fill_null(0).to_numpy().tobytes())
        _feed(state, array.flatten())
    elif pa.types.is_string(array.type):
        texts = array.fill_null("").to_pylist()
        state.update(np.array([len(text) for text in texts], np.int64).tobytes() + "".join(texts).encode())
    else:
        empty = False if pa.types.is_boolean(array.type) else 0
        state.update(array.fill_null(empty).to_numpy(zero_copy_only=False).tobytes())


def _convert(parquet: bytes, path: Path) -> None:
    def write(sink: Any) -> None:
        file = pq.ParquetFile(io.BytesIO(parquet))
        with pa.ipc.new_file(sink, file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=BATCH):
                writer.write_batch(batch)

    _place(path, write)


def _place(path: Path, write: Callable[[Any], object]) -> None:
    """A file of the node's folder, whole or not at all; those that nobody has used for long make room."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as sink:
            write(sink)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    for other in path.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > UNUSED_S:
                other.unlink()


def _folder() -> Path:
    return Path(own_folder(os.path.join(tempfile.gettempdir(), f"finepseudo-tables-{os.getuid()}")))
