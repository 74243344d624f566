"""Annotations of all sources, checked against each other and against the class names, as one table."""

from __future__ import annotations

import bisect
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.data.formats.entries import Annotation, Source, id_of, shown, without_ending
from finepseudo.data.formats.match import CHUNK, Template, hashes, repeated, take, texts, texts_of
from finepseudo.errors import ManifestError
from finepseudo.storage.store import Store

UNKNOWN = ("", "-1", "int -1", "nan")  # labels that say that there is none, as `_key` writes them
SPLITS = {
    **dict.fromkeys(("train", "training", "unlabelled", "unlabeled"), "train"),
    **dict.fromkeys(("test", "testing", "val", "valid", "validate", "validation", "dev"), "test"),
}
"""What a column `split` may say. There are two splits: clips for validation are measured on, as those for tests are."""
CLIPS = pa.schema(
    {"video_id": pa.string(), "file": pa.string(), "label": pa.int32(), "split": pa.string()}
    | {"start": pa.float64(), "end": pa.float64(), "seconds": pa.bool_(), "where": pa.int32()}
)
"""A row is a clip. `file`: below the root. `start`, `end`: of a part, in frames or seconds. `where`: line or entry."""


class Rows:
    """Annotations on their way into columns, some at a time; labels are known by (label, folder) until all are read."""

    def __init__(self, template: Template) -> None:
        self.notes = Counter[str]()
        self._template = template
        self._sources: list[Source] = []
        self._begins: list[int] = []
        self._chunks: list[dict[str, pa.Array]] = []
        self._buffer: list[tuple[Any, ...]] = []
        self._keys = array("q")  # hashes of ids
        self._look = array("b")  # whether the file has to be looked for
        self._labels: dict[tuple[str, str], tuple[int, Any, str, str]] = {}  # -> code, label, first place and id
        self._said: dict[str, str] = {}  # what a column `split` says -> one of ours

    def begin(self, source: Source) -> None:
        self._sources.append(source)
        self._begins.append(len(self._keys))
        self.notes = source.notes

    def add(self, clip: Annotation) -> None:
        source, file, label = self._sources[-1], clip.file, _plain(clip.label)
        split = source.split
        if clip.split:
            split = self._said.get(str(clip.split)) or self._split(clip)
            if clip.split.strip().lower().startswith("unlabel") and _key(label) not in UNKNOWN:
                label = None
                self.notes["{} clips of split 'unlabelled' have a label, which is not used"] += 1
        known = (_key(label), file.rsplit("/", 2)[-2] if "/" in file else "")
        if known not in self._labels:
            place = source.store.uri(file) if clip.where is None else source.place(clip.where)
            self._labels[known] = (len(self._labels), label, place, clip.video_id)
        look = self._template.open and (not file or self._template.anywhere)
        if look or not file:
            file = self._template.path(clip.name or without_ending(file) or clip.video_id)
        self._keys.append(hash(clip.video_id))
        self._look.append(look)
        code = self._labels[known][0]
        self._buffer.append((clip.video_id, file, code, split, clip.start, clip.end, clip.seconds, clip.where))
        if len(self._buffer) == CHUNK:
            self._flush()

    def _split(self, clip: Annotation) -> str:
        split = SPLITS.get(clip.split.lower().strip()) if isinstance(clip.split, str) else None
        if split is None:
            problem = f", field split: expected train, val, test or unlabelled, got {clip.split!r}"
            raise self._sources[-1].fault(clip.where, problem)
        self._said[clip.split] = split
        if len({said.lower().startswith("test") for said, ours in self._said.items() if ours == "test"}) == 2:
            self.notes["clips of both 'val' and 'test' are measured on, as one split 'test'"] = 1
        return split

    def _flush(self) -> None:
        if self._buffer:
            columns = zip(CLIPS, zip(*self._buffer, strict=True), strict=True)
            arrays = {item.name: pa.array(column, item.type) for item, column in columns}
            # Copies: an array that was built keeps up to twice the memory that it needs.
            self._chunks.append({name: pa.concat_arrays([array, array[:0]]) for name, array in arrays.items()})
            self._buffer.clear()

    def named(self) -> list[str]:
        """Class names, in their order, where the annotations name classes and no vocabulary does."""
        labels = [label for (key, _), (_, label, _, _) in self._labels.items() if key not in UNKNOWN]
        names = {str(label) for label in labels}
        if len(names) < 2 or not all(type(label) in (str, int) for label in labels):
            what = shown(sorted(names)) if names else "no label at all; is there a column or field 'label'?"
            place = f"{self._sources[0].place(None)}: " if self._sources else ""
            said = f"{place}data.vocab is empty, so labels must be names of at least two classes, got {what}"
            raise ManifestError(said)
        return sorted(names, key=int if all(name.isdecimal() for name in names) else None)

    def table(self, names: list[str], *, vocabulary: bool) -> pa.Table:
        """All rows, with labels as CLIPS has them and ids of their own.

        Args:
            vocabulary: whether the class names are a vocabulary, whose numbers are labels too.
        """
        self._flush()
        index = {name.replace("_", " "): label for label, name in enumerate(names)}
        index |= {name: label for label, name in enumerate(names)}
        found = [self._class(known, index, names, vocabulary=vocabulary) for known in self._labels]
        classes = np.array(found, np.int32)
        for columns in self._chunks:
            labels = classes[columns["label"].to_numpy()]
            columns["label"] = pa.array(labels, mask=labels < 0)
        batches = [pa.RecordBatch.from_pydict(columns, schema=CLIPS) for columns in self._chunks]
        return self._with_own_ids(pa.Table.from_batches(batches, CLIPS))

    def _class(self, known: tuple[str, str], index: Mapping[str, int], names: list[str], *, vocabulary: bool) -> int:
        """The class of a label, by number or by name, in which `_` is a blank; -1 where nothing is known."""
        (key, folder), (_, label, place, video_id) = known, self._labels[known]
        if key in UNKNOWN:
            return -1
        text = label if isinstance(label, str) else "" if vocabulary else str(label)
        found = index.get(text, index.get(text.replace("_", " ")))
        if found is None:
            found = int(text) if text.isascii() and text.isdigit() else label
            if type(found) is not int or not 0 <= found < len(names):
                raise ManifestError(
                    f"{place}, field label: expected an integer from 0 to {len(names) - 1} (the vocabulary has "
                    f"{len(names)} classes), the name of a class, or nothing, got {shown(found)} for {video_id!r}"
                    + ("; do the labels count from 1?" if found == len(names) else "")
                )
        other = found if folder.isdigit() else index.get(folder, index.get(folder.replace("_", " "), found))
        if other != found:
            raise ManifestError(
                f"{place}, field label: {label} is class {names[found]!r}, but the file lies in the folder of "
                f"{folder!r} ({other}); do the labels count from 1, or in another order than the vocabulary?"
            )
        return found

    def _with_own_ids(self, clips: pa.Table) -> pa.Table:
        """Where ids occur twice, parts of a file get their times as well, and ids that are paths the ending."""
        keys = np.frombuffer(self._keys, np.int64).copy()
        twice = repeated(keys)
        if len(twice):
            ids = [_own_id(row) for row in clips.take(twice).to_pylist()]
            keys[twice] = hashes(ids)
            clips = _replace(clips, "video_id", twice, iter(ids))
        twice, seen = repeated(keys), dict[str, int]()
        for row, video_id in zip(twice.tolist(), take(clips["video_id"], twice), strict=True):
            if video_id in seen:
                raise ManifestError(
                    f"{self._place(clips, row)}: video id {video_id!r} occurs twice (first in "
                    f"{self._place(clips, seen[video_id])}); every clip needs an id of its own, and no clip may be in "
                    "two splits"
                )
            seen[video_id] = row
        return clips

    def _place(self, clips: pa.Table, row: int) -> str:
        source = self._sources[bisect.bisect_right(self._begins, row) - 1]
        (clip,) = clips.slice(row, 1).to_pylist()
        return source.store.uri(clip["file"]) if clip["where"] is None else source.place(clip["where"])

    def with_files(self, clips: pa.Table, store: Store) -> tuple[pa.Table, int]:
        """The files that were found for names, and how many were not."""
        rows = np.flatnonzero(np.frombuffer(self._look, np.int8))
        names = texts(take(clips["file"], rows))
        found, missing = self._template.find(store, names, lambda at: self._place(clips, int(rows[at])))
        return _replace(clips, "file", rows, texts_of(found)), missing


def _key(label: Any) -> str:
    """A label as text that tells 1, "1", True and 1.0 apart."""
    return label if type(label) is str else "" if label is None else f"{type(label).__name__} {label!r}"


def _plain(label: Any) -> Any:
    """A label without what nobody sees: blanks around it, other forms of the same letters, `.0` of a whole number."""
    if not isinstance(label, str):
        return label
    text = unicodedata.normalize("NFC", label.strip())
    return text.removesuffix(".0") if text.lstrip("-").removesuffix(".0").isdecimal() else text


def _own_id(row: Mapping[str, Any]) -> str:
    if row["start"] is not None or row["end"] is not None:
        return f"{row['video_id']}@{row['start'] or 0:.12g}-{'' if row['end'] is None else format(row['end'], '.12g')}"
    return id_of(f"{row['file']}.") if row["video_id"] == id_of(row["file"]) else row["video_id"]


def _replace(clips: pa.Table, name: str, rows: np.ndarray, values: Iterator[str]) -> pa.Table:
    """The table with other texts in some rows, given in order, of a column."""
    chosen = np.zeros(len(clips), bool)
    chosen[rows] = True
    new = (next(values) if other else text for text, other in zip(texts_of(clips[name]), chosen, strict=True))
    return clips.set_column(clips.column_names.index(name), name, texts(new))
