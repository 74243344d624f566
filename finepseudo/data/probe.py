"""Open each video once, before anything depends on it, in a child process that can be killed.

A decoder that hangs or crashes on a damaged file takes the child down, not the caller; the file gets a reason
and the next one a new child. The child speaks lines of JSON, so nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import select
import subprocess
import sys
from typing import Any

from finepseudo.errors import DecodeError
from finepseudo.storage.store import read_uri

START_S = 300.0  # longest wait for the child to be ready


class Prober:
    """One child process and a deadline a video."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._child: subprocess.Popen[bytes] | None = None

    def probe(self, uri: str) -> dict[str, Any]:
        """`num_frames, fps, height, width, bytes, sha256` of a video, or `error` with a reason."""
        child = self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(uri).encode() + b"\n")
            child.stdin.flush()
            if not select.select([child.stdout], [], [], self.deadline_s)[0]:
                self.close()
                return {"error": f"deadline: not decoded within {self.deadline_s:g} s"}
            line = child.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            code = child.wait(timeout=10)
            self.close()
            return {"error": f"decoder crashed: exit status {code}"}
        return json.loads(line)

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()  # it died after its last answer: the next file is not to blame
        if self._child is None:
            command = [sys.executable, "-m", "finepseudo.data.probe"]
            child = self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert child.stdout is not None
            # The deadline is the file's: a busy machine may take longer than that to start an interpreter.
            if not select.select([child.stdout], [], [], START_S)[0] or not child.stdout.readline():
                self.close()
                raise DecodeError(f"the probing process did not start within {START_S:g} s")
        return self._child


def examine(uri: str) -> dict[str, Any]:
    """Read a whole file and decode its first, middle and last frame."""
    from finepseudo.data.decode import FAILURES, open_video

    try:
        data = read_uri(uri)
    except OSError as error:
        return {"error": f"unreadable: {error}"}
    if not data:
        return {"error": "empty: the file has 0 bytes"}
    try:
        reader = open_video(data, uri)
        count = len(reader)
        if count == 0:
            return {"error": "no frames: the video stream is empty"}
        # One by one: decord's batches fail at some widths, which decoding at model size avoids.
        frames = [reader[index].asnumpy() for index in sorted({0, count // 2, count - 1})]
        fps = float(reader.get_avg_fps())
    except (DecodeError, IndexError, *FAILURES) as error:
        return {"error": f"undecodable: {' '.join(str(error).split())[:200]}"}
    return {
        "num_frames": count,
        "fps": fps,
        "height": frames[0].shape[0],
        "width": frames[0].shape[1],
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _serve(lines: io.TextIOBase, answers: io.TextIOBase) -> None:
    import finepseudo.data.decode  # noqa: F401  seconds, before the first deadline runs

    answers.write("ready\n")
    answers.flush()
    for line in lines:
        answers.write(json.dumps(examine(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve(sys.stdin, sys.stdout)  # type: ignore[arg-type]
