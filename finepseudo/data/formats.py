"""Readers of annotation files. Each returns `Annotation` rows or says which file, row and field is wrong."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from finepseudo.errors import ManifestError
from finepseudo.recipe import Data
from finepseudo.storage.store import Store

ENDINGS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv")
"""Of files that are taken for videos where no annotation names them."""
UNKNOWN = (None, "", -1)  # labels that say that there is none
IDS = ("video_id", "vid_name", "id", "youtube_id")
FILES = ("file", "path")
SPANS = (("start_frame", "end_frame"), ("start_s", "end_s"))


@dataclass(frozen=True)
class Annotation:
    """A clip: a file or a part of one, with a label or without."""

    video_id: str  # names the clip everywhere
    label: int | None
    split: str
    where: str = field(compare=False)  # file and entry, for errors
    file: str = ""  # below the root; empty: `data.videos` turns the id into it
    start: float | None = None  # of the part, in frames or seconds; None: the file's own beginning
    end: float | None = None  # exclusive
    seconds: bool = False  # what start and end are counted in

    @property
    def name(self) -> str:
        """The id without the part: what `data.videos` makes a path of."""
        return self.video_id.removesuffix(self._part)

    def path(self, videos: str) -> str:
        """Of the file, below the root; `videos` makes one of the name where no file is given."""
        return self.file or videos.format(video_id=self.name)

    @property
    def _part(self) -> str:
        return f"@{self.start or 0:g}-{'' if self.end is None else f'{self.end:g}'}"

    def of_several(self) -> Annotation:
        """With an id of its own, where a file has several parts."""
        return replace(self, video_id=self.video_id + self._part)


def read_annotations(store: Store, data: Data) -> tuple[Any, list[str]]:
    import pyarrow as pa

    rows, names = read_rows(store, data)
    kinds = {"video_id": pa.string(), "file": pa.string(), "label": pa.int32(), "split": pa.string()}
    kinds |= {"start": pa.float64(), "end": pa.float64(), "seconds": pa.bool_(), "entry": pa.int32()}
    return pa.Table.from_pylist(
        [{**vars(row), "file": row.path(data.videos), "entry": 0} for row in rows], schema=pa.schema(kinds)
    ), names


def read_rows(store: Store, data: Data) -> tuple[list[Annotation], list[str]]:
    """All clips of a data set, and its class names, by label.

    Raises ManifestError where a file is missing or not of its form, an id is unsafe or occurs twice, or a label is not
    in the vocabulary.
    """
    entries: list[tuple[dict[str, Any], str, str]] = []
    for split, file in (("train", data.train), ("test", data.test)):
        if file:
            entries += [(entry, split, where) for entry, where in _entries(store, file)]
    names = _vocabulary(store, data.vocab) if data.vocab else _named(entries)
    rows = [_annotation(entry, split, where, names) for entry, split, where in entries]
    times = Counter(row.video_id for row in rows)
    rows = [row.of_several() if times[row.video_id] > 1 and _is_part(row) else row for row in rows]
    seen: dict[str, str] = {}
    for row in rows:
        if row.video_id in seen:
            raise ManifestError(
                f"{row.where}: video id {row.video_id!r} occurs twice (first in {seen[row.video_id]}); every clip "
                "needs an id of its own, and no clip may be in two splits"
            )
        seen[row.video_id] = row.where
    if "*" in data.videos:
        rows = _found(store, data.videos, rows)
    if data.unlabelled:
        rows += _unnamed(store, data, rows)
    return rows, names


def json_list(store: Store, file: str) -> Iterator[tuple[dict[str, Any], str]]:
    """A JSON list of objects, as Diving48 has: `{"vid_name", "label", "start_frame", "end_frame"}`."""
    body = _json(store, file)
    if not isinstance(body, list) or not body:
        raise ManifestError(f"{store.uri(file)}: expected a non-empty JSON list of clips, got {_shown(body)}")
    for number, entry in enumerate(body):
        where = f"{store.uri(file)}, entry {number}"
        if not isinstance(entry, Mapping) or not {*IDS, *FILES} & entry.keys():
            example = '{"vid_name": "abc_00001", "label": 3, "start_frame": 0, "end_frame": 99}'
            raise ManifestError(f"{where}: expected vid_name or file, got {_shown(entry)}; a correct entry: {example}")
        yield dict(entry), where


def table(store: Store, file: str) -> Iterator[tuple[dict[str, Any], str]]:
    """CSV with a header: an id or a file, and label, start_frame and end_frame or start_s and end_s where known.

    Kinetics' own columns too: `label,youtube_id,time_start,time_end,split,is_cc` names `<id>_<start>_<end>`.
    """
    rows = csv.DictReader(io.StringIO(_text(store, file), newline=""), skipinitialspace=True)
    if not {*IDS, *FILES} & {*(rows.fieldnames or ())}:
        raise ManifestError(
            f"{store.uri(file)}, line 1: expected a header with one of {', '.join(IDS + FILES)}, got {rows.fieldnames}"
        )
    for row in rows:
        where = f"{store.uri(file)}, line {rows.line_num}"
        if None in row or None in row.values():
            raise ManifestError(f"{where}: expected {len(rows.fieldnames or ())} columns, got another number")
        entry: dict[str, Any] = dict(row)
        if {"youtube_id", "time_start", "time_end"} <= entry.keys():
            first, last = (_whole(entry[key], where, key) for key in ("time_start", "time_end"))
            entry = {"video_id": f"{entry['youtube_id']}_{first:06d}_{last:06d}", "label": entry.get("label")}
        yield entry, where


def lines(store: Store, file: str) -> Iterator[tuple[dict[str, Any], str]]:
    """`path label` or `path` on each line, as mmaction2 and UCF101 have; paths may hold blanks."""
    for number, line in enumerate(_text(store, file).splitlines(), start=1):
        if text := line.strip():
            path, _, label = text.rpartition(" ") if not text.lower().endswith(ENDINGS) else (text, "", "")
            yield {"file": path.rstrip() or label, "label": label if path else ""}, f"{store.uri(file)}, line {number}"


READERS: dict[str, Callable[[Store, str], Iterator[tuple[dict[str, Any], str]]]] = {
    ".json": json_list,
    ".csv": table,
    ".txt": lines,
}
"""By the ending of the file's name: (store, file) -> entries, and where each stands. `_annotation` checks what holds of
all: ids, labels, parts."""


def _entries(store: Store, file: str) -> Iterator[tuple[dict[str, Any], str]]:
    ending = PurePosixPath(file).suffix.lower()
    if ending not in READERS:
        endings = ", ".join(READERS)
        raise ManifestError(f"{store.uri(file)}: expected annotations in a file ending in {endings}, got {ending!r}")
    return READERS[ending](store, file)


def _annotation(entry: Mapping[str, Any], split: str, where: str, names: list[str]) -> Annotation:
    file = next((entry[key] for key in FILES if entry.get(key)), "")
    key = next((key for key in IDS if key in entry), "")
    video_id = entry[key] if key else id_of(file) if isinstance(file, str) else file
    _check_id(video_id, where, key or "file")
    if not isinstance(file, str) or file.startswith("/") or ".." in PurePosixPath(file).parts or "://" in file:
        raise ManifestError(f"{where}, field file: expected a path below the data's folder, got {file!r}")
    label, folder = _label(entry, where, video_id, names), PurePosixPath(file).parent.name
    if label is not None and folder in names and names[label] != folder:
        raise ManifestError(
            f"{where}, field label: {label} is class {names[label]!r}, but the file lies in the folder of {folder!r} "
            f"({names.index(folder)}); do the labels count from 1, or in another order than the vocabulary?"
        )
    start, end, seconds = _span(entry, where)
    return Annotation(video_id, label, split, where, file, start, end, seconds)


def id_of(file: str) -> str:
    """The id of a clip that is known by its path alone: without the ending, `~` between the folders."""
    return str(PurePosixPath(file).with_suffix("")).replace("/", "~")


def _check_id(video_id: Any, where: str, name: str) -> None:
    """Refuse ids that could leave the folder of the videos or break a file name."""
    if (
        not isinstance(video_id, str)
        or not 0 < len(video_id) <= 200
        or any(text in video_id for text in ("/", "\\", ".."))
        or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in video_id)  # lone surrogates too
    ):
        raise ManifestError(
            f"{where}, field {name}: expected a non-empty name without '/', '\\', '..' or control characters, "
            f"got {video_id!r}"
        )


def _label(entry: Mapping[str, Any], where: str, video_id: str, names: list[str]) -> int | None:
    """A class, by number or by name; None where nothing is known."""
    label = entry.get("label")
    if not isinstance(label, bool) and not isinstance(label, float) and label in UNKNOWN:
        return None
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        label = int(label) if label.isascii() and label.isdigit() else label
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(names):
        raise ManifestError(
            f"{where}, field label: expected an integer from 0 to {len(names) - 1} (the vocabulary has {len(names)} "
            f"classes), the name of a class, or nothing, got {label!r} for {video_id!r}"
        )
    return label


def _span(entry: Mapping[str, Any], where: str) -> tuple[float | None, float | None, bool]:
    """Start and end of a part of a file, and whether these are seconds."""
    given = [[entry.get(key) for key in keys] for keys in SPANS]
    given = [[None if value == "" else value for value in pair] for pair in given]
    if all(any(value is not None for value in pair) for pair in given):
        raise ManifestError(f"{where}: expected start and end in frames or in seconds, got both")
    seconds = any(value is not None for value in given[1])
    values: list[float | None] = []
    for key, value in zip(SPANS[seconds], given[seconds], strict=True):
        number = value if value is None else _number(value, where, key) if seconds else _whole(value, where, key)
        values.append(number)
    start, end = values
    if end is not None and end <= (start or 0):
        raise ManifestError(f"{where}, field {SPANS[seconds][1]}: expected more than {start or 0:g}, got {end:g}")
    return start, end, seconds


def _whole(value: Any, where: str, name: str) -> int:
    number = _number(value, where, name)
    if number != int(number):
        raise ManifestError(f"{where}, field {name}: expected a whole number, got {value!r}")
    return int(number)


def _number(value: Any, where: str, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ManifestError(f"{where}, field {name}: expected a number from 0, got {value!r}")
    return number


def _is_part(row: Annotation) -> bool:
    return row.start is not None or row.end is not None


def _found(store: Store, template: str, rows: list[Annotation]) -> list[Annotation]:
    """Rows with their files, where `data.videos` leaves the ending open (`videos/{video_id}.*`)."""
    folder, _, name = template.rpartition("/")
    if "{" in folder or not name.endswith(".*"):
        raise ManifestError(f"data.videos: expected a path such as videos/{{video_id}}.*, got {template!r}")
    there: dict[str, list[str]] = {}
    for found in store.list(folder):
        there.setdefault(found.rpartition(".")[0], []).append(found)
    files: list[str] = []
    for row in rows:
        stem = name.removesuffix(".*").format(video_id=row.name)
        matches = there.get(stem, [])
        if len(matches) > 1:
            raise ManifestError(f"{row.where}: several files for {row.video_id!r}: {', '.join(matches)}")
        files.append(row.file or "/".join(filter(None, (folder, matches[0] if matches else stem))))
    return [replace(row, file=file) for row, file in zip(rows, files, strict=True)]


def _unnamed(store: Store, data: Data, rows: list[Annotation]) -> list[Annotation]:
    """Clips without a label: the videos below a folder that no annotation names."""
    named = {row.path(data.videos) for row in rows}
    ids = {row.video_id for row in rows}
    found: list[Annotation] = []
    for file in _below(store, data.unlabelled.strip("/")):
        if file not in named:
            inner = file.removeprefix(f"{data.unlabelled.strip('/')}/")
            video_id = id_of(inner) if id_of(inner) not in ids else id_of(file)
            where = store.uri(file)
            _check_id(video_id, where, "name")
            if video_id in ids:
                raise ManifestError(f"{where}: another clip has the id {video_id!r}; rename the file")
            ids.add(video_id)
            found.append(Annotation(video_id, None, "train", where, file))
    return found


def _below(store: Store, folder: str) -> Iterator[str]:
    for name in store.list(folder):
        path = f"{folder}/{name}"
        if name.lower().endswith(ENDINGS):
            yield path
        elif "." not in name:
            yield from _below(store, path)


def _named(entries: list[tuple[dict[str, Any], str, str]]) -> list[str]:
    """Class names, in their order, where the annotations name classes and no vocabulary does."""
    labels = {entry.get("label") for entry, _, _ in entries} - {*UNKNOWN}
    if len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        got = _shown(sorted(map(str, labels)))
        raise ManifestError(f"data.vocab is empty, so labels must be names of at least two classes, got {got}")
    return sorted(map(str, labels))


def _vocabulary(store: Store, file: str) -> list[str]:
    body = _json(store, file) if file.lower().endswith(".json") else _text(store, file).splitlines()
    if not isinstance(body, list) or len(body) < 2:
        raise ManifestError(f"{store.uri(file)}: expected a JSON list of at least two classes, got {_shown(body)}")
    names = ["-".join(map(str, item)) if isinstance(item, list) else str(item) for item in body]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ManifestError(f"{store.uri(file)}: class names occur twice: {', '.join(sorted(twice))}")
    return names


def _json(store: Store, file: str) -> Any:
    try:
        return json.loads(_text(store, file))
    except ValueError as error:
        raise ManifestError(f"{store.uri(file)}: not JSON: {error}") from None


def _text(store: Store, file: str) -> str:
    try:
        return store.read(file).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ManifestError(
            f"{store.uri(file)}: no such annotation file; set --data.root to the folder that holds it"
        ) from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{store.uri(file)}: not text in UTF-8: {error}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
