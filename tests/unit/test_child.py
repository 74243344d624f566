"""Real files, good and bad, before a process that may die of them; the next file never suffers."""

import errno
import http.server
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import NoCredentialsError
from clips import annotated, build_manifest, found

from finepseudo import rehearsal
from finepseudo.data.child import READ, Child, answer
from finepseudo.errors import DecodeError, OutageError, StorageError

REAL = Path(__file__).parents[3] / "shared/data/videos"


@pytest.fixture(scope="module")
def prober():
    made = Child(60)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


def test_a_good_file_says_what_it_is(file, movie, prober):
    found = prober.probe(file("good.mp4", movie))
    assert found.keys() == {"num_frames", "fps", "height", "width", "even", "access", "bytes", "sha256"}
    assert (found["height"], found["width"], found["fps"], found["bytes"]) == (48, 48, 25.0, len(movie))
    assert prober.probe(file("again.mp4", movie)) == found
    assert answer({"uri": file("here.mp4", movie)})[0] == found, "in this process as in the child"


def test_height_and_width_are_not_mixed_up(file, prober):
    frames = np.zeros((5, 32, 64, 3), np.uint8)
    found = prober.probe(file("wide.mp4", rehearsal.encode_mp4(frames, 10)))
    assert (found["num_frames"], found["height"], found["width"], found["fps"]) == (5, 32, 64, 10.0)


@pytest.mark.parametrize("side", [16, 24, 48, 72])
def test_sizes_that_the_decoder_cannot_scale_to_are_probed(file, prober, side):
    found = prober.probe(file("small.mp4", rehearsal.encode_mp4(np.zeros((9, side, side, 3), np.uint8), 25)))
    assert (found.get("num_frames"), found.get("width")) == (9, side)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda movie: b"", "empty: the file has 0 bytes"),
        (lambda movie: b"this is no video " * 99, "undecodable: "),
        (lambda movie: b"\0", "undecodable: "),
        (lambda movie: movie[: len(movie) // 2], "undecodable: "),
        (lambda movie: movie[:100], "undecodable: "),
        (lambda movie: movie[100:], "undecodable: "),
        (lambda movie: b"\x89PNG\r\n\x1a\n" + b"\0" * 500, "undecodable: "),
    ],
)
def test_bad_files_get_a_reason_and_the_next_one_works(file, movie, prober, damage, reason):
    found = prober.probe(file("bad.mp4", damage(movie)))
    assert found.keys() == {"error"}
    assert found["error"].startswith(reason)
    assert len(found["error"]) < 300
    assert "\n" not in found["error"]
    assert "error" not in prober.probe(file("good.mp4", movie))


def test_missing_files_folders_and_unusable_names(tmp_path, prober):
    assert prober.probe(str(tmp_path / "missing.mp4")) == {
        "error": f"unreadable: {tmp_path / 'missing.mp4'}: no such file"
    }
    assert prober.probe(str(tmp_path))["error"].startswith("unreadable: ")
    assert prober.probe(str(tmp_path / ("x" * 300)))["error"].startswith("unreadable: ")


def test_too_short_is_the_manifests_word(file, movie, prober):
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    probes = {"s": prober.probe(file("s.mp4", rehearsal.encode_mp4(frames, 25)))}
    probes |= {name: prober.probe(file(f"{name}.mp4", movie)) for name in ("a", "t")}
    assert probes["s"]["num_frames"] == 3
    rows = [(name, name, 0, "test" if name == "t" else "train") for name in probes]
    manifest = build_manifest(annotated(*rows), ["x", "y"], found(**probes), min_frames=8)
    reasons = {row["video_id"]: row["reason"] for row in manifest.clips.to_pylist()}
    assert reasons == {"a": "", "t": "", "s": "too short: 3 frames, data.min_frames is 8"}


def stop(child):
    """As a decoder does that hangs: from now on the process answers nothing."""
    os.kill(child._process.pid, signal.SIGSTOP)


def stopped_while_decoding(child, monkeypatch):
    """Hang as soon as the bytes are there."""
    line = Child._line

    def halting(self, deadline_s):
        found = line(self, deadline_s)
        if found == READ:
            stop(self)
            while select.select([self._process.stdout], [], [], 0.2)[0]:
                self._process.stdout.read(1)
        return found

    monkeypatch.setattr(Child, "_line", halting)


def test_hanging_file_ends_at_the_deadline_and_the_next_one_works(file, movie, monkeypatch):
    good, child = file("good.mp4", movie), Child(60)
    assert child.probe(good)["num_frames"] > 20
    process = child._process
    with monkeypatch.context() as patched:
        stopped_while_decoding(child, patched)
        child.deadline_s = 0.5
        assert child.probe(good) == {"error": "deadline: not decoded within 0.5 s"}
    assert process.returncode == -signal.SIGKILL, "killed, and waited for"
    child.deadline_s = 60
    assert child.probe(good)["num_frames"] > 20
    child.close()


def test_pipes_and_devices_are_not_opened(tmp_path, prober):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (str(tmp_path / "pipe.mp4"), "/dev/zero"):
        assert "not a regular file" in prober.probe(path)["error"]


def killed_while_decoding(monkeypatch, times):
    """Die as soon as the bytes are there, so many times."""
    line, killed = Child._line, []

    def dying(self, deadline_s):
        found = line(self, deadline_s)
        if found == READ and len(killed) < times:
            stop(self)
            killed.append(self._process.pid)
            self._process.kill()
            while self._process.stdout.read(1):  # an answer may have been on its way
                pass
        return found

    monkeypatch.setattr(Child, "_line", dying)
    return killed


def test_crashing_decoder_rejects_one_file(file, movie, prober, monkeypatch):
    good = file("good.mp4", movie)
    prober.probe(good)
    with monkeypatch.context() as patched:
        killed = killed_while_decoding(patched, 9)
        assert prober.probe(good) == {"error": "decoder crashed: exit status -9"}
    assert len(killed) == 2
    assert "error" not in prober.probe(file("other.mp4", movie))


def test_a_decoder_that_is_killed_once_blames_no_file(file, movie, prober, monkeypatch):
    """The kernel kills when memory is short, whoever asked for it."""
    good = file("good.mp4", movie)
    first = prober.probe(good)
    with monkeypatch.context() as patched:
        killed_while_decoding(patched, 1)
        assert prober.probe(good) == first


def test_a_child_that_dies_between_two_files_blames_neither(file, movie, prober):
    good = file("good.mp4", movie)
    first = prober.probe(good)
    os.kill(prober._process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, prober._process.pid, os.WEXITED | os.WNOWAIT)
    assert prober.probe(good) == first


def test_closing_leaves_no_process(file, movie):
    prober = Child(60)
    prober.close()
    prober.probe(file("good.mp4", movie))
    child = prober._process.pid
    prober.close()
    prober.close()
    assert subprocess.run(["ps", "-p", str(child)], capture_output=True).returncode == 1


@pytest.mark.skipif(not REAL.exists(), reason="the folder of real videos is not beside this checkout")
def test_real_videos(prober):
    files = [path for path in sorted(REAL.rglob("*")) if path.suffix in (".avi", ".mkv")]
    found = {path.name: prober.probe(str(path)) for path in files}
    assert {name: probe["error"] for name, probe in found.items() if "error" in probe} == {}
    assert len(found) > 5
    for probe in found.values():
        assert probe["num_frames"] > 0
        assert 1 <= probe["fps"] <= 240
    juggling = found["v_SoccerJuggling_g23_c01.avi"]
    assert (juggling["height"], juggling["width"]) == (240, 320)


def test_the_deadline_is_the_files_and_not_the_childs(file, movie):
    """A new process imports the decoder for longer than any good file takes."""
    prober = Child(0.5)
    assert prober.probe(file("good.mp4", movie))["num_frames"] > 20
    prober.close()


def test_a_child_that_does_not_start_is_no_fault_of_the_file(file, movie, monkeypatch):
    monkeypatch.setattr("finepseudo.data.child.sys.executable", "/bin/true")
    with pytest.raises(DecodeError, match="the decoding process did not start"):
        Child(1).probe(file("good.mp4", movie))


def facts(found):
    known = {name: found[name] for name in ("num_frames", "sha256", "access", "height", "width")}
    return {**known, "file_frames": found["num_frames"]}


def test_a_file_that_hangs_the_decoder_is_a_decode_error(file, movie, monkeypatch):
    good, child = file("good.mp4", movie), Child(60)
    row = facts(child.probe(good))
    frames = child.frames(good, row, [3, 0, 3], 48, 48)
    assert frames.shape == (3, 48, 48, 3)
    assert (frames[0] == frames[2]).all()
    with monkeypatch.context() as patched:
        stopped_while_decoding(child, patched)
        child.deadline_s = 0.5
        with pytest.raises(DecodeError, match=r"good.mp4: deadline: not decoded within 0.5 s"):
            child.frames(good, row, [0], 48, 48)
    child.deadline_s = 60
    assert (child.frames(good, row, [3, 0, 3], 48, 48) == frames).all()


def test_a_large_file_is_not_read_whole_and_known_by_parts_of_it(file, movie, monkeypatch):
    monkeypatch.setattr("finepseudo.data.child.WHOLE", 1000)
    monkeypatch.setattr("finepseudo.data.child.SAMPLE", 300)
    monkeypatch.setattr("finepseudo.data.child.Store.read", None)
    path = file("large.mp4", movie)
    found, _ = answer({"uri": path})
    assert found["bytes"] == len(movie)
    assert found["access"] != "decord", "which would read it whole"
    shown = {name: found[name] for name in ("num_frames", "height", "width", "access")}
    request = {"uri": path, "index": [5, 0], "size": [48, 48], "shown": shown, "sha256": found["sha256"]}
    assert answer(request)[0] == {"data": 2 * 48 * 48 * 3}
    changed = bytearray(movie)
    changed[len(movie) // 2 + 10] ^= 1
    file("large.mp4", bytes(changed))
    assert answer(request)[0]["error"].startswith("not the file that was probed: expected sha256 ")


def test_a_quick_look_knows_a_file_by_its_size_its_tag_and_its_first_bytes(file, movie, prober):
    path = file("quick.mp4", movie)
    found, thorough = prober.probe(path, quick=True), prober.probe(path)
    assert found["sha256"].startswith("tag-")
    assert found["access"].split()[0] == "seek"
    same = ("num_frames", "fps", "height", "width", "bytes")
    assert [found[key] for key in same] == [thorough[key] for key in same]
    known = prober.frames(path, {**facts(thorough), "access": "scan"}, [3, 0], 48, 48)
    assert (prober.frames(path, facts(found), [3, 0], 48, 48) == known).all()
    stat = os.stat(path)
    changed = bytes([*movie[:40], movie[40] ^ 1, *movie[41:]])
    for data, times in ((movie, (stat.st_atime, stat.st_mtime + 1)), (changed, (stat.st_atime, stat.st_mtime))):
        os.utime(file("quick.mp4", data), times)
        with pytest.raises(DecodeError, match="not the file that was probed: expected sha256 tag-"):
            prober.frames(path, facts(found), [3, 0], 48, 48)
    assert prober.probe(file("bad.mp4", b"no video " * 99), quick=True)["error"].startswith("undecodable: ")


def test_a_process_ends_with_the_one_that_asked():
    """Also while a decoder keeps it from reading that its input has ended."""
    code = (
        "import time\nfrom finepseudo.data.child import Child\nchild = Child(600)\nchild._start()\n"
        "print(child._process.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asking:
        pid = int(asking.stdout.readline())
        held = os.open(f"/proc/{pid}/fd/0", os.O_WRONLY)  # so that it sees no end of its input
        asking.kill()
    ends = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < ends, "it outlived the process that asked"
        time.sleep(0.1)
    os.close(held)


def test_a_fault_of_ours_in_a_decoder_is_not_the_stores(file, movie, monkeypatch):
    monkeypatch.setattr("finepseudo.data.probe.examine", lambda source: 1 / 0)
    assert answer({"uri": file("good.mp4", movie)})[0] == {"error": "undecodable: division by zero"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError("s3://b/x: no such file"), {"error": "unreadable: s3://b/x: no such file"}),
        (OSError(errno.ENAMETOOLONG, "File name too long"), {"error": "unreadable: File name too long"}),
        (PermissionError("Access Denied"), {"fault": "Access Denied", "refused": True}),
        (NoCredentialsError(), {"fault": "Unable to locate credentials", "refused": True}),
        (OSError(errno.EIO, "Input/output error"), {"fault": "Input/output error", "refused": False}),
        (StorageError("no rights"), {"fault": "no rights", "refused": True}),
        (OutageError("it is away"), {"fault": "it is away", "refused": False}),
        (TimeoutError(), {"fault": "TimeoutError", "refused": False}),
    ],
)
def test_what_is_wrong_with_a_store_is_told_from_what_is_wrong_with_a_file(error, told, monkeypatch):
    def fails(self, path):
        raise error

    monkeypatch.setattr("finepseudo.data.child.Store.open", fails)
    monkeypatch.setattr("finepseudo.data.child.Store.sizes", lambda self: {})
    assert answer({"uri": "s3://b/x"})[0] == told


class OneObject(http.server.BaseHTTPRequestHandler):
    """As much of S3 as reading one object takes; out of order while `down`."""

    data, down, asked = b"", False, 0

    def do_HEAD(self):
        self._give(b"")

    def do_GET(self):
        self._give(self.data)

    def _give(self, body):
        type(self).asked += 1
        if self.down:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        body = body[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if self.headers.get("Range") else 200)
        for name, value in (("Content-Length", len(body) if body else len(self.data)), ("ETag", '"1"')):
            self.send_header(name, str(value))
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.mark.long
def test_a_store_that_is_down_is_no_fault_of_the_video(movie, monkeypatch):
    OneObject.data, OneObject.down = movie, True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneObject)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tester")
    monkeypatch.setattr("finepseudo.data.child.WAITS_S", (0.1,))
    child = Child(60)
    with pytest.raises(OutageError, match=r"s3://bucket/x.mp4: the store did not give it in 2 attempts: .*same"):
        child.probe("s3://bucket/x.mp4")
    assert OneObject.asked > 5, "the client's own attempts are within each"
    OneObject.down = False
    assert child.probe("s3://bucket/x.mp4")["num_frames"] > 20
    child.close()
    server.shutdown()


def test_a_file_that_kills_its_decoder_is_not_opened_for_ever(file, movie, monkeypatch):
    """A plan may ask for a clip hundreds of times: each hang would cost its deadline."""
    deadly, good, child = file("deadly.mp4", movie), file("good.mp4", movie), Child(60)
    row = facts(child.probe(good))
    with monkeypatch.context() as patched:
        killed_while_decoding(patched, 9)
        with pytest.raises(DecodeError, match="decoder crashed: exit status -9"):
            child.frames(deadly, row, [0], 48, 48)
    assert child._process is None
    with pytest.raises(DecodeError, match="hung or died on this file 2 times, and is not asked again"):
        child.frames(deadly, row, [0], 48, 48)
    assert child._process is None, "nothing was started for it"
    assert child.frames(good, row, [0], 48, 48).shape == (1, 48, 48, 3)
    child.close()
