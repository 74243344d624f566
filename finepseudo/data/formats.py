"""Readers of published annotation files. Each returns `Annotation` rows or says which file, row and field is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from finepseudo.errors import ManifestError
from finepseudo.recipe import Data
from finepseudo.storage.store import Store


@dataclass(frozen=True)
class Annotation:
    video_id: str  # names the clip everywhere; `data.videos` turns it into a path
    label: int
    split: str
    where: str = field(compare=False)  # file and entry, for errors


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
            endings = ", ".join(READERS)
            raise ManifestError(
                f"{store.uri(file)}: expected annotations in a file ending in {endings}, got {ending!r}"
            )
        rows += READERS[ending](store, file, split)
    seen: dict[str, str] = {}
    for row in rows:
        _check(row, len(names))
        if row.video_id in seen:
            raise ManifestError(
                f"{row.where}: video id {row.video_id!r} occurs twice (first in {seen[row.video_id]}); every clip "
                "needs an id of its own, and no clip may be in two splits"
            )
        seen[row.video_id] = row.where
    return rows, names


def diving48(store: Store, file: str, split: str) -> list[Annotation]:
    """A Diving48 file: a JSON list of `{"vid_name", "label", "start_frame", "end_frame"}`."""
    body = _json(store, file)
    if not isinstance(body, list) or not body:
        raise ManifestError(f"{store.uri(file)}: expected a non-empty JSON list of clips, got {_shown(body)}")
    rows: list[Annotation] = []
    for number, entry in enumerate(body):
        where = f"{store.uri(file)}, entry {number}"
        if not isinstance(entry, Mapping) or not {"vid_name", "label"} <= entry.keys():
            example = '{"vid_name": "abc_00001", "label": 3, "start_frame": 0, "end_frame": 99}'
            raise ManifestError(
                f"{where}: expected vid_name and label, got {_shown(entry)}; a correct entry: {example}"
            )
        rows.append(Annotation(entry["vid_name"], entry["label"], split, where))
    return rows


READERS: dict[str, Callable[[Store, str, str], list[Annotation]]] = {".json": diving48}
"""By the ending of the file's name: (store, file, split) -> rows. A reader parses; `_check` holds for all."""


def _check(row: Annotation, num_classes: int) -> None:
    """Refuse ids that could leave the folder of the videos or break a file name, and labels of no class."""
    video_id: Any = row.video_id
    label: Any = row.label
    if (
        not isinstance(video_id, str)
        or not 0 < len(video_id) <= 200
        or any(text in video_id for text in ("/", "\\", ".."))
        or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in video_id)  # lone surrogates too
    ):
        raise ManifestError(
            f"{row.where}, field vid_name: expected a non-empty name without '/', '\\', '..' or control characters, "
            f"got {video_id!r}"
        )
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < num_classes:
        raise ManifestError(
            f"{row.where}, field label: expected an integer from 0 to {num_classes - 1} (the vocabulary has "
            f"{num_classes} classes), got {label!r} for {video_id!r}"
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
