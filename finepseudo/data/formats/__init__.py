"""From annotation files and folders of videos to one table of clips.

A reader is a function in a file of this package that yields an `Annotation` for every entry of its source; its name
stands in `READERS`. `rows.py` checks what holds of all forms: ids, labels, splits.
"""

from __future__ import annotations

import logging
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.data.formats import finediving, finegym, own, something, ucf_hmdb
from finepseudo.data.formats.entries import ENDINGS, Annotation, Source, id_of, shown, shown_some
from finepseudo.data.formats.match import Template, expand, folder_of, hashes, repeated, take, texts, texts_of
from finepseudo.data.formats.rows import CLIPS, Rows
from finepseudo.errors import ManifestError
from finepseudo.fields import nearest
from finepseudo.recipe import Data
from finepseudo.storage.store import Store
from finepseudo.storage.tables import pc

log = logging.getLogger("finepseudo")

READERS: dict[str, Callable[[Source], Iterator[Annotation]]] = {
    "json": own.json_list,
    "table": own.table,
    "parquet": own.parquet,
    "list": own.lines,
    "folders": own.folders,
    "diving48": own.json_list,
    "finediving": finediving.clips,
    "finegym": finegym.elements,
    "finegym_whole": finegym.whole_videos,
    "hmdb51": ucf_hmdb.hmdb51,
    "kinetics400": own.table,
    "something_v2": something.clips,
    "ucf101": ucf_hmdb.ucf101,
}
"""By `data.format`."""
BY_ENDING = {".json": "json", ".csv": "table", ".tsv": "table", ".parquet": "parquet", ".txt": "list", "": "folders"}
"""The format where `data.format` is empty. A name without an ending, or with a `/` behind it, is a folder."""


@dataclass(frozen=True)
class Understood:
    """What reading a collection found."""

    clips: dict[str, int]  # by split
    labelled: dict[str, int]
    classes: int
    smallest: int  # labelled training clips of a class
    largest: int
    missing: int | None  # files that are not there; None: nobody has looked yet
    surprises: tuple[str, ...]

    def __str__(self) -> str:
        counts = [f"{count} {split} clips ({self.labelled[split]} labelled)" for split, count in self.clips.items()]
        files = "" if self.missing is None else f"; {self.missing} of their files are missing"
        each = f"{self.smallest} to {self.largest} labelled training clips"
        return f"{', '.join(counts)}{files}; {self.classes} classes of {each}"


@dataclass(frozen=True)
class Collection:
    """All clips of a data set, its class names by label, and what was understood."""

    clips: pa.Table  # as CLIPS
    class_names: list[str]
    understood: Understood


def read_annotations(store: Store, data: Data) -> tuple[pa.Table, list[str]]:
    """All clips of a data set as CLIPS has them, and its class names, by label; says what was understood.

    Raises ManifestError where a file is missing or not of its form, an id is unsafe or occurs twice, or a label is not
    in the vocabulary.
    """
    found = read_collection(store, data)
    log.info("annotations: %s", found.understood)
    for surprise in found.understood.surprises:
        log.warning("annotations: %s", surprise)
    return found.clips, found.class_names


def read_collection(store: Store, data: Data, *, find_files: bool = True) -> Collection:
    """As `read_annotations`, with what was understood.

    Args:
        find_files: False: open no folder of videos, which may be one of millions; where `data.videos` leaves it open, a
            file is a name that Template.places completes.
    """
    template = Template(data.videos)
    rows = Rows(template)
    for source in _sources(store, data, anywhere=template.anywhere):
        rows.begin(source)
        for annotation in _reader(data.format, source)(source):
            rows.add(annotation)
    names = _vocabulary(Source(store, data.vocab), data.format) if data.vocab else rows.named()
    clips, missing = rows.table(names, vocabulary=bool(data.vocab)), None
    if template.open and find_files:
        clips, missing = rows.with_files(clips, store)
    if not len(clips) and not data.unlabelled:
        raise ManifestError(f"{store.uri(data.train)}: no clips")
    if data.unlabelled and find_files:
        unnamed = _unnamed(store, posixpath.normpath(data.unlabelled).removeprefix("."), clips)
        clips = pa.concat_tables([clips, unnamed])
        if not len(unnamed):
            rows.notes[f"data.unlabelled = {data.unlabelled!r}: no video that is not named"] = 1
    return Collection(clips, names, _understood(clips, names, missing, rows.notes))


def _sources(store: Store, data: Data, *, anywhere: bool) -> Iterator[Source]:
    """The files of both splits, each once: a file may hold both, and say so in a column."""
    notes, seen = Counter[str](), set[str]()
    for split, file in (("train", data.train), ("test", data.test)):
        files = sorted(expand(store, file)) if "*" in file else [file] if file else []
        if file and not files:
            raise ManifestError(f"{store.uri(file)}: no such annotation files; set --data.root to their folder")
        for each in files:
            if each not in seen:
                yield Source(store, each, split, anywhere, notes)
        seen |= {*files}


def _reader(form: str, source: Source) -> Callable[[Source], Iterator[Annotation]]:
    ending = "" if source.file.endswith("/") else PurePosixPath(source.file).suffix.lower()
    if not form and ending not in BY_ENDING:
        known = ", ".join(filter(None, BY_ENDING))
        raise source.fault(
            None, f": expected annotations in a file ending in {known}, got {ending!r}; or set data.format"
        )
    name = form or BY_ENDING[ending]
    if name not in READERS:
        raise ManifestError(f"data.format: no {name!r}{nearest(name, READERS)}; there are {', '.join(READERS)}")
    return READERS[name]


def _vocabulary(source: Source, form: str) -> list[str]:
    if source.file.lower().endswith(".json"):
        body = source.json()
        if isinstance(body, dict) and sorted(map(str, body.values())) == sorted(map(str, range(len(body)))):
            body = sorted(body, key=lambda name: int(body[name]))  # Something-Something: {name: "number"}
    else:
        lines = [text for _, text in source.texts()]
        body = finegym.categories(lines) or (form == "ucf101" and ucf_hmdb.numbered(lines)) or lines
    if not isinstance(body, list) or len(body) < 2:
        raise source.fault(None, f": expected a JSON list of at least two classes, got {shown(body)}")
    names = ["-".join(map(str, item)) if isinstance(item, list) else str(item) for item in body]
    names = [unicodedata.normalize("NFC", name) for name in names]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise source.fault(None, f": class names occur twice: {', '.join(twice)}")
    return names


def _unnamed(store: Store, pattern: str, clips: pa.Table) -> pa.Table:
    """Clips without a label: the videos of a folder, or of a pattern, that no annotation names."""
    videos = texts(file for file in expand(store, pattern) if file.lower().endswith(ENDINGS))
    unnamed = ~np.isin(hashes(texts_of(videos)), hashes(texts_of(clips["file"])))
    files = texts(take(videos, np.flatnonzero(unnamed)))
    folder, taken = f"{folder_of(pattern)}/".lstrip("/"), hashes(texts_of(clips["video_id"]))
    ids = texts(id_of(file.removeprefix(folder)) for file in texts_of(files))
    pairs = zip(texts_of(files), texts_of(ids), _clash(ids, taken), strict=True)
    ids = texts(id_of(f"{file}.") if clash else video_id for file, video_id, clash in pairs)
    for row in np.flatnonzero(_clash(ids, taken))[:1]:
        (file,), (video_id,) = take(files, row[None]), take(ids, row[None])
        raise ManifestError(f"{store.uri(file)}: another clip has the id {video_id!r}; rename the file")
    columns: dict[str, Any] = {name: pa.nulls(len(files), CLIPS.field(name).type) for name in CLIPS.names}
    columns |= {"video_id": ids, "file": files, "seconds": np.zeros(len(files), bool)}
    return pa.Table.from_pydict(columns | {"split": texts("train" for _ in range(len(files)))}, CLIPS)


def _clash(ids: pa.ChunkedArray, taken: np.ndarray) -> np.ndarray:
    keys = hashes(texts_of(ids))
    clash = np.isin(keys, taken)
    clash[repeated(keys)] = True
    return clash


def _understood(clips: pa.Table, names: list[str], missing: int | None, notes: Counter[str]) -> Understood:
    test = pc.equal(clips["split"], "test").to_numpy()
    labels = pc.fill_null(clips["label"], -1).to_numpy()
    each = np.bincount(labels[(labels >= 0) & ~test], minlength=len(names))
    splits = {"train": ~test, "test": test}
    surprises = [text.replace("{}", str(count)) for text, count in notes.items()]

    def some(column: str, rows: np.ndarray) -> str:
        return shown_some(list(take(clips[column], rows[:6])))

    if not each.all():
        none = [names[label] for label in np.flatnonzero(each == 0)]
        surprises.append(f"{len(none)} of {len(names)} classes have no labelled training clip: {shown_some(none)}")
    if missing and missing == len(clips):
        surprises.append(f"no file is there, such as {some('file', np.arange(1))}; does data.videos fit?")
    files = hashes(texts_of(clips["file"]))
    both = np.flatnonzero(np.isin(files, files[test]) & ~test)
    if len(both):
        surprises.append(f"{len(both)} training clips are of files that have test clips too: {some('file', both)}")
    starts, ends = (pc.fill_null(clips[name], -1.0).to_numpy().view(np.int64) for name in ("start", "end"))
    twice = repeated(files + 31 * starts + 37 * ends)
    if len(twice):
        surprises.append(f"{len(twice)} clips are the same file under several ids: {some('video_id', twice)}")
    return Understood(
        clips={split: int(rows.sum()) for split, rows in splits.items()},
        labelled={split: int((rows & (labels >= 0)).sum()) for split, rows in splits.items()},
        classes=len(names),
        smallest=int(each.min()),
        largest=int(each.max()),
        missing=missing,
        surprises=tuple(surprises),
    )
