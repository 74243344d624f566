"""The real application, on a real Ray, over HTTP: answers, refusals, overload, a decoder that dies."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from servers import free_port, s3_server

from finepseudo import predict
from finepseudo.classifier import Classifier
from finepseudo.driver.export import export_classifier
from finepseudo.storage.store import Store

START_S = 900  # beside other tests, on two busy cores
WAITING = 1


def ask(port, method="POST", path="/predict", body=b"", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    assert text.endswith("\n")
    return answer.status, [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def exported(short, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    export_classifier(Classifier.at(Store(str(short.folder))), Store(str(folder)), programs=False)
    return folder


@pytest.fixture(scope="module")
def videos(short, tmp_path_factory):
    """A root with one video, and links that lead out of it."""
    folder = tmp_path_factory.mktemp("root")
    found = sorted((short.folder / "data/videos").iterdir())[0]
    (folder / "a.mp4").write_bytes(found.read_bytes())
    (folder / "out.mp4").symlink_to(found)
    (folder / "etc").symlink_to("/etc")
    return folder


@contextlib.contextmanager
def serving(classifier, root, **env):
    """The port at which the real job answers."""
    port = free_port()
    command = [sys.executable, str(ROOT / "jobs/serve.py"), "--classifier", str(classifier), "--root", str(root)]
    command += ["--port", str(port), "--body-mib", "1", "--waiting", str(WAITING), "--seconds", "30"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | env
    process = subprocess.Popen(command, env=env, cwd=ROOT)
    ends = time.monotonic() + START_S
    try:
        while process.poll() is None and time.monotonic() < ends:
            try:
                if ask(port, "GET", "/health")[0] == 200:
                    break
            except (OSError, AssertionError):
                time.sleep(0.5)
        else:
            pytest.fail(f"the server did not start: {process.poll()}")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.mark.long
def test_a_classifier_and_videos_in_a_bucket(exported, videos, monkeypatch):
    """First: its server has ended before that of the other tests starts."""
    import s3fs

    with s3_server() as there:
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        bucket = s3fs.S3FileSystem(skip_instance_cache=True)
        bucket.mkdir("served")
        bucket.put(f"{exported}/", "served/models/x/", recursive=True)
        bucket.put(str(videos / "a.mp4"), "served/videos/deep/a.mp4")
        with serving("s3://served/models/x", "s3://served/videos", **there) as port:
            body = (videos / "a.mp4").read_bytes()
            rows = predict(str(videos / "a.mp4"), str(exported))
            assert ask(port, body=body) == (200, [{**row, "video": None} for row in rows])
            named = ask(port, path="/predict?path=deep/a.mp4")
            assert named == (200, [{**row, "video": "deep/a.mp4"} for row in rows])
            assert ask(port, path="/predict?path=deep/b.mp4")[0] == 404
            assert ask(port, path="/predict?path=../models/x/classifier.json")[0] == 403


@pytest.fixture(scope="module")
def server(exported, videos):
    with serving(exported, videos) as port:
        yield port


def test_an_answer_is_that_of_predict(server, exported, videos):
    expected = [{**row, "video": None} for row in predict(str(videos / "a.mp4"), str(exported))]
    assert ask(server, body=(videos / "a.mp4").read_bytes()) == (200, expected)
    named = [{**row, "video": "a.mp4"} for row in expected]
    assert ask(server, path="/predict?path=a.mp4") == (200, named)


def test_a_damaged_file_gets_the_decoders_reason(server, videos):
    status, (said,) = ask(server, body=(videos / "a.mp4").read_bytes()[:3000])
    assert status == 422
    assert said["error"].startswith("undecodable: ")


@pytest.mark.parametrize("path", ["../a.mp4", "/etc/passwd", "file:///etc/passwd", "s3://b/a.mp4", "zip::a.mp4", ".a"])
def test_a_path_is_one_below_the_root(server, path):
    status, (said,) = ask(server, path=f"/predict?path={path}")
    assert (status, "expected a plain path below" in said["error"]) == (403, True)


@pytest.mark.parametrize("path", ["out.mp4", "etc/passwd", "etc", "no.mp4"])
def test_what_lies_outside_is_not_there(server, path):
    status, (said,) = ask(server, path=f"/predict?path={path}")
    assert (status, "no such file" in said["error"]) == (404, True)


@pytest.mark.parametrize("said_before", [True, False])
def test_a_large_body_is_refused(server, said_before):
    body = bytes(2 << 20)  # of an iterator http.client does not say how long it is
    status, (said,) = ask(server, body=body if said_before else iter([body[: 1 << 20], body[1 << 20 :]]))
    assert (status, "more than 1048576 bytes" in said["error"]) == (413, True)


def test_other_forms_are_refused(server):
    assert ask(server, body=b"{}", headers={"Content-Type": "application/json"})[0] == 415
    assert ask(server)[0] == 422
    assert ask(server, "GET", "/other")[0] == 404


def test_more_than_may_wait_are_refused_and_the_others_answered(server, videos):
    body = (videos / "a.mp4").read_bytes()
    with ThreadPoolExecutor(12) as clients:
        statuses = [status for status, _ in clients.map(lambda _: ask(server, body=body), range(24))]
    assert set(statuses) == {200, 503}
    assert ask(server, body=body)[0] == 200


def test_a_decoder_that_died_is_replaced(server, videos):
    (replica,) = (each for each in commands() if "ServeReplica" in each[2])
    (child,) = (each for each in commands() if each[1] == replica[0] and "finepseudo.data.child" in each[2])
    os.kill(child[0], signal.SIGKILL)
    status, (said,) = ask(server, "GET", "/health")
    assert (status, said["status"]) == (200, "ok")
    assert child[0] not in {each[0] for each in commands() if "finepseudo.data.child" in each[2]}
    assert ask(server, body=(videos / "a.mp4").read_bytes())[0] == 200


def commands():
    """Process, parent and command of all that a process of this session started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args", "--no-headers"], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    every = [(int(pid), int(parent), command) for pid, parent, command in rows]
    mine, grown = {os.getpid()}, True
    while grown:
        new = {pid for pid, parent, _ in every if parent in mine} - mine
        mine, grown = mine | new, bool(new)
    return [each for each in every if each[0] in mine]
