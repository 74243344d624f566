"""Broken videos and annotation files: some of those of benchmarks/fuzz.py, which has many more."""

import sys
from pathlib import Path

import fuzz
import numpy as np
import pytest

from finepseudo import rehearsal
from finepseudo.data.child import Child, answer

ROOT = Path(__file__).parents[2]
ORACLES = ROOT.parent / "shared/cases/frames"


@pytest.fixture
def sources(tmp_path):
    """Files of several containers; those of the oracle where they are beside this checkout."""
    frames = np.zeros((60, 64, 160, 3), np.uint8)
    for number, frame in enumerate(frames):  # as the oracle's: stripes that say the number
        frame.reshape(64, 10, 16, 3)[:, [bit for bit in range(10) if number >> bit & 1]] = 255
    (tmp_path / "own.mp4").write_bytes(rehearsal.encode_mp4(frames, 25))
    oracles = [ORACLES / name for name in ("mpeg2.ts", "vp9.webm", "h264.avi", "hevc.mp4")]
    return [tmp_path / "own.mp4", *(path for path in oracles if path.exists())]


def test_broken_videos_are_refused_or_give_their_own_frames(sources):
    report = fuzz.Report()
    fuzz.fuzz_videos(sources, 40, 1, report)
    assert report.wrong == []
    assert sum(tally.tried for tally in report.kinds.values()) == 80
    assert sum(tally.rejected for tally in report.kinds.values()) > 5
    assert sum(tally.accepted for tally in report.kinds.values()) > 5


def test_broken_annotations_are_one_error_that_names_the_file():
    report = fuzz.Report()
    fuzz.fuzz_annotations(len(fuzz.annotation_files()) * len(fuzz._text_changes()) + 3, 2, report)
    assert report.wrong == []
    assert len(report.kinds) == len(fuzz.annotation_files()), "every format"


def test_a_reader_that_accepts_or_raises_anything_would_be_told(monkeypatch, tmp_path, sources):
    """The fuzzer itself: other frames are silent, another error is untyped."""
    report = fuzz.Report()
    frames = Child.frames
    monkeypatch.setattr(
        Child, "frames", lambda self, uri, row, *rest: frames(self, uri, row, *rest) * (row["access"] == "scan")
    )
    fuzz.fuzz_videos(sources[:1], 8, 1, report)
    assert any(line.startswith("silent: video ") for line in report.wrong)
    monkeypatch.setattr(Child, "probe", lambda self, *rest, **more: {}["x"])
    fuzz.fuzz_videos(sources[:1], 1, 1, report)
    assert report.wrong[-1].startswith("untyped: video ")


def huge_picture(folder, side):
    """A PNG of some kilobytes with a row of pixels; it claims as many rows as columns."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(3 * side))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    folder.mkdir()
    (folder / "0001.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return str(folder)


def test_a_header_that_claims_huge_frames_is_refused_before_there_is_memory_for_them(tmp_path):
    child = Child(60)
    found = child.probe(huge_picture(tmp_path / "huge", 9000))
    assert "has it frames of more than 67108864 pixels" in found["error"]
    assert "more than" not in child.probe(huge_picture(tmp_path / "large", 400))["error"], "it is cut, and said to be"
    child.close()


def test_a_stream_that_no_decoder_knows_is_the_files_fault_in_a_quick_look_too(tmp_path):
    frames = np.zeros((20, 48, 48, 3), np.uint8)
    data = rehearsal.encode_mp4(frames, 25).replace(b"avc1", b"zzz1")
    (tmp_path / "x.mp4").write_bytes(data)
    for quick in (False, True):
        said = answer({"uri": str(tmp_path / "x.mp4"), "quick": quick})[0]
        assert said == {"error": "undecodable: no decoder for the codec of its video stream"}


def test_a_decoder_may_not_claim_all_memory(tmp_path):
    """The bound of the process: what it cannot have is an error about the file."""
    code = (
        "import finepseudo.data.child as c; c.ROOM = 700 << 20\n"
        "from finepseudo.data import video\n"
        "video.frames = lambda *rest: bytearray(2 << 30)\n"
        "c._serve()"
    )
    import json
    import subprocess

    frames = np.zeros((20, 48, 48, 3), np.uint8)
    (tmp_path / "x.mp4").write_bytes(rehearsal.encode_mp4(frames, 25))
    shown = {"num_frames": 20, "height": 48, "width": 48, "access": "scan"}
    request = {"uri": str(tmp_path / "x.mp4"), "shown": shown, "index": [0], "size": [8, 8]}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(request).encode() + b"\n", capture_output=True, timeout=100
    )
    assert b'"undecodable: MemoryError"' in done.stdout, (done.stdout, done.stderr[-500:])
