"""Real files, good and bad, before a process that may die of them; the next file never suffers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from finepseudo import rehearsal
from finepseudo.data.child import Child, answer
from finepseudo.data.formats import Annotation
from finepseudo.data.manifest import build_manifest
from finepseudo.errors import DecodeError

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
    assert found.keys() == {"num_frames", "fps", "height", "width", "access", "bytes", "sha256"}
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
    rows = [Annotation(name, 0, "test" if name == "t" else "train", "") for name in probes]
    manifest = build_manifest(rows, ["x", "y"], probes, dict.fromkeys(probes, "u"), min_frames=8)
    reasons = {row["video_id"]: row["reason"] for row in manifest.table.to_pylist()}
    assert reasons == {"a": "", "t": "", "s": "too short: 3 frames, data.min_frames is 8"}


def test_hanging_file_ends_at_the_deadline_and_the_next_one_works(tmp_path, file, movie):
    os.mkfifo(tmp_path / "hangs.mp4")
    good, prober = file("good.mp4", movie), Child(60)
    prober.probe(good)
    child = prober._process
    prober.deadline_s = 0.3
    assert prober.probe(str(tmp_path / "hangs.mp4")) == {"error": "deadline: not decoded within 0.3 s"}
    assert child.returncode == -signal.SIGKILL, "killed, and waited for"
    prober.deadline_s = 60
    assert prober.probe(good)["num_frames"] > 20
    prober.close()


def test_crashing_decoder_rejects_one_file(tmp_path, file, movie, prober):
    os.mkfifo(tmp_path / "hangs.mp4")
    good = file("good.mp4", movie)
    prober.probe(good)
    child = prober._process.pid
    threading.Thread(target=lambda: (time.sleep(0.3), os.kill(child, signal.SIGKILL))).start()
    assert prober.probe(str(tmp_path / "hangs.mp4")) == {"error": "decoder crashed: exit status -9"}
    assert "error" not in prober.probe(good)


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
    files = [path for path in sorted(REAL.rglob("*")) if path.suffix in (".mp4", ".avi", ".mkv", ".webm", ".mov")]
    found = {path.name: prober.probe(str(path)) for path in files}
    assert {name: probe["error"] for name, probe in found.items() if "error" in probe} == {}
    assert len(found) > 10
    assert sum(name.endswith(".avi") for name in found) >= 1
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
    return {"num_frames": found["num_frames"], "sha256": found["sha256"], "access": found["access"]}


def test_a_file_that_hangs_or_kills_the_decoder_is_a_decode_error(tmp_path, file, movie):
    os.mkfifo(tmp_path / "hangs.mp4")
    good, child = file("good.mp4", movie), Child(60)
    row = facts(child.probe(good))
    child.deadline_s = 0.3
    with pytest.raises(DecodeError, match=r"hangs.mp4: deadline: not decoded within 0.3 s"):
        child.frames(str(tmp_path / "hangs.mp4"), row, [0], 48, 48)
    child.deadline_s = 60
    frames = child.frames(good, row, [3, 0, 3], 48, 48)
    assert frames.shape == (3, 48, 48, 3)
    assert (frames[0] == frames[2]).all()
    killer = threading.Timer(0.3, lambda: os.kill(child._process.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(DecodeError, match=r"hangs.mp4: decoder crashed: exit status -9"):
        child.frames(str(tmp_path / "hangs.mp4"), row, [0], 48, 48)
    assert (child.frames(good, row, [3, 0, 3], 48, 48) == frames).all()


def test_a_large_file_is_not_read_whole_and_known_by_parts_of_it(file, movie, monkeypatch):
    monkeypatch.setattr("finepseudo.data.child.WHOLE", 1000)
    monkeypatch.setattr("finepseudo.data.child.SAMPLE", 300)
    monkeypatch.setattr("finepseudo.data.child.Store.read", None)
    path = file("large.mp4", movie)
    found, _ = answer({"uri": path})
    assert found["bytes"] == len(movie)
    assert found["access"] != "decord", "which would read it whole"
    request = {"uri": path, "index": [5, 0], "height": 48, "width": 48, **facts(found)}
    assert answer(request)[0] == {"pixels": 2 * 48 * 48 * 3}
    changed = bytearray(movie)
    changed[len(movie) // 2 + 10] ^= 1
    file("large.mp4", bytes(changed))
    assert answer(request)[0]["error"].startswith("not the file that was probed: expected sha256 ")


def test_a_hanging_process_ends_with_the_one_that_asked(tmp_path):
    os.mkfifo(tmp_path / "hangs.mp4")
    code = (
        "import sys, threading, time\nfrom finepseudo.data.child import Child\nchild = Child(600)\n"
        f"threading.Thread(target=child.probe, args=({str(tmp_path / 'hangs.mp4')!r},), daemon=True).start()\n"
        "while child._process is None: time.sleep(0.05)\n"
        "time.sleep(3)\nprint(child._process.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asking:
        pid = int(asking.stdout.readline())
        asking.kill()
    ends = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < ends, "it outlived the process that asked"
        time.sleep(0.1)
