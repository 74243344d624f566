"""Any frames of any file, in any order, are those that decoding from the start presents.

The frames of most files here say their own number: ten stripes, stripe b white where bit b of the number is set.
"""

import io
import json
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from finepseudo.data import probe, video
from finepseudo.errors import DecodeError

SHARED = Path(__file__).parents[3] / "shared"
CASES = SHARED / "cases"
KNOWN = json.loads((CASES / "frames.json").read_text()) if CASES.exists() else {}
BITS, WIDTH, HEIGHT = 10, 160, 64


def striped(number):
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    return np.repeat(np.array(bits, np.uint8) * 255, WIDTH // BITS)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)


def numbers(frames_FHWC):
    """What frames say of themselves."""
    middle = frames_FHWC[:, HEIGHT // 4 : -HEIGHT // 4].mean((1, 3))
    bits = middle.reshape(len(frames_FHWC), BITS, -1)[:, :, 5:11].mean(2) > 127
    return (bits << np.arange(BITS)).sum(1).tolist()


def encoded(count, *, form="mp4", codec="libx264", container=None, times=None, ratio=None, **options):
    """A file of striped frames."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=form, options=container or {}) as file:
        stream = file.add_stream(codec, rate=30, options={key.replace("_", "-"): str(v) for key, v in options.items()})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if ratio:
            stream.codec_context.sample_aspect_ratio = ratio
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(striped(number), format="rgb24")
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, 30)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return sink.getvalue()


def asked(count, seed=0):
    """Orders of frames in which a clip may ask."""
    draw = random.Random(seed)
    few = [draw.sample(range(count), min(count, 6)) for _ in range(6)]
    return [[0], [count - 1], [count - 1, 0], [0, 0, count // 2], list(range(0, count, max(1, count // 5)))[::-1], *few]


def check(data, expected, look=probe.examine):
    """Every order gives exactly the expected frames."""
    shown = look(data)
    assert shown.num_frames == len(expected)
    for order in [*asked(len(expected)), list(range(len(expected)))]:
        found = video.frames(data, shown, order, HEIGHT, WIDTH)
        assert numbers(found) == [expected[index] for index in order], (shown.access, order)
    return shown


@pytest.mark.skipif(not KNOWN, reason="the folder of cases is not beside this checkout")
@pytest.mark.parametrize("name", [name for name in KNOWN if isinstance(KNOWN[name].get("indices"), list)])
def test_frames_of_files_that_say_their_numbers(name):
    known, data = KNOWN[name], (CASES / "frames" / name).read_bytes()
    expected = [number for first, last in known["indices"] for number in range(first, last + 1)]
    if not known["rotation"] and known["size"] == [WIDTH, HEIGHT]:
        check(data, expected)
        return
    shown, (width, height) = probe.examine(data), known["size"]
    upright = (width, height) if abs(known["rotation"]) == 90 else (height, width)
    assert (shown.num_frames, shown.height, shown.width) == (len(expected), *upright)
    for order in asked(len(expected)):
        found = video.frames(data, shown, order, *upright)
        lying = np.stack([np.rot90(frame, -round(known["rotation"] / 90)) for frame in found])
        if width == WIDTH:
            assert numbers(lying) == [expected[index] for index in order]


@pytest.mark.skipif(not KNOWN, reason="the folder of cases is not beside this checkout")
@pytest.mark.parametrize("name", [name for name in KNOWN if isinstance(KNOWN[name].get("indices"), list)])
def test_a_glance_leads_to_the_same_frames(name):
    """All but what is broken inside of a file: a glance does not see that."""
    known, data = KNOWN[name], (CASES / "frames" / name).read_bytes()
    expected = [number for first, last in known["indices"] for number in range(first, last + 1)]
    if name != "corrupt_packet.mp4":
        shown, found = probe.examine(data), probe.glance(io.BytesIO(data))
        assert replace(found, access="") == replace(shown, access="")
        if not known["rotation"] and known["size"] == [WIDTH, HEIGHT]:
            check(data, expected, probe.glance)


@pytest.mark.parametrize(
    ("options", "access"),
    [
        ({"g": 12, "bf": 3}, "seek"),
        ({"g": 12, "x264_params": "open-gop=1:bframes=3:scenecut=0"}, "scan"),
        ({"x264_params": "intra-refresh=1:keyint=40:bframes=0"}, "scan"),
        ({"codec": "mpeg4", "g": 12, "bf": 2}, "scan"),
        ({"form": "mpegts", "g": 30, "bf": 2}, "seek"),
    ],
    ids=["closed", "open", "refresh", "mpeg4", "ts"],
)
def test_a_glance_seeks_where_key_frames_say_that_it_may(options, access):
    assert check(encoded(90, **options), list(range(90)), probe.glance).access.split()[0] == access


@pytest.fixture
def decoded(monkeypatch):
    """Times of all frames that are decoded."""
    found, walk = [], video.Video.walk

    def counted(self):
        for frame in walk(self):
            found.append(frame.pts)
            yield frame

    monkeypatch.setattr(video.Video, "walk", counted)
    return found


def test_a_glance_reads_and_decodes_little(monkeypatch, decoded):
    rng, read = np.random.default_rng(0), []
    noise = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    monkeypatch.setitem(globals(), "striped", lambda number: np.roll(noise, 7 * number, 1))
    data = encoded(300, g=100, preset="ultrafast")

    class Counted(io.BytesIO):
        def read(self, size=-1):
            found = super().read(size)
            read.append(len(found))
            return found

    assert probe.glance(Counted(data)).num_frames == 300
    assert len(decoded) == 1
    assert sum(read) < len(data) / 3


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_glance_does_not_believe_an_index_of_more_than_is_there(share, tmp_path):
    (tmp_path / "whole.mp4").write_bytes(encoded(90, g=12))
    data = front(tmp_path / "whole.mp4")
    assert probe.glance(data).num_frames == 90
    cut = data[: round(share * len(data))]
    try:
        assert probe.glance(cut) == probe.examine(cut)
    except (DecodeError, *video.FAILURES):
        with pytest.raises((DecodeError, *video.FAILURES)):
            probe.examine(cut)


def front(path):
    """The file with its index in front."""
    target = path.with_name("front.mp4")
    with av.open(str(path)) as old, av.open(str(target), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return target.read_bytes()


REAL = [path for path in sorted(SHARED.glob("data/videos/*/*")) if path.suffix in (".avi", ".mp4", ".mkv")]


@pytest.mark.long
@pytest.mark.skipif(not REAL, reason="the folder of real videos is not beside this checkout")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name[:24])
def test_frames_of_real_files_are_those_of_decoding_from_the_start(path):
    data = path.read_bytes()
    shown = probe.examine(data)
    scan = replace(shown, access=video.SCAN)
    every = video.frames(data, scan, range(shown.num_frames), 48, 64).astype(np.int16)
    with av.open(io.BytesIO(data), metadata_errors="replace") as file:
        assert shown.num_frames == sum(1 for _ in file.decode(video=0))
    for order in asked(shown.num_frames)[4:7]:
        for index, frame in zip(order, video.frames(data, shown, order, 48, 64), strict=True):
            gaps_F = np.abs(every - frame).mean((1, 2, 3))
            assert gaps_F[index] <= gaps_F.min() + 1  # decoders round colours differently, and pictures may repeat


@pytest.mark.parametrize(
    ("options", "access"),
    [
        ({}, "decord"),
        ({"g": 12, "bf": 3}, "decord"),
        ({"g": 12, "x264_params": "open-gop=1:bframes=3:scenecut=0"}, "seek"),
        ({"form": "matroska", "g": 12}, "seek"),
        ({"form": "mpegts", "g": 30, "bf": 2}, "seek"),
        ({"form": "avi", "codec": "mpeg4", "g": 12}, "seek"),
        ({"form": "avi", "codec": "mpeg4", "g": 12, "bf": 2}, None),
        ({"form": "mpegts", "codec": "mpeg2video", "g": 12, "bf": 2}, None),
        ({"container": {"movflags": "dash+frag_every_frame+empty_moov"}, "g": 30}, None),
        ({"form": "matroska", "times": [n + 5 * (n // 11) for n in range(90)], "g": 20}, "packets"),
        ({"x264_params": "intra-refresh=1:keyint=40:bframes=0"}, None),
    ],
    ids=["plain", "b-frames", "open", "mkv", "ts", "avi", "avi b", "mpeg2", "fragments", "uneven", "refresh"],
)
def test_frames_of_every_kind_of_file(options, access):
    found = check(encoded(90, **options), list(range(90))).access
    assert access is None or found.split()[0] == access


def test_a_long_file_is_read_where_it_is_asked_for(decoded):
    """Neither looking at it nor a clip decodes it whole."""
    count = 3 * probe.THOROUGH
    data = encoded(count, g=60, preset="ultrafast", bf=2)
    shown = probe.examine(data)
    assert (shown.num_frames, shown.access.split()[0]) == (count, "seek")
    assert len(decoded) < count / 4
    decoded.clear()
    for source in (data, io.BytesIO(data)):
        order = [count - 1, 17, count // 2]
        found = video.frames(source, shown, order, HEIGHT, WIDTH)
        assert numbers(found) == [index % 1024 for index in order]
    assert len(decoded) < 2 * 3 * 70


@pytest.mark.parametrize("way", ["seek 0 512.0", "packets", "scan", "decord"])
def test_another_file_with_fewer_frames_is_noticed(way):
    data = encoded(60, g=12)
    with pytest.raises(DecodeError, match="expected 75 frames"):
        video.frames(data, video.Shown(75, HEIGHT, WIDTH, way), [3, 70], HEIGHT, WIDTH)
    with pytest.raises(DecodeError, match=r"expected frames within 0\.\.59, got \[-1\]"):
        video.frames(data, video.Shown(60, HEIGHT, WIDTH, way), [-1, 3], HEIGHT, WIDTH)


def test_a_broken_packet_costs_its_frames_and_no_others():
    """Looking and decoding come to one verdict: a few broken packets are left out, many refuse the file."""
    data = bytearray(encoded(120, codec="mpeg4", form="avi", g=1))
    with av.open(io.BytesIO(bytes(data))) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    data[places[40] + 8 : places[40] + 40] = b"\xff" * 32
    shown = probe.examine(bytes(data))
    found = video.frames(bytes(data), shown, range(shown.num_frames), HEIGHT, WIDTH)
    assert [n for n in numbers(found) if n in range(120)][:40] == list(range(40))
    assert shown.num_frames >= 119
    for place in places[10:60]:
        data[place + 8 : place + 60] = b"\xff" * 52
    with pytest.raises(DecodeError, match=r"\d+ of \d+ packets are broken"):
        probe.examine(bytes(data))


@pytest.mark.parametrize("options", [{}, {"codec": "mpeg4", "form": "avi"}], ids=["decord", "seek"])
def test_what_is_made_up_in_a_damaged_picture_is_that_of_decoding_from_the_start(options):
    data = bytearray(encoded(90, g=12, **options))
    assert probe.examine(bytes(data)).access != "scan"
    with av.open(io.BytesIO(bytes(data))) as file:
        packet = [packet for packet in file.demux(video=0) if packet.size][36]
        half, end = packet.pos + packet.size // 2, packet.pos + packet.size
    data[half:end] = bytes(end - half)
    shown = probe.examine(bytes(data))
    assert (shown.num_frames, shown.access) == (90, "scan")
    found = video.frames(bytes(data), shown, range(90), HEIGHT, WIDTH)
    assert numbers(found)[:36] == list(range(36))


def test_pixels_that_are_not_square_are_stretched():
    shown = check(encoded(60), list(range(60)))
    assert (shown.height, shown.width) == (HEIGHT, WIDTH)
    wide = probe.examine(encoded(60, ratio=Fraction(16, 11)))
    assert (wide.height, wide.width) == (HEIGHT, round(WIDTH * 16 / 11))
    assert wide.access != "decord"


def test_what_shows_nothing_is_refused():
    for data in (b"no video " * 99, encoded(60)[:300]):
        with pytest.raises((DecodeError, *video.FAILURES)):
            probe.examine(data)


@pytest.mark.skipif(not KNOWN, reason="the folders of files are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "even"), [("vfr.mp4", False), ("vfr_drop.mp4", False), ("base.mp4", True), ("x.ts", True)]
)
def test_uneven_times_are_noticed(name, even):
    assert probe.examine((CASES / "frames" / name).read_bytes()).even is even
