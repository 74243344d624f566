"""Readers of published annotation files. Each returns `Annotation` rows or says which file, row and field is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from finepseudo.errors import ManifestError
from finepseudo.recipe import Data
from finepseudo.storage.store import Store


@dataclass(frozen=True)
class Annotation:
    video_id: str
    label: int
    split: str


def read_annotations(store: Store, data: Data) -> tuple[list[Annotation], list[str]]:
    """All annotated clips of a data set, and its class names, by label.

    Raises ManifestError where a file is missing or not of its form, an id is unsafe or occurs twice, or a label is not
    in the vocabulary.
    """
    names = _vocabulary(store, data.vocab)
    rows: list[Annotation] = []
    for split, file in (("train", data.train), ("test", data.test)):
        ending = PurePosixPath(file).suffix.lower()
        if ending not in READERS:
            raise ManifestError(f"{store.uri(file)}: expected a file of annotations ending in {', '.join(READERS)}")
        rows += READERS[ending](store, file, split, len(names))
    seen: dict[str, str] = {}
    for row in rows:
        if row.video_id in seen:
            raise ManifestError(
                f"{store.uri()}: video id {row.video_id!r} occurs twice ({seen[row.video_id]} and {row.split}); "
                "every clip needs an id of its own, and no clip may be in two splits"
            )
        seen[row.video_id] = row.split
    return rows, names


def diving48(store: Store, file: str, split: str, num_classes: int) -> list[Annotation]:
    """Rows of a Diving48 file: a JSON list of `{"vid_name", "label", "start_frame", "end_frame"}`."""
    body = _json(store, file)
    if not isinstance(body, list) or not body:
        raise ManifestError(f"{store.uri(file)}: expected a non-empty JSON list of clips, got {_shown(body)}")
    return [_diving48_row(store.uri(file), number, row, split, num_classes) for number, row in enumerate(body)]


def _diving48_row(file: str, number: int, row: Any, split: str, num_classes: int) -> Annotation:
    where = f"{file}, entry {number}"
    example = '{"vid_name": "abc_00001", "label": 3, "start_frame": 0, "end_frame": 99}'
    if not isinstance(row, Mapping) or not {"vid_name", "label"} <= row.keys():
        raise ManifestError(f"{where}: expected vid_name and label, got {_shown(row)}; a correct entry: {example}")
    video_id, label = row["vid_name"], row["label"]
    check_id(video_id, where)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < num_classes:
        raise ManifestError(
            f"{where}, field label: expected an integer from 0 to {num_classes - 1} (the vocabulary has "
            f"{num_classes} classes), got {label!r} for {video_id!r}"
        )
    return Annotation(video_id, label, split)


READERS: dict[str, Callable[[Store, str, str, int], list[Annotation]]] = {".json": diving48}
"""By the ending of the file's name: (store, file, split, number of classes) -> rows."""


def check_id(video_id: Any, where: str) -> None:
    """Refuse ids that could leave the folder of the videos or break a file name."""
    if (
        not isinstance(video_id, str)
        or not 0 < len(video_id) <= 200
        or any(text in video_id for text in ("/", "\\", ".."))
        or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in video_id)  # lone surrogates too
    ):
        raise ManifestError(
            f"{where}, field vid_name: expected a non-empty name without '/', '\\', '..' or control characters, "
            f"got {video_id!r}"
        )


def _vocabulary(store: Store, file: str) -> list[str]:
    body = _json(store, file)
    if not isinstance(body, list) or len(body) < 2:
        raise ManifestError(f"{store.uri(file)}: expected a JSON list of at least two classes, got {_shown(body)}")
    names = ["-".join(map(str, item)) if isinstance(item, list) else str(item) for item in body]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ManifestError(f"{store.uri(file)}: class names occur twice: {', '.join(sorted(twice))}")
    return names


def _json(store: Store, file: str) -> Any:
    try:
        return json.loads(store.read(file))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ManifestError(
            f"{store.uri(file)}: no such annotation file; set --data.root to the folder that holds it"
        ) from None
    except ValueError as error:
        raise ManifestError(f"{store.uri(file)}: not JSON: {error}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
