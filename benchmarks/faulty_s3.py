"""An S3 server, and a proxy before it that misbehaves when it is told to: errors, resets, cut bodies, silence.

with FaultyS3("http://127.0.0.1:9000") as s3:  # clients go to s3.url
    s3.fault = Status(503, share=0.3)
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

START_LIMIT_S = 60
CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown", 507: "StorageFull"}
HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


def free_port(host: str = "127.0.0.1") -> int:
    """Of a machine, for now."""
    with socket.socket() as free:
        free.bind((host, 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def moto(host: str = "127.0.0.1", **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An S3 server of a process of its own, with these settings in its environment; the process, and its address."""
    port = free_port(host)
    url, ends = f"http://{host}:{port}", time.monotonic() + START_LIMIT_S
    server = [os.path.join(os.path.dirname(sys.executable), "moto_server"), "-H", host, "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(server, env={**os.environ, **settings}, **quiet) as process:
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()  # noqa: S310  our own
                    break
                except OSError as error:
                    if time.monotonic() > ends:
                        raise TimeoutError("the S3 server did not start") from error
                    time.sleep(0.2)
            yield process, url
        finally:
            process.kill()


@dataclass(frozen=True)
class Status:
    """An error instead of an answer, to a share of the requests (of one method, if named; of keys that have a text)."""

    code: int
    share: float = 1.0
    method: str = ""
    key: str = ""


@dataclass(frozen=True)
class Reset:
    """Connections are reset before the answer (`after` the request was carried out), a share of them."""

    share: float = 1.0
    after: bool = False


@dataclass(frozen=True)
class Cut:
    """The second half of a body is missing, of a share of the answers that have one."""

    share: float = 1.0


@dataclass(frozen=True)
class Slow:
    """An answer takes so many seconds more."""

    seconds: float
    share: float = 1.0


Fault = Status | Reset | Cut | Slow | None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    s3: FaultyS3


class FaultyS3:
    """Answers as the server at `behind` does, but for `fault`; counts what it did wrong."""

    def __init__(self, behind: str, fault: Fault = None, host: str = "127.0.0.1") -> None:
        self.behind, self.fault = urllib.parse.urlsplit(behind), fault
        self.asked, self.wronged = 0, 0
        self.server = _Server((host, 0), _Handler)
        self.server.s3 = self
        self.url = f"http://{host}:{self.server.server_port}"

    def __enter__(self) -> FaultyS3:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def strikes(self, method: str, path: str) -> Fault:
        """The fault that this request meets, if any."""
        fault = self.fault
        self.asked += 1
        if fault is None or random.random() >= fault.share:  # noqa: S311  not a secret
            return None
        if isinstance(fault, Status) and (fault.method not in ("", method) or fault.key not in path):
            return None
        self.wronged += 1
        return fault


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def s3(self) -> FaultyS3:
        return cast(_Server, self.server).s3

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.s3.strikes(self.command, urllib.parse.unquote(self.path))
        if isinstance(fault, Status):
            text = f"<Error><Code>{CODES.get(fault.code, 'Fault')}</Code><Message>made up</Message></Error>"
            self._say(fault.code, [("Content-Type", "application/xml")], text.encode())
        elif isinstance(fault, Reset) and not fault.after:
            self._reset()
        else:
            time.sleep(fault.seconds if isinstance(fault, Slow) else 0)
            self._pass_on(fault, *self._behind(body))

    def _pass_on(self, fault: Fault, status: int, headers: list[tuple[str, str]], found: bytes) -> None:
        if isinstance(fault, Reset):
            self._reset()
        elif isinstance(fault, Cut) and self.command == "GET" and len(found) > 1:
            self._say(status, headers, found[: len(found) // 2])
            self.close_connection = True
        else:
            self._say(status, headers, found)

    def _behind(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        link = http.client.HTTPConnection(self.s3.behind.hostname or "", self.s3.behind.port, timeout=60)
        try:
            link.request(self.command, self.path, body, dict(self.headers.items()))
            answer = link.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            link.close()

    def _say(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        kept = [(name, value) for name, value in headers if name.lower() not in HOP]
        if "content-length" not in {name.lower() for name, _ in kept}:
            kept.append(("Content-Length", str(len(body))))
        for name, value in kept:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any
