"""What a reader gets and gives: a `Source` to read, an `Annotation` for every entry of it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from finepseudo.errors import ManifestError
from finepseudo.storage.store import Store

ENDINGS = (
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv"),
    *(".3gp", ".ogv", ".asf", ".vob", ".y4m"),
)
"""Of files that are taken for videos where no annotation names them, in lower or upper case."""
IDS = ("video_id", "vid_name", "id", "youtube_id")
FILES = ("file", "path")
LABEL, SPLIT = "label", "split"
SPANS = {key: pair for pair in (("start_frame", "end_frame"), ("start_s", "end_s"), ("start", "end")) for key in pair}
"""Fields that say a part, and the pair that each belongs to; all but the first are seconds."""
_UNSAFE = re.compile(r"[/\\\x00-\x1f\ud800-\udfff]|\.\.")  # could leave a folder, break a line or not be written
_OUTSIDE = re.compile(r"[\0\ud800-\udfff]|://|(?:^|/)\.\.(?:/|$)")
_MOST = 200  # characters of an id
_LISTED = re.compile(rf"(.*(?:{'|'.join(map(re.escape, ENDINGS))}))[\s,]+(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(slots=True)
class Annotation:
    """A clip as an annotation file has it: a file or a part of one, with a label or without."""

    video_id: str  # names the clip everywhere
    label: Any = None  # a number or a name of the vocabulary; None, "" or -1: there is none
    split: str = ""  # where the file has a column of it; empty: that of the file
    where: int | None = None  # line or entry of the file, for errors
    file: str = ""  # below the root; empty: `data.videos` makes a path of the name
    start: float | None = None  # of the part, in frames or seconds; None: the file's own beginning
    end: float | None = None  # exclusive
    seconds: bool = False  # what start and end are counted in
    name: str = ""  # what {video_id} in `data.videos` stands for, where it is not the id


@dataclass(frozen=True)
class Source:
    """An annotation file, or a folder, that a reader reads. It counts what may surprise, and names places in errors."""

    store: Store
    file: str
    split: str = "train"
    anywhere: bool = False  # `data.videos` has `**`: of a path, the name counts
    notes: Counter[str] = field(default_factory=Counter[str])  # a sentence with {} for the number of entries

    def place(self, where: int | None) -> str:
        unit = "line" if PurePosixPath(self.file).suffix.lower() in (".txt", ".csv", ".tsv") else "entry"
        return self.store.uri(self.file) + ("" if where is None else f", {unit} {where}")

    def fault(self, where: int | None, problem: str) -> ManifestError:
        """The error that names file and entry; `problem` begins with a colon or a comma."""
        return ManifestError(f"{self.place(where)}{problem}")

    def sibling(self, name: str) -> Source:
        """Another file of the same folder, as data sets have that keep names or times apart."""
        folder, slash, _ = self.file.rpartition("/")
        return replace(self, file=f"{folder}{slash}{name}")

    @contextmanager
    def opened(self) -> Iterator[Any]:
        try:
            with self.store.open(self.file) as file:
                yield file
        except OSError as error:
            wrong = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
            if isinstance(error, wrong) or error.errno == errno.EINVAL:
                raise self.fault(
                    None, ": no such annotation file; set --data.root to the folder that holds it"
                ) from None
            raise
        except UnicodeDecodeError as error:
            raise self.fault(None, f": not text in UTF-8: {error}") from None

    def lines(self) -> Iterator[str]:
        """As they are read, with their ends; the whole file is never in memory."""
        with self.opened() as file:
            yield from io.TextIOWrapper(file, encoding="utf-8-sig", newline="")

    def texts(self) -> Iterator[tuple[int, str]]:
        """Lines that hold something, without blanks around them, and their numbers from 1."""
        for number, line in enumerate(self.lines(), start=1):
            if text := line.strip():
                yield number, text

    def body(self) -> bytes:
        with self.opened() as file:
            return file.read()

    def json(self) -> Any:
        try:
            return json.loads("".join(self.lines()))
        except (ValueError, RecursionError) as error:
            raise self.fault(None, f": not JSON: {error}") from None


def of_mapping(entry: Mapping[str, Any], where: int, source: Source) -> Annotation:
    """An entry with named fields: an id or a file, and label, split, start and end where known."""
    file = next((entry[key] for key in FILES if entry.get(key)), "")
    key = next((key for key in IDS if key in entry), "")
    if key:
        check_id(entry[key], where, key, source)
    if file or not key:
        file = below(file, where, source)
    start, end, seconds = _span(entry, where, source)
    video_id = entry[key] if key else id_of(file)
    return Annotation(video_id, entry.get("label"), entry.get("split") or "", where, file, start, end, seconds)


def note_unused(names: Iterable[str], source: Source, also: Sequence[str] = ()) -> None:
    """Say which columns nobody reads: a part that is not understood would be the whole file."""
    unused = [name for name in names if name not in (*IDS, *FILES, *SPANS, LABEL, SPLIT, *also)]
    if unused:
        source.notes[f"columns that are not used: {shown_some(unused)} (start and end are {', '.join(SPANS)})"] = 1


def below(file: Any, where: int, source: Source) -> str:
    """A path below the root, which it may repeat."""
    path = file.removeprefix(f"{source.store.root}/") if isinstance(file, str) else ""
    if not path or path.startswith("/") or _OUTSIDE.search(path):
        raise source.fault(where, f", field file: expected a path below the data's folder, got {file!r}")
    return posixpath.normpath(path)


def without_ending(file: str) -> str:
    head, _, ending = file.rpartition(".")
    return file if "/" in ending or not head or head.endswith("/") else head


def id_of(file: str) -> str:
    """The id of a clip that is known by its path alone: without the ending, `~` between the folders.

    Paths that are too long or hold what an id may not are shortened and told apart by a digest.
    """
    stem = without_ending(file).replace("/", "~")
    if stem and len(stem) <= _MOST and not _UNSAFE.search(stem):
        return stem
    return f"{_UNSAFE.sub('_', stem)[:150]}~{hashlib.sha256(file.encode()).hexdigest()[:12]}"


def check_id(video_id: Any, where: int, name: str, source: Source) -> None:
    """Refuse ids that could leave the folder of the videos or break a file name."""
    if not isinstance(video_id, str) or not 0 < len(video_id) <= _MOST or _UNSAFE.search(video_id):
        raise source.fault(
            where,
            f", field {name}: expected a non-empty name without '/', '\\', '..' or control characters, "
            f"got {video_id!r}",
        )


def split_line(text: str) -> tuple[str, str]:
    """Path and label of a line: `path`, `path label` or `path frames label`; path and label may hold blanks."""
    if text.lower().endswith(ENDINGS):
        return text, ""
    if found := _LISTED.fullmatch(text):
        path, rest = found.groups()
        frames, _, label = rest.rpartition(" ")
        return path, label if frames.strip().isdigit() and label.isdigit() else rest
    parts = text.rsplit(maxsplit=2)
    if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
        return parts[0], parts[2]
    path, _, label = text.rpartition("," if text.rpartition(",")[2].strip().isdigit() else " ")
    return (path.rstrip(), label.strip()) if path else (text, "")


def _span(entry: Mapping[str, Any], where: int, source: Source) -> tuple[float | None, float | None, bool]:
    """Start and end of a part of a file, and whether these are seconds."""
    given = [key for key in SPANS if entry.get(key) not in (None, "")]
    if not given:
        return None, None, False
    keys = SPANS[given[0]]
    if not {*given} <= {*keys}:
        raise source.fault(where, ": expected start and end in frames or in seconds, got both")
    seconds, values = keys[0] != "start_frame", list[float | None]()
    for key in keys:
        value = entry.get(key)
        values.append(None if value in (None, "") else number(value, where, key, source, whole=not seconds))
    start, end = values
    if end is not None and end <= (start or 0):
        raise source.fault(where, f", field {keys[1]}: expected more than {start or 0:g}, got {end:g}")
    return start, end, seconds


def number(value: Any, where: int, name: str, source: Source, *, whole: bool) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise source.fault(where, f", field {name}: expected a number from 0, got {value!r}")
    if whole and found != int(found):
        raise source.fault(where, f", field {name}: expected a whole number, got {value!r}")
    return found


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def shown_some(values: Sequence[str], most: int = 5) -> str:
    return ", ".join(values[:most]) + (", ..." if len(values) > most else "")
