"""One writer a folder: of many one has it, the next follows when it is gone, and who lost it commits nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from finepseudo.errors import LeaseError
from finepseudo.storage import artefacts, lease
from finepseudo.storage.lease import held
from finepseudo.storage.store import Store

HOLDING = """
import sys
from finepseudo.errors import LeaseError
from finepseudo.storage.lease import held
from finepseudo.storage.store import Store

sys.stdin.readline()
try:
    with held(Store(sys.argv[1])) as mine:
        print("held", mine.fence[1], flush=True)
        sys.stdin.readline()
except LeaseError as error:
    print(error, flush=True)
"""


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"))


def holder(store):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", HOLDING, store.root], **pipes)


def told(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def elsewhere(store, **more):
    """A holder on another machine, of which only its file is seen."""
    store.write(
        lease._file(1), json.dumps({"id": "x", "pid": 1, "host": "far", "boot": "b", "space": "s", **more}).encode()
    )


def test_of_many_that_start_at_once_one_has_it_and_the_others_name_it(store):
    many = [holder(store) for _ in range(4)]
    for process in many:
        process.stdin.write("\n")
        process.stdin.flush()
    lines = [process.stdout.readline().strip() for process in many]
    won = [process for process, line in zip(many, lines, strict=True) if line == "held 1"]
    assert len(won) == 1
    lost = [line for line in lines if line != "held 1"]
    said = f"{store.root}: process {won[0].pid} on {os.uname().nodename} (since 2"
    assert all(line.startswith(said) and line.endswith("use another directory") for line in lost)
    for process in many:
        process.communicate("\n", timeout=60)


def test_the_next_one_has_it_at_once_after_an_end_and_after_a_kill(store):
    first, second, third = (holder(store) for _ in range(3))
    assert told(first) == "held 1"
    first.communicate("\n", timeout=60)
    assert json.loads(store.read("lease/00000001.json"))["released"]
    assert told(second) == "held 2"
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert told(third) == "held 3"
    assert store.list("lease")[-1] == "00000003.json"
    third.communicate("\n", timeout=60)


def test_a_process_holds_it_as_long_as_one_of_its_threads_does(store):
    with held(store) as one:
        with held(store) as two:
            assert one.fence == two.fence == (store.root, 1)
        artefacts.commit(one, "made", {}, {})
        assert "released" not in json.loads(store.read("lease/00000001.json"))
    assert json.loads(store.read("lease/00000001.json"))["released"]


def test_a_holder_elsewhere_that_does_not_renew_is_followed(store, monkeypatch, caplog):
    monkeypatch.setattr(lease, "EXPIRES_S", 1.5)
    elsewhere(store)
    began = time.monotonic()
    with caplog.at_level("INFO", "finepseudo"), held(store) as mine:
        assert mine.fence == (store.root, 2)
    assert time.monotonic() - began > 1.4
    assert "process 1 on far (since None) may still work in it" in caplog.text
    assert "taken over from process 1 on far" in caplog.text


def test_a_holder_elsewhere_that_renews_is_not(store, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 1.0)
    elsewhere(store)
    real, looks = lease._read, []

    def read(where, epoch):
        looks.append(epoch)
        if len(looks) == 3:
            elsewhere(store, renewed=1)
        return real(where, epoch)

    monkeypatch.setattr(lease, "_read", read)
    with pytest.raises(LeaseError, match="process 1 on far .* works in it; wait for its end or stop it"), held(store):
        pass


def test_who_was_followed_commits_nothing_more(store):
    with held(store) as mine:
        artefacts.commit(mine, "first", {"part": b"1"}, {})
        store.write("lease/00000002.json", json.dumps({"id": "y", "pid": 7, "host": "far", "since": "noon"}).encode())
        with pytest.raises(LeaseError, match=r"taken over by process 7 on far \(since noon\)"):
            artefacts.commit(mine, "second", {"part": b"2"}, {})
        with pytest.raises(LeaseError):
            artefacts.commit(mine.child("below"), "second", {"part": b"2"}, {})
    assert artefacts.committed(store, "first")
    assert artefacts.committed(store, "second") is None
    assert "released" not in json.loads(store.read("lease/00000002.json")), "it is another's"


def test_a_holder_renews_its_file(store, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    with held(store):
        before, ends = store.read("lease/00000001.json"), time.monotonic() + 30
        while store.read("lease/00000001.json") == before:
            assert time.monotonic() < ends
            time.sleep(0.05)


def test_a_release_is_the_last_word(store, monkeypatch):
    """Also where the holder was just about to renew."""
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    write, renewing = Store.write, threading.Event()

    def slow(self, path, data):
        if b"renewed" in data:
            renewing.set()
            time.sleep(0.5)
        write(self, path, data)

    monkeypatch.setattr(Store, "write", slow)
    with held(store):
        assert renewing.wait(30)
    time.sleep(1)
    assert json.loads(store.read("lease/00000001.json"))["released"]
    with held(store) as mine:
        assert mine.fence == (store.root, 2)


def test_where_a_file_is_created_twice_the_last_one_has_it(store, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(Store, "put_new", lambda self, path, data: self.write(path, data) or True)
    with held(store) as mine:
        assert mine.fence == (store.root, 1)
    writes = []

    def overwritten(self, path, data):
        """Another writes a moment later, and ends."""
        writes.append(path)
        last = path == "lease/00000002.json"
        self.write(path, json.dumps({"id": "other", "released": True}).encode() if last else data)
        return True

    monkeypatch.setattr(Store, "put_new", overwritten)
    with held(store) as mine:
        assert mine.fence == (store.root, 3)
    assert writes[:2] == ["lease/00000002.json"] * 2


def test_a_file_that_a_crash_cut_is_nobodys(store):
    store.write("lease/00000001.json", b'{"id"')
    store.write("lease/notes.txt", b"")
    with held(store) as mine:
        assert mine.fence == (store.root, 2)
