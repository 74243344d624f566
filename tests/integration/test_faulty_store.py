"""Whole runs whose store misbehaves: the real command, a real server."""

import threading
import time
import uuid
from dataclasses import replace

import pytest
from conftest import RUN_LIMIT_S, SHORT, call
from faulty_s3 import Cut, FaultyS3, Reset, Status
from servers import free_port, s3_server

from finepseudo.results import Results
from finepseudo.storage import store
from finepseudo.storage.store import Store


@pytest.fixture
def faulty(monkeypatch):
    """A server that misbehaves when it is told to, the environment that reaches it, and a run directory there."""
    import s3fs

    with s3_server() as environment, FaultyS3(environment["AWS_ENDPOINT_URL"]) as s3:
        there = {**environment, "AWS_ENDPOINT_URL": s3.url}
        for key, value in there.items():
            monkeypatch.setenv(key, value)
        store._filesystem.cache_clear()
        name = f"faults-{uuid.uuid4()}"
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
        yield s3, there, Store(f"s3://{name}/run")
    store._filesystem.cache_clear()


def equal(found, short):
    return replace(Results.from_json(found), timing={}) == replace(short.results, timing={})


@pytest.mark.long
@pytest.mark.timeout(2 * RUN_LIMIT_S)
def test_a_store_that_misbehaves_all_the_time_changes_nothing(short, faulty):
    """A sixth of the requests goes wrong, each in another way; and twice nothing answers for half a minute."""
    s3, environment, run = faulty
    over = threading.Event()

    def trouble():
        ways, number = (Status(503, 0.17), Reset(0.17), Cut(0.3), Status(500, 0.17), Reset(0.1, after=True)), 0
        seen = {"probes": False, "train/supervise": False}
        while not over.wait(2):
            number += 1
            s3.fault = None
            for folder, done in seen.items():
                if not done and run.list(folder):
                    s3.fault, seen[folder] = Status(503), True
                    over.wait(30)
                    s3.fault = None
            s3.fault = ways[number % len(ways)]
        s3.fault = None

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        done = call(run.root, *SHORT, "--scale.cache-gib", 0, env=environment)
    finally:
        over.set()
        thread.join()
    assert done.returncode == 0, done.stderr[-4000:]
    assert s3.wronged > 50
    assert "rejected" not in done.stdout + done.stderr.replace(", 0 rejected", "")
    assert equal(run.read("results.json"), short)
    assert run.exists("report.html")
    logs = "".join(run.read(f"logs/{name}").decode() for name in run.list("logs"))
    assert "secret-of-the-test" not in done.stdout + done.stderr + logs


def test_a_store_that_is_not_there_is_one_line_soon(tmp_path):
    nobody = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_ACCESS_KEY_ID": "x"}
    began = time.monotonic()
    done = call("s3://bucket/run", *SHORT, env={**nobody, "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("StorageError: s3://bucket/run/probe-")
    assert line.endswith("or check address and endpoint")
    assert time.monotonic() - began < 120
