"""Rows of `finepseudo.driver.predict` as a file: CSV, Parquet or JSON lines, some rows at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from finepseudo.errors import RecipeError
from finepseudo.labels.forms import write_csv, write_parquet

WINDOW = 4096  # rows that are held at a time

_TIMES: dict[str, pa.DataType] = {"start_s": pa.float64(), "end_s": pa.float64()}
_TOP: dict[str, pa.DataType] = {"label": pa.string(), "p": pa.float32()}
_NEAR: dict[str, pa.DataType] = {"video_id": pa.string(), "file": pa.string(), **_TIMES, "label": pa.string()}
_NEAR |= {"alignability": pa.float32()}
PREDICTION = pa.schema(
    {"video": pa.string(), **_TIMES, "first_frame": pa.int32(), "num_frames": pa.int32()}
    | {"label": pa.string(), "confidence": pa.float32(), "known": pa.bool_(), "knownness": pa.float32()}
    | {"top": pa.list_(pa.struct([*_TOP.items()]))}
    | {"label_A": pa.string(), "confidence_A": pa.float32(), "label_E": pa.string(), "confidence_E": pa.float32()}
    | {"near": pa.list_(pa.struct([*_NEAR.items()])), "path": pa.list_(pa.list_(pa.float64()))}
    | {"error": pa.string()}
)
"""The fields of a row, as `predict_videos` says them; error: why a clip could not be read, null where it could."""


@dataclass(frozen=True)
class _Predicted:
    rows: Iterable[dict[str, Any]]
    schema = PREDICTION

    def batches(self) -> Iterator[pa.Table]:
        left = iter(self.rows)
        while some := list(islice(left, WINDOW)):
            yield pa.Table.from_pylist(some, PREDICTION)


def _write_jsonl(predicted: _Predicted, file: Path) -> None:
    """An object a line, with all digits."""
    with file.open("w", encoding="utf-8") as sink:
        for row in predicted.rows:
            sink.write(json.dumps(row) + "\n")


_FORMS: dict[str, Callable[[_Predicted, Path], None]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".jsonl": _write_jsonl,
}


def ending_of(to: str) -> str:
    """Of a file's name, which says its form. Raises RecipeError: it says none."""
    found = next((ending for ending in _FORMS if to.lower().endswith(ending)), None)
    if found is None:
        raise RecipeError(f"--to {to}: its ending says no form; expected {', '.join(_FORMS)}")
    return found


def write_predictions(rows: Iterable[dict[str, Any]], ending: str, file: Path) -> None:
    """All rows, in the form of an ending."""
    _FORMS[ending](_Predicted(rows), file)
