"""The whole small rehearsal, data and run directory, on s3:// against a real server process."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import replace

import pytest
from conftest import SHORT, call

from finepseudo.results import Results
from finepseudo.storage.store import Store

START_LIMIT_S = 60


@pytest.fixture(scope="module")
def s3():
    """Environment that reaches an S3 server on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [os.path.join(os.path.dirname(sys.executable), "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        ends = time.monotonic() + START_LIMIT_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < ends, "the S3 server did not start"
                time.sleep(0.2)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        process.kill()


def make_bucket(name, environment, monkeypatch):
    """A new bucket on the server, which this process reaches from now on."""
    import s3fs

    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)


@pytest.fixture
def bucket(s3, monkeypatch):
    make_bucket("rehearsal-bucket", s3, monkeypatch)
    return Store("s3://rehearsal-bucket/runs/a")


@pytest.fixture
def bucket_store(s3, monkeypatch):
    name = f"verbs-{uuid.uuid4()}"
    make_bucket(name, s3, monkeypatch)
    return Store(f"s3://{name}/deep/folder")


@pytest.mark.long
def test_whole_run_on_s3_equals_the_local_one(short, s3, bucket):
    done = call(bucket.root, *SHORT, "--scale.cache-gib", 0, env=s3)
    assert done.returncode == 0, done.stderr[-4000:]
    there = Results.from_json(bucket.read("results.json"))
    assert replace(there, timing={}) == replace(short.results, timing={})
    assert bucket.exists("report.html")
    assert (
        "secret-of-the-test" not in done.stdout + done.stderr + bucket.read(f"logs/{bucket.list('logs')[0]}").decode()
    )


def test_store_verbs_on_s3(bucket_store):
    assert bucket_store.create("x/one", b"1")
    assert not bucket_store.create("x/one", b"2")
    assert bucket_store.read("x/one") == b"1"
    bucket_store.write("x/one", b"3")
    assert bucket_store.list("x") == ["one"]
    assert bucket_store.read("x/one") == b"3"
    bucket_store.delete("x")
    assert bucket_store.list("x") == []
    with pytest.raises(FileNotFoundError, match="s3://"):
        bucket_store.read("x/one")


def test_walk_on_s3_takes_names_as_they_are_and_no_markers_of_folders(bucket_store):
    import s3fs

    names = ["a [1]*?.mp4", "d.x/#%/f.mp4", "z"]
    for name in (*names, ".hidden", "d.x/.h/i"):
        bucket_store.write(f"w/{name}", b"1")
    bucket_store.write("w[1]/x", b"1")
    for marker in ("w/", "w/d.x/", "w/empty/"):
        where = {"Bucket": bucket_store.root.split("/")[2], "Key": f"deep/folder/{marker}"}
        s3fs.S3FileSystem(skip_instance_cache=True).call_s3("put_object", **where)
    assert list(bucket_store.walk("w")) == [f"w/{name}" for name in names]
    assert list(bucket_store.walk("w[1]")) == ["w[1]/x"]
    assert list(bucket_store.walk("nowhere")) == list(bucket_store.walk("w/z")) == []
