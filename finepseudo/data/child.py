"""A process that opens video files for others: a decoder may hang or crash on one, and must take down nobody else.

It is asked in lines of JSON and answers in lines of JSON, after which `data` bytes may follow, so nothing is unpickled.
What is wrong with a file is an answer about it (`error`). What is wrong with its store is not (`fault`): it is asked
again for a while, and then whatever is being done ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import random
import resource
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from finepseudo.data.pictures import Pictures
from finepseudo.errors import DecodeError, OutageError, StorageError
from finepseudo.storage.faults import Kind, kind_of, said
from finepseudo.storage.store import Store, located

if TYPE_CHECKING:
    from finepseudo.data.pack import How

START_S = 300.0  # longest wait for the process to be ready
READ_S = 240.0  # longest wait for the bytes of a file: more than a store's client takes to give up
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each new attempt at a store that did not answer, half of it by chance
PATIENCE_S = 5.0  # with a store, of one attempt
WHOLE = 64 << 20  # bytes up to which a file is read at once; of a larger one only what is decoded
CRASHED = "decoder crashed"
READ = b"read\n"  # said when the bytes are there: from here on the deadline is the decoder's
TRIES = 2  # after so many hangs or crashes a file is not opened again by this process: a plan may ask for it for hours
PARENT_S = 2.0  # between two looks at whether the process that asks is still there
SAMPLE = 1 << 20  # bytes of each of three places by which a larger file is known again
TAG, HEAD = "tag-", 1 << 16  # before an identity that was found without reading a file, beside its first bytes
ROOM = 8 << 30  # bytes of address space of the process, and four times what it is asked for: it may claim no more
SHOWN = ("height", "width", "access")  # what a row says of its file by the same names


class Child:
    """One process, and a deadline a file. A process that hangs or dies is replaced for the next file."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._fatal = Counter[str]()  # files that decoders hung or crashed on, and how often
        self._one_at_a_time = threading.Lock()

    def probe(self, uri: str, *, quick: bool = False) -> dict[str, Any]:
        """`num_frames, fps, height, width, access, bytes, sha256` of a video, or `error` with a reason.

        A quick look reads headers alone where these leave no doubt, and `sha256` is then a digest of the file's size,
        the store's tag and its first bytes, after TAG.
        Raises StorageError: the store refused; OutageError: it did not answer for about half a minute.
        """
        with self._one_at_a_time:
            return self._ask({"uri": uri, "quick": quick})[0]

    def frames(self, uri: str, row: Mapping[str, Any], index_F: list[int], height: int, width: int) -> np.ndarray:
        """Frames of the file of a manifest row or a plan row, uint8 FHWC.

        Raises DecodeError, with the reason; StorageError as `probe`.
        """
        shown = {"num_frames": row["file_frames"], **{name: row[name] for name in SHOWN}}
        request = {"uri": uri, "sha256": row["sha256"], "shown": shown, "index": index_F, "size": [height, width]}
        data = self._data(request)[1]
        return np.frombuffer(data, np.uint8).reshape(len(index_F), height, width, 3)

    def pack(self, uri: str, row: Mapping[str, Any], how: How) -> tuple[dict[str, Any], bytes]:
        """What `pack.pack` makes of the file of a manifest row. Raises as `frames`."""
        shown = {"num_frames": row["file_frames"], **{name: row[name] for name in (*SHOWN, "fps")}}
        found, data = self._data({"uri": uri, "sha256": row["sha256"], "shown": shown, "pack": vars(how)})
        return found, bytes(data)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _data(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytearray]:
        with self._one_at_a_time:
            found, data = self._ask(request)
        if "error" in found:
            raise DecodeError(f"{request['uri']}: {found['error']}")
        del found["data"]
        return found, data

    def _ask(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytearray]:
        if self._fatal[request["uri"]] >= TRIES:
            often = f"it hung or died on this file {TRIES} times, and is not asked again"
            return {"error": f"{CRASHED}: {often}"}, bytearray()
        found, data = self._ask_once(request)
        if found.get("error", "").startswith(CRASHED):  # it may have been killed for a reason of its machine's
            found, data = self._ask_once(request)
        for wait_s in WAITS_S:
            if "fault" not in found or found["refused"]:
                break
            time.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311  not a secret
            found, data = self._ask_once(request)
        if "fault" not in found:
            return found, data
        kind, how = OutageError, f"the store did not give it in {len(WAITS_S) + 1} attempts"
        if found["refused"]:
            kind, how = StorageError, "the store refuses"
        raise kind(f"{request['uri']}: {how}: {found['fault']}; when it is mended, the same command continues")

    def _ask_once(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytearray]:
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died before it was asked: its exit status is told below
            process.stdin.write(json.dumps(request).encode() + b"\n")
            line = self._line(READ_S)
            if line is None:
                return {"fault": f"not read within {READ_S:g} s", "refused": False}, bytearray()
            if line == READ:
                line = self._line(self.deadline_s)
            if line is None:
                self._fatal[request["uri"]] += 1
                return {"error": f"deadline: not decoded within {self.deadline_s:g} s"}, bytearray()
            found = json.loads(line) if line.endswith(b"\n") else None
            data = bytearray(found.get("data", 0)) if found else bytearray()
            if found and _filled(process.stdout, data):
                return found, data
        code = process.wait(timeout=10)
        self.close()
        self._fatal[request["uri"]] += 1
        return {"error": f"{CRASHED}: exit status {code}"}, bytearray()

    def _line(self, deadline_s: float) -> bytes | None:
        """The next line, empty where the process is gone; None, and the process killed, where none comes in time."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        if select.select([process.stdout], [], [], deadline_s)[0]:
            return process.stdout.readline()
        self.close()
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it died after its last answer: the next file is not to blame
        if self._process is None:
            command = [sys.executable, "-m", "finepseudo.data.child"]
            # Without a buffer: what lay in one would not be seen by `select`.
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            # The deadline is the file's: a busy machine may take longer than that to start an interpreter.
            if not self._line(START_S):
                self.close()
                raise DecodeError(f"the decoding process did not start within {START_S:g} s")
        return self._process


def _filled(stream: Any, data: bytearray) -> bool:
    """Read until the data is full; False where the stream ends before."""
    view = memoryview(data)
    while view:
        count = stream.readinto(view)
        if not count:
            return False
        view = view[count:]
    return True


def answer(request: Mapping[str, Any], read: Callable[[], None] = lambda: None) -> tuple[dict[str, Any], bytes]:
    """What the process does with one request; `read` is called when the file's bytes are there."""
    from finepseudo.data import probe, video

    quick = request.get("quick", False)
    try:
        with contextlib.closing(_opened(request["uri"].rstrip("/"))) as file:
            if isinstance(file, Pictures):
                source, size = file, file.bytes
                file.keep(request.get("index", ()))
                sha256 = request.get("sha256") or (f"{TAG}{file.access.split()[1]}" if quick else file.identity())
            else:
                size = file.seek(0, 2)
                file.seek(0)
                source = file.read() if size <= WHOLE and not quick else file
                if size == 0:
                    return {"error": "empty: the file has 0 bytes"}, b""
                tagged = quick or request.get("sha256", "").startswith(TAG)
                sha256 = _tagged(request["uri"], file) if tagged else identity(source, size)
            read()
            if request.get("sha256", sha256) != sha256:
                expected = f"expected sha256 {request['sha256'][:12]}, got {sha256[:12]} ({size} bytes)"
                return {"error": f"not the file that was probed: {expected}"}, b""
            try:
                if "shown" not in request:
                    shown = probe.glance(source) if quick else probe.examine(source)
                    return {**dataclasses.asdict(shown), "bytes": size, "sha256": sha256}, b""
                found, data = _made(source, request)
                return {**found, "data": len(data)}, data
            except Exception as error:
                if source is file and not isinstance(error, (DecodeError, *video.FAILURES)):
                    raise  # in the middle of reading
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise  # the disk on which a packed file is made is full
                text = getattr(error, "strerror", None) or str(error) or type(error).__name__
                return {"error": f"undecodable: {' '.join(text.split())[:200]}"}, b""
    except Exception as error:  # noqa: BLE001  clients of stores raise errors of many libraries
        return _told_apart(error), b""


def _opened(uri: str) -> Any:
    """A file, or the pictures of a folder."""
    store, name = located(uri)
    store = dataclasses.replace(store, patience_s=PATIENCE_S)
    file, failure = None, None
    try:
        file = store.open(name)
        if file.seek(0, 2):
            return file
    except (FileNotFoundError, IsADirectoryError) as error:
        failure = error
    folder = Store(uri, PATIENCE_S)
    if sizes := folder.sizes():
        return Pictures(folder, sizes, WHOLE)
    if failure:
        raise failure
    return file


def _made(source: Any, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What is asked for of a file that was probed."""
    from finepseudo.data import pack, video

    shown = video.Shown(**request["shown"])
    if "pack" in request:
        return pack.pack(source, shown, pack.How(**request["pack"]))
    return {}, video.frames(source, shown, request["index"], *request["size"]).tobytes()


def _told_apart(error: Exception) -> dict[str, Any]:
    """A file that is not there or none, a store that refuses, or one that did not answer this time."""
    text = said(error)
    if isinstance(error, DecodeError):
        return {"error": f"undecodable: {text}"}
    kind = kind_of(error)
    if kind is Kind.ABSENT or getattr(error, "errno", None) == errno.EINVAL:
        return {"error": f"unreadable: {text}"}
    away = isinstance(error, OutageError) or not (isinstance(error, StorageError) or kind is Kind.REFUSED)
    return {"fault": text, "refused": not away}


def identity(source: Any, size: int) -> str:
    """SHA-256 of a file; of one above WHOLE bytes that of its size, beginning, middle and end."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    state = hashlib.sha256(str(size).encode())
    for place in (0, size // 2, size - SAMPLE):
        source.seek(place)
        state.update(source.read(SAMPLE))
    return state.hexdigest()


def _tagged(uri: str, file: Any) -> str:
    """What a file is known again by without reading it: size, tag of the store, and first bytes."""
    store, name = located(uri)
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    return TAG + hashlib.sha256(store.tag(name).encode() + head).hexdigest()


def _serve() -> None:
    import finepseudo.data.video  # noqa: F401  seconds, before the first deadline runs

    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    lines, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"ready\n")
    answers.flush()

    def read() -> None:
        answers.write(READ)
        answers.flush()

    for line in lines:
        request = json.loads(line)
        height, width = request.get("size", (0, 0))
        wanted = len(request.get("index", ())) * height * width * 3
        # What a file makes a decoder ask for beyond this is an error about the file, and not the end of the machine.
        resource.setrlimit(resource.RLIMIT_AS, (ROOM + 4 * wanted, resource.RLIM_INFINITY))
        head, data = answer(request, read)
        answers.write(json.dumps(head).encode() + b"\n" + data)
        answers.flush()


def _follow(parent: int) -> None:
    """End with the process that asks, even while a decoder hangs."""
    while os.getppid() == parent:
        time.sleep(PARENT_S)
    os._exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve()
