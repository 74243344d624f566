"""A served classifier under load: throughput, latency, refusals, and whether every answer is `finepseudo.predict`'s.

    python benchmarks/serve.py --classifier FOLDER --videos FOLDER

It starts jobs/serve.py on this machine and ends it. Clients send the bytes of videos, each the next one when it has its
answer; latency is what a client waits, quantiles are over all of a row. In the last row more clients ask than may wait.
Each video is predicted by itself beforehand: sums of a batch of several differ in the last digits.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from finepseudo import predict
from finepseudo.driver.predict import find_videos

ROOT = Path(__file__).parents[1]
START_S, ANSWER_S = 300.0, 300.0


@dataclass(frozen=True)
class Asked:
    """One request."""

    video: int
    status: int
    seconds: float
    rows: list[dict[str, Any]]


def main() -> int:
    """Start, ask, print; 1 if an answer is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--classifier", required=True, help="folder that jobs/export.py wrote")
    add("--videos", required=True, help="folder of videos")
    add("--count", type=int, default=8, help="videos that are sent, again and again (%(default)s)")
    add("--requests", type=int, default=200, help="requests of a row (%(default)s)")
    add("--clients", type=int, nargs="+", default=[1, 2, 4], help="that ask at a time, a row each")
    add("--overload", type=int, default=24, help="clients of the last row (%(default)s)")
    add("--waiting", type=int, default=8, help="requests that may wait for a replica (%(default)s)")
    add("--replicas", type=int, default=1)
    add("--port", type=int, default=8011)
    options = parser.parse_args()
    files = list(islice(find_videos([options.videos]), options.count))
    bodies = [Path(file).read_bytes() for file in files]
    expected = [predict(file, options.classifier) for file in files]
    command = [sys.executable, str(ROOT / "jobs/serve.py"), "--classifier", options.classifier]
    command += ["--port", str(options.port), "--waiting", str(options.waiting), "--replicas", str(options.replicas)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        await_health(server, options.port)
        print(f"{len(files)} videos of {np.mean([len(body) for body in bodies]) / 1024:.0f} KiB, "
              f"{options.replicas} replica(s), {options.waiting} may wait, {os.cpu_count()} cores")  # fmt: skip
        print("clients  answers/s  p50 ms  p90 ms  p99 ms  refused  refused after ms (p99)  equal")
        wrong = 0
        for clients in (*options.clients, options.overload):
            began = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                each = [range(client, options.requests, clients) for client in range(clients)]
                asked = [one for some in pool.map(lambda mine: ask(options.port, bodies, mine), each) for one in some]
            wrong += tell(clients, asked, time.perf_counter() - began, expected)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    return 1 if wrong else 0


def await_health(server: subprocess.Popen[str], port: int) -> None:
    """Until it answers."""
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and server.poll() is None:
        with contextlib.suppress(OSError):  # nobody listens yet
            if send(port, "GET", "/health", b"")[0] == http.client.OK:
                return
        time.sleep(0.5)
    raise SystemExit(f"the server did not start: exit code {server.poll()}")


def ask(port: int, bodies: Sequence[bytes], numbers: Sequence[int]) -> list[Asked]:
    """One client's requests."""
    found: list[Asked] = []
    for number in numbers:
        video, began = number % len(bodies), time.perf_counter()
        status, text = send(port, "POST", "/predict", bodies[video])
        rows = [json.loads(line) for line in text.splitlines()] if status == http.client.OK else []
        found.append(Asked(video, status, time.perf_counter() - began, rows))
    return found


def send(port: int, method: str, path: str, body: bytes) -> tuple[int, str]:
    """Status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def tell(clients: int, asked: Sequence[Asked], seconds: float, expected: Sequence[list[dict[str, Any]]]) -> int:
    """A line; how many answers are not as they should be."""
    answers = [one for one in asked if one.status == http.client.OK]
    refused = [one.seconds for one in asked if one.status == http.client.SERVICE_UNAVAILABLE]
    wrong = [one for one in answers if one.rows != [{**row, "video": None} for row in expected[one.video]]]
    others = Counter(one.status for one in asked) - Counter({200: len(answers), 503: len(refused)})
    p50, p90, p99 = np.quantile([one.seconds for one in answers] or [np.nan], [0.5, 0.9, 0.99]) * 1000
    late = f"{np.quantile(refused, 0.99) * 1000:.0f}" if refused else "-"
    equal = f"{len(answers) - len(wrong)} of {len(answers)}" + (f", others {dict(others)}" if others else "")
    print(f"{clients:7}  {len(answers) / seconds:9.2f}  {p50:6.0f}  {p90:6.0f}  {p99:6.0f}  {len(refused):7}  "
          f"{late:>22}  {equal}", flush=True)  # fmt: skip
    return len(wrong) + sum(others.values())


if __name__ == "__main__":
    sys.exit(main())
