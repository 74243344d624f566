"""Names against files and rows, by sorted 64-bit hashes: ten million fit, and collide once in 300,000 collections."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.data.formats.entries import ENDINGS, without_ending
from finepseudo.errors import ManifestError
from finepseudo.storage.store import Store

CHUNK = 65_536


def hashes(values: Iterable[Hashable]) -> np.ndarray:
    """Of this process alone."""
    return np.fromiter((hash(value) for value in values), np.int64)


def texts_of(column: pa.ChunkedArray) -> Iterator[Any]:
    """The values of a column, some at a time."""
    for chunk in column.chunks:
        for at in range(0, len(chunk), CHUNK):
            yield from chunk.slice(at, CHUNK).to_pylist()


def texts(values: Iterator[str]) -> pa.ChunkedArray:
    """A column of texts that need not be in memory at once."""
    chunks: list[pa.Array] = []
    while chunk := list(islice(values, CHUNK)):
        chunks.append(pa.array(chunk, pa.string()))
    return pa.chunked_array(chunks, pa.string())


def take(column: pa.ChunkedArray, rows: np.ndarray) -> Iterator[Any]:
    """The values of some rows; None where a row is negative."""
    indices: Any = pa.array(rows, mask=rows < 0)
    for at in range(0, len(rows), CHUNK):
        yield from column.take(indices.slice(at, CHUNK)).to_pylist()


def repeated(keys: np.ndarray) -> np.ndarray:
    """Positions, in order, of all keys that occur more than once."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    found = np.zeros(len(keys), bool)
    found[1:] |= same
    found[:-1] |= same
    return np.sort(order[found])


class Lookup:
    """Which row has a key, and how many do."""

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def __call__(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first row of each key, -1 where there is none, and the number of rows."""
        first = np.searchsorted(self._sorted, wanted)
        count = np.searchsorted(self._sorted, wanted, side="right") - first
        rows = np.full(len(wanted), -1, np.int64)
        rows[count > 0] = self._order[first[count > 0]]
        return rows, count

    def all(self, key: Any) -> np.ndarray:
        first = int(np.searchsorted(self._sorted, key))
        return self._order[first : int(np.searchsorted(self._sorted, key, side="right"))]


def tail(path: str, parts: int) -> str:
    """The last parts of a path; 0: all."""
    return "/".join(path.rsplit("/", parts)[-parts:]) if parts else path


class Template:
    """`data.videos`, read: how names become paths, and whether files must be looked for."""

    anywhere = False  # files are found by their names, at any depth

    def __init__(self, text: str) -> None:
        self._text, self.open = text, "*" in text
        if self.open:
            found = re.fullmatch(r"((?:[^*{}]*/)?)(\*\*/)?([^*{}/]*)\{video_id\}([^*{}]*?)(\.\*)?", text)
            if not found:
                raise ManifestError(
                    "data.videos: expected a path such as videos/{video_id}.mp4, videos/{video_id}.* (any ending) or "
                    f"videos/**/{{video_id}}.* (at any depth), got {text!r}"
                )
            self._folder, deep, self._before, self._after, any_ending = found.groups()
            self.anywhere, self._any_ending = bool(deep), bool(any_ending)

    def path(self, name: str) -> str:
        """Below the root; where files are looked for, the end of their path, without an ending that is open."""
        return f"{self._before}{name}{self._after}" if self.open else self._text.replace("{video_id}", name)

    def places(self, name: str, label: str) -> Iterator[str]:
        """Where the file of a name that `path` made may lie, likely places first: as it is, or in a folder of a class.

        Any depth, and endings in upper case, are for `find`, which lists all files.
        """
        yield name
        if self.open:
            folders = ["", f"{label}/", f"{label.replace(' ', '_')}/"] if self.anywhere and label else [""]
            endings = ENDINGS if self._any_ending else ("",)
            yield from (f"{self._folder}{folder}{name}{ending}" for ending in endings for folder in folders)

    def find(self, store: Store, names: pa.ChunkedArray, place: Callable[[int], str]) -> tuple[pa.ChunkedArray, int]:
        """Paths of files for what `path` made of names, and how many are missing: those have the path to expect.

        With `**`, the two last parts of a name decide, or the last one alone where no file has both. Of two files, one
        in a folder `replacement` is taken: Kinetics has it for those that were published broken.
        Raises ManifestError where several files answer to one name; `place` says where it stands.
        """
        inside = (file.removeprefix(self._folder) for file in store.walk(self._folder.rstrip("/")))
        files = texts(file for file in inside if not self._any_ending or file.lower().endswith(ENDINGS))
        rows = np.full(len(names), -1, np.int64)
        for parts in (2, 1) if self.anywhere else (0,):
            left = np.flatnonzero(rows < 0)
            lookup = Lookup(hashes(tail(self._key(file), parts) for file in texts_of(files)))
            wanted = hashes(tail(name, parts) for name in take(names, left))
            rows[left], count = lookup(wanted)
            for at in np.flatnonzero(count > 1):
                choices = lookup.all(wanted[at])
                several = list(take(files, choices))
                better = [row for row, file in zip(choices, several, strict=True) if "replacement/" in file]
                if len(better) != 1:
                    (name,), some = take(names, left[at : at + 1]), ", ".join(several[:5])
                    raise ManifestError(f"{place(int(left[at]))}: several files for {name!r}: {some}")
                rows[left[at]] = better[0]
        found = zip(take(files, rows), texts_of(names), strict=True)
        return texts(self._folder + (file or name) for file, name in found), int((rows < 0).sum())

    def _key(self, file: str) -> str:
        return without_ending(file) if self._any_ending else file


def expand(store: Store, pattern: str) -> Iterator[str]:
    """Files below a folder, or those that a pattern names: `*` is any text in a name, `**` also across folders.

    Nothing else is special, since names may hold `[` and `?`; upper and lower case are one.
    """
    if "*" not in pattern:
        return store.walk(pattern.strip("/"))
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    parts = (special.get(part, re.escape(part)) for part in re.split(r"(\*\*/?|\*)", pattern))
    fits = re.compile("".join(parts), re.IGNORECASE | re.DOTALL)
    return (file for file in store.walk(folder_of(pattern)) if fits.fullmatch(file))


def folder_of(pattern: str) -> str:
    """The folder that a pattern looks in."""
    return pattern.partition("*")[0].rpartition("/")[0] if "*" in pattern else pattern.strip("/")
