"""Lists of the labelled or unlabelled clips of a split, ours and those found in the wild, against the clips there are.

Forms: ids, `path`, `path label` or `dir/name frames label` on each line; JSON (a list, or ours with both and their
digests); numpy arrays of names.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.data.formats.entries import ENDINGS, IDS, Source, shown, shown_some, split_line
from finepseudo.data.formats.match import Lookup, hashes, tail, take, texts_of
from finepseudo.storage.store import Store, located

Entry = tuple[int, str, str]  # line or entry, name, label


@dataclass(frozen=True)
class ListReport:
    """What was understood of a list."""

    place: str
    entries: int
    matched: int  # different clips
    unmatched: tuple[str, ...]  # names that no clip has, with their lines
    repeated: int  # entries that name a clip once more
    without: tuple[int, ...]  # classes that have a labelled clip, but none in the list
    disagree: int  # entries whose label is another than the clip's
    offset: int | None  # what every label of the list is above the clip's; None: it varies, or there are none
    digest: str  # of the ids, in whatever order: equal lists have equal ones

    def lines(self, names: list[str]) -> Iterator[str]:
        """In a few sentences; the first says what there is, the others what may surprise."""
        yield f"{self.place}: {self.entries} entries, {self.matched} clips, digest {self.digest}"
        if self.unmatched:
            yield f"{len(self.unmatched)} entries match no clip: {shown_some(self.unmatched)}"
        if self.repeated:
            yield f"{self.repeated} entries name a clip that the list has already"
        if self.without:
            yield f"{len(self.without)} classes are not in it: {shown_some([names[label] for label in self.without])}"
        if self.offset:
            yield f"all its labels are the clips' {self.offset:+d}: it seems to count from {max(self.offset, 0)}"
        elif self.disagree:
            yield f"{self.disagree} of its labels are not those of the annotations, which are used"


def digest(ids: Iterable[str], *, in_order: bool = False) -> str:
    """Twelve digits by which two people can tell that they used the same clips; `in_order`: the ids are sorted."""
    state = hashlib.sha256()
    for video_id in ids if in_order else sorted(ids):
        state.update(f"{video_id}\n".encode())
    return state.hexdigest()[:12]


def read_list(store: Store, file: str, clips: pa.Table, *, half: str = "labelled") -> tuple[np.ndarray, ListReport]:
    """Row numbers, in order and each once, of the clips that a list names; and what was understood.

    Args:
        file: a path below the store's folder, or a URI.
        clips: columns video_id, path (or file) and label.
        half: which list of a JSON file that holds both, `labelled` or `unlabelled`.
    Raises ManifestError: the list is not there or not of its form, or a name fits two clips.
    """
    source = Source(*(located(file) if "://" in file or file.startswith("/") else (store, file)))
    entries, found = _found(source, half, clips)
    rows = np.unique(found[found >= 0])
    ids, labels = list(take(clips["video_id"], rows)), clips["label"]
    theirs = [int(text) if text.isascii() and text.isdigit() else None for _, _, text in entries]
    both = zip(theirs, take(labels, found), strict=True)
    above = [label - own for label, own in both if label is not None and own is not None]
    report = ListReport(
        place=source.place(None),
        entries=len(entries),
        matched=len(rows),
        unmatched=tuple(f"{name} ({where})" for (where, name, _), row in zip(entries, found, strict=True) if row < 0),
        repeated=int((found >= 0).sum()) - len(rows),
        without=_without(labels, rows),
        disagree=sum(difference != 0 for difference in above),
        offset=above[0] if len({*above}) == 1 else None,
        digest=digest(ids),
    )
    return rows, report


def overlap(labelled: np.ndarray, unlabelled: np.ndarray) -> str:
    """A sentence about clips that are in both lists; empty if there is none."""
    count = len(np.intersect1d(labelled, unlabelled))
    every = ", all labelled ones among them" if count == len(labelled) else ""
    return f"{count} clips are in the labelled and in the unlabelled list{every}" if count else ""


def _without(labels: pa.ChunkedArray, rows: np.ndarray) -> tuple[int, ...]:
    classes: list[Any] = labels.unique().to_pylist()
    return tuple(sorted({*classes} - {*take(labels, rows), None}))


def _found(source: Source, half: str, clips: pa.Table) -> tuple[list[Entry], np.ndarray]:
    """The entries of a list, and the row of each; -1 where no clip fits."""
    ending = source.file.rpartition(".")[2].lower()
    if ending == "npy":
        entries = [(where, value, "") for where, value in enumerate(_array(source).tolist())]
    elif ending == "json":
        entries = list(_json(source, half))
    else:
        entries = [(where, *split_line(text)) for where, text in source.texts()]
    if not entries:
        raise source.fault(None, ": expected a list of clips, got none")
    return entries, _match(source, entries, clips)


def _json(source: Source, half: str) -> Iterator[Entry]:
    body: Any = source.json()
    if isinstance(body, dict) and isinstance(body.get(half), list):
        told = body["digests"].get(half) if isinstance(body.get("digests"), dict) else None
        body = body[half]
        if told is not None and told != digest(map(str, body)):
            raise source.fault(
                None, f": its {half} list has the digest {digest(map(str, body))}, it says {told}; changed?"
            )
    if not isinstance(body, list):
        raise source.fault(None, f": expected a list of ids, or an object with {half!r}, got {shown(body)}")
    for where, entry in enumerate(body):
        name = next((entry[key] for key in IDS if key in entry), None) if isinstance(entry, dict) else entry
        if not isinstance(name, str):
            raise source.fault(where, f": expected an id, got {shown(entry)}")
        yield where, name, ""


def _array(source: Source) -> np.ndarray:
    try:
        values = np.load(io.BytesIO(source.body()), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise source.fault(None, f": not a numpy array of plain values: {error}") from None
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind != "U":
        raise source.fault(None, f": expected one row of ids or paths (of what would numbers be?), got {shown(values)}")
    return values


def _match(source: Source, entries: list[Entry], clips: pa.Table) -> np.ndarray:
    """By id, by path, by its two last parts, by the last one; endings do not count."""
    paths = clips["path" if "path" in clips.column_names else "file"]
    names = [_stem(name.replace("\\", "/")) for _, name, _ in entries]
    found, _ = Lookup(hashes(texts_of(clips["video_id"])))(hashes(name for _, name, _ in entries))
    ways: list[tuple[pa.ChunkedArray, Callable[[str], str]]] = [
        (clips["video_id"], str), (paths, _stem), (paths, lambda path: tail(_stem(path), 2)),
        (paths, lambda path: tail(_stem(path), 1)),
    ]  # fmt: skip
    for column, way in ways:
        left = np.flatnonzero(found < 0)
        if not len(left):
            break
        lookup = Lookup(hashes(way(text) for text in texts_of(column)))
        found[left], count = lookup(wanted := hashes(way(names[at]) for at in left))
        for at in np.flatnonzero(count > 1)[:1]:
            one, two = take(clips["video_id"], lookup.all(wanted[at])[:2])
            where, name, _ = entries[left[at]]
            raise source.fault(where, f": {name!r} fits two clips, {one!r} and {two!r}; give their ids")
    return found


def _stem(path: str) -> str:
    """Without the ending of a video."""
    return path.rpartition(".")[0] if path.lower().endswith(ENDINGS) else path
