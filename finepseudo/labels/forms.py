"""Forms of plain tables: CSV, Parquet, JSON lines; a row a clip, those of which nothing is known too."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

DIGITS = 7  # of a number in a text: what fp32 has


class Rows(Protocol):
    """Tables of one schema, some rows at a time: labels of a run, or predictions."""

    @property
    def schema(self) -> pa.Schema: ...
    def batches(self) -> Iterator[pa.Table]: ...


def write_csv(of: Rows, file: Path) -> None:
    """A header, and a line a clip; lists are JSON, what is not there is empty."""
    with file.open("w", newline="", encoding="utf-8") as sink:
        lines = csv.writer(sink, lineterminator="\n")
        lines.writerow(of.schema.names)
        for row in rows(of.batches()):
            lines.writerow([_cell(value) for value in row.values()])


def write_parquet(of: Rows, file: Path) -> None:
    """The schema, nested as it is."""
    with pq.ParquetWriter(file, of.schema, compression="zstd") as sink:
        for batch in of.batches():
            sink.write_table(batch)


def write_jsonl(of: Rows, file: Path) -> None:
    """An object a line."""
    with file.open("w", encoding="utf-8") as sink:
        for row in rows(of.batches()):
            sink.write(said(row) + "\n")


def rows(batches: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    """Rows for a text."""
    for batch in batches:
        yield from (plain(row) for row in batch.to_pylist())


def plain(value: Any) -> Any:
    """With numbers as short as fp32 may be written: .9, where fp64 has .8999999761581421."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def said(value: Any) -> str:
    """As JSON in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _cell(value: Any) -> Any:
    return said(value) if isinstance(value, bool | list) else value
