"""How a request becomes a file of this machine, within limits; what is refused, and in which words."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import Any

from finepseudo.errors import StorageError
from finepseudo.storage.store import Store

CHUNK = 1 << 20
PATIENCE_S = 5.0  # with the store of named videos
FORMS = ("multipart/", "application/json", "text/")  # of bodies that hold no video, or more than one


class RefusalError(Exception):
    """A request that gets no answer, with the status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Limits:
    """What a request may take, and name."""

    body: int  # bytes of a video
    seconds: float
    waiting: int  # requests that wait, beside the one that is answered
    root: str  # of videos that may be named; empty: none may


async def receive(request: Any, file: str, limits: Limits) -> None:
    """The body of a Starlette request, as a file. Raises RefusalError: it is too large, or of another form."""
    kind = request.headers.get("content-type", "").lower()
    if kind.startswith(FORMS):
        raise RefusalError(415, f"content-type {kind.partition(';')[0]}: expected the bytes of a video as the body")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > limits.body:
        raise _too_large(limits)
    size = 0
    with open(file, "wb") as sink:
        async for part in request.stream():
            size += len(part)
            if size > limits.body:
                raise _too_large(limits)
            sink.write(part)
    if not size:
        raise RefusalError(422, "empty: the body has 0 bytes, expected those of a video")


def fetch(path: str, file: str, limits: Limits, ends: float) -> None:
    """The file of a path below the root, copied. Raises RefusalError, and TimeoutError as `ends` passes."""
    if not limits.root:
        raise RefusalError(403, "path: this server takes no names of videos; send the bytes as the body")
    store = Store(limits.root, PATIENCE_S)
    _check_inside(store, path)
    try:
        with store.open(path) as source, open(file, "wb") as sink:
            size = 0
            while part := source.read(CHUNK):
                size += len(part)
                if size > limits.body:
                    raise _too_large(limits)
                if time.monotonic() > ends:
                    raise TimeoutError
                sink.write(part)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _not_there(path) from None
    except StorageError as error:
        raise RefusalError(502, f"path {path!r}: the store of videos did not give it") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise RefusalError(422, f"path {path!r}: not a regular file") from None
    if not size:
        raise RefusalError(422, f"empty: {path!r} has 0 bytes")


def _check_inside(store: Store, path: str) -> None:
    """A plain relative path alone: no way up, no other store, no hidden file, and no link that leads out."""
    segments = path.split("/")
    odd = any(part in ("", "..") or part.startswith(".") for part in segments) or "~" in segments[0]
    if odd or "::" in path or "://" in path or any(letter in path for letter in "\\\0*?[]") or not path.isprintable():
        raise RefusalError(403, f"path {path[:200]!r}: expected a plain path below the server's root, such as a/b.mp4")
    if place := store.on_disk(path):
        root = os.path.realpath(store.root)
        if os.path.commonpath([root, os.path.realpath(place)]) != root:
            raise _not_there(path)  # as one that is not there: what lies elsewhere is nobody's business


def _not_there(path: str) -> RefusalError:
    return RefusalError(404, f"path {path!r}: no such file below the server's root")


def _too_large(limits: Limits) -> RefusalError:
    return RefusalError(413, f"more than {limits.body} bytes, the largest video that this server takes")
