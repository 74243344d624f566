"""What a store, a decoder and a classifier do on s3://, against a real server process."""

import io
import json
import os
import subprocess
import sys
import urllib.request
import uuid

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from servers import s3_server

from finepseudo import predict, rehearsal
from finepseudo.classifier import Classifier
from finepseudo.data.child import Child
from finepseudo.driver.export import export_classifier
from finepseudo.errors import DecodeError, StorageError
from finepseudo.storage.check import check_store
from finepseudo.storage.store import Store
from finepseudo.storage.store import _filesystem as filesystem


@pytest.fixture(scope="module")
def s3():
    with s3_server() as environment:
        yield environment


def make_bucket(name, environment, monkeypatch):
    """A new bucket on the server, which this process reaches from now on."""
    import s3fs

    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    filesystem.cache_clear()  # the client of another server
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)


@pytest.fixture
def bucket_store(s3, monkeypatch):
    name = f"verbs-{uuid.uuid4()}"
    make_bucket(name, s3, monkeypatch)
    return Store(f"s3://{name}/deep/folder")


def test_other_videos_and_their_classes_on_s3(short, s3, bucket_store):
    """Found, read, and written there, by a classifier that was exported to it."""
    export_classifier(Classifier.at(Store(str(short.folder))), bucket_store.child("model"), programs=False)
    names = Store(str(short.folder)).list("data/videos")[:2]
    for name in names:
        bucket_store.put(f"new/{name}", str(short.folder / "data/videos" / name))
    command = [sys.executable, str(ROOT / "jobs/predict.py"), bucket_store.uri("new")]
    command += ["--run", bucket_store.uri("model"), "--to", bucket_store.uri("classes.jsonl")]
    done = subprocess.run(command, env={**os.environ, **s3}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in bucket_store.read("classes.jsonl").splitlines()]
    assert [row["video"] for row in rows] == [bucket_store.uri(f"new/{name}") for name in names]
    here = predict([str(short.folder / "data/videos" / name) for name in names], str(short.folder))
    assert [row["top"] for row in rows] == [row["top"] for row in here]
    assert bucket_store.list() == ["classes.jsonl", "model", "new"], "no parts are left"


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


def test_a_store_is_tried_and_left_as_it_was(bucket_store):
    assert check_store(bucket_store, "probe"), "the server creates a file twice"
    assert bucket_store.list() == []


def test_a_bucket_that_is_not_there_is_said_in_one_line(bucket_store):
    where = Store(bucket_store.root.replace("verbs-", "other-"))
    with pytest.raises(StorageError, match=f"^{where.root}/probe/probe: cannot be written: .*check address"):
        check_store(where, "probe")


@pytest.fixture
def guarded(monkeypatch):
    """A bucket on a server that looks at keys from when the bucket is made, and knows none."""
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="1000") as environment:
        make_bucket("guarded-bucket", environment, monkeypatch)
        text = {"Content-Type": "text/plain"}
        now = urllib.request.Request(f"{environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth", b"0", text)
        urllib.request.urlopen(now, timeout=30).close()
        yield Store("s3://guarded-bucket/run")


def test_wrong_credentials_are_said_without_them(guarded):
    with pytest.raises(StorageError, match="^s3://guarded-bucket/run/probe/probe: cannot be written: ") as caught:
        check_store(guarded, "probe")
    assert "secret-of-the-test" not in str(caught.value)


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


def png():
    sink = io.BytesIO()
    Image.new("RGB", (64, 48)).save(sink, "png")
    return sink.getvalue()


def test_files_and_folders_of_pictures_on_s3(s3, monkeypatch):
    """As on a disk; a folder may have a marker of its own name, and a missing file is told from a folder."""
    make_bucket("clips-bucket", s3, monkeypatch)
    bucket_store = Store("s3://clips-bucket/deep")
    bucket_store.write("clip.mp4", rehearsal.encode_mp4(np.zeros((60, 48, 48, 3), np.uint8), 25))
    pictures = {f"{number}.png": png() for number in range(3)}
    bucket_store.write("clips/one/", b"")
    bucket_store.write("clips/one/labels.txt", b"no frame")
    bucket_store.write("clips/one/inner/0.png", b"no frame")
    for name, data in pictures.items():
        bucket_store.write(f"clips/one/{name}", data)
    assert bucket_store.sizes("clips/one").keys() == {"labels.txt", *pictures}
    assert bucket_store.sizes("clip.mp4") == bucket_store.sizes("nothing") == {}
    child = Child(60)
    for path, access in (("clip.mp4", "decord"), ("clips/one", "pictures")):
        found = child.probe(bucket_store.uri(path))
        assert found["access"].split()[0] == access
        row = {**found, "file_frames": found["num_frames"]}
        assert child.frames(bucket_store.uri(path), row, [2, 0], 48, 48).shape == (2, 48, 48, 3)
    quick = child.probe(bucket_store.uri("clip.mp4"), quick=True)
    row = {**quick, "file_frames": 60}
    assert child.frames(bucket_store.uri("clip.mp4"), row, [59], 48, 48).shape == (1, 48, 48, 3)
    bucket_store.write("clip.mp4", rehearsal.encode_mp4(np.full((60, 48, 48, 3), 9, np.uint8), 25))
    with pytest.raises(DecodeError, match="not the file that was probed"):
        child.frames(bucket_store.uri("clip.mp4"), row, [59], 48, 48)
    assert child.probe(bucket_store.uri("nothing"))["error"].startswith("unreadable: ")
    child.close()
