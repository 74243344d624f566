"""Forms of plain tables: CSV, Parquet, JSON lines; a row an unlabelled clip, those without a label too."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finepseudo.labels.outcome import OUTCOME, Outcome

DIGITS = 7  # of a number in a text: what fp32 has


def write_csv(outcome: Outcome, file: Path) -> None:
    """A header, and a line a clip; lists are JSON, what is not there is empty."""
    with file.open("w", newline="", encoding="utf-8") as sink:
        lines = csv.writer(sink, lineterminator="\n")
        lines.writerow(OUTCOME.names)
        for row in rows(outcome.batches()):
            lines.writerow([_cell(value) for value in row.values()])


def write_parquet(outcome: Outcome, file: Path) -> None:
    """The schema OUTCOME, nested as it is."""
    with pq.ParquetWriter(file, OUTCOME, compression="zstd") as sink:
        for batch in outcome.batches():
            sink.write_table(batch)


def write_jsonl(outcome: Outcome, file: Path) -> None:
    """An object a line."""
    with file.open("w", encoding="utf-8") as sink:
        for row in rows(outcome.batches()):
            sink.write(said(row) + "\n")


def rows(batches: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    """Rows of OUTCOME for a text."""
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
