"""A folder of numbered pictures as a clip: frame i is the i-th by number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from finepseudo.errors import DecodeError
from finepseudo.storage.store import Store

ACCESS = "pictures"
NUMBERED = re.compile(r"(?P<series>.*?)(?P<number>\d+)(?P<ending>\.(jpg|jpeg|png))", re.IGNORECASE)


class Pictures:
    """The numbered pictures of a folder; other files in it are left alone. They are read one by one.

    Raises DecodeError: there are none, of several series (such as flow beside colour), or two of one number.
    """

    def __init__(self, folder: Store, sizes: Mapping[str, int], keep_bytes: int) -> None:
        self.folder, self.names = folder, _in_order(sizes)
        self.bytes = sum(sizes[name] for name in self.names)
        listed = repr([(name, sizes[name]) for name in self.names])
        # Names and sizes tell whether these are the pictures that were probed; to read all for that is too much.
        self.access = f"{ACCESS} {hashlib.sha256(listed.encode()).hexdigest()[:12]}"
        self._room, self._kept = keep_bytes, dict[int, bytes]()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> bytes:
        """One picture's bytes."""
        found = self._kept.get(number)
        return self.folder.read(self.names[number]) if found is None else found

    def keep(self, numbers: Iterable[int]) -> None:
        """Read some beforehand, as far as there is room for them."""
        for number in set(numbers) & set(range(len(self))) - self._kept.keys():
            self._keep(number, self.read(number))

    def identity(self) -> str:
        """SHA-256 over names and bytes of all."""
        state = hashlib.sha256()
        for number, name in enumerate(self.names):
            data = self.read(number)
            self._keep(number, data)
            state.update(f"{name}\n{hashlib.sha256(data).hexdigest()}\n".encode())
        return state.hexdigest()

    def _keep(self, number: int, data: bytes) -> None:
        if len(data) <= self._room:
            self._kept[number] = data
            self._room -= len(data)

    def close(self) -> None:
        """As a file has it."""


def _in_order(names: Iterable[str]) -> list[str]:
    found = {name: match for name in names if (match := NUMBERED.fullmatch(name))}
    if not found:
        raise DecodeError("a folder without numbered pictures, such as 00001.jpg")
    series = sorted({f"{match['series']}*{match['ending'].lower()}" for match in found.values()})
    if len(series) > 1:
        raise DecodeError(f"a folder of several series of pictures, expected one: {', '.join(series[:4])}")
    numbers: dict[int, str] = {}
    for name, match in sorted(found.items()):
        twin = numbers.setdefault(int(match["number"]), name)
        if twin != name:
            raise DecodeError(f"two pictures of one number: {twin}, {name}")
    return [numbers[number] for number in sorted(numbers)]
