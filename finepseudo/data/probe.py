"""Probing: which frames a video file shows, and which way leads to them, found out once and by evidence.

Axes: F frames, H W pixels, C channels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from finepseudo.data.pictures import Pictures
from finepseudo.data.video import (
    DECORD,
    FAILURES,
    PACKETS,
    SCAN,
    SEEK,
    Packets,
    Shown,
    Video,
    by_time,
    decord_reader,
    picture,
    times_of,
)
from finepseudo.errors import DecodeError

THOROUGH = 2000  # packets up to which probing decodes a whole file; of a longer one it looks into PLACES windows
PLACES, WINDOW = 8, 48
FEW = 48  # frames up to which a file is always decoded from its start
MOST_BROKEN = 0.1  # share of packets that may be broken; their frames are left out, in probing and decoding alike
HEAD = 4096  # bytes of a picture in which it says of what kind it is
THUMB = 36  # pixels of the pictures by which two decoders' frames are compared
ALIKE = 1.0  # grey levels: decoders round colours differently


def examine(source: Any) -> Shown:
    """Look at a file: count its frames, and find out which way leads to them.

    Args:
        source: bytes, a file that can be sought, or pictures.
    Raises DecodeError or one of FAILURES where it shows nothing.
    """
    if isinstance(source, Pictures):
        return _examine_pictures(source)
    with Video(source) as video:
        table = video.packets()
    if len(table) > THOROUGH and (shown := _examine_long(source, table)):
        return shown
    times: list[int | None] = []
    prints: list[int] = []
    thumbs: list[np.ndarray] = []
    sound = True  # else a part of a picture is made up of those decoded before it: alike only from the start
    with Video(source) as video:
        first = None
        for frame in video.walk():
            first = first or frame
            sound = sound and not frame.is_corrupt
            times.append(frame.pts)
            prints.append(_print(frame))
            if len(table) > THOROUGH:  # pictures of a long file would fill the memory, and decord is not asked for one
                continue
            thumbs.append(frame.reformat(width=THUMB, height=THUMB, format="rgb24").to_ndarray())
        if video.broken > MOST_BROKEN * len(table):
            raise DecodeError(f"{video.broken} of {len(table)} packets are broken")
        if first is None:
            raise DecodeError("no frames: the video stream is empty")
        height, width = video.sides(first)
        rate = float(video.stream.average_rate or video.stream.guessed_rate or 0)
        fps = _rate(times, float(video.stream.time_base or 0)) or rate
        regular = _regular(times)
        even = bool(regular) or not _increasing(times)  # times that go back, as in AVI, say nothing: its rate does
        if sound and thumbs and _decord_leads(video, table, first, thumbs):
            return Shown(len(times), height, width, DECORD, fps, even)
    ways = [regular, PACKETS if times_of(table) == times else ""] if sound and len(times) > FEW else []
    access = next((way for way in ways if way and _leads(source, way, times, prints)), SCAN)
    return Shown(len(times), height, width, access, fps, even)


def _examine_pictures(source: Pictures) -> Shown:
    """The same of a folder of pictures, which must all be of one size."""
    sides: tuple[int, int] | None = None
    for number, name in enumerate(source.names):
        found = picture(source, number)[1]
        sides = sides or found
        if found != sides:
            wanted, got = (f"{height}x{width}" for height, width in (sides, found))
            raise DecodeError(f"pictures of several sizes: {source.names[0]} is {wanted}, {name} is {got}")
    assert sides is not None
    return Shown(len(source), *sides, source.access)


def glance(source: Any) -> Shown:
    """The same as `examine` finds, from the headers and the first frame where these leave no doubt.

    That is an MP4 whose index has every frame, shown at even times, within the file. Frames are come by from the start
    unless every key frame is an IDR picture of H.264, before which nothing is referred to. Broken packets are not seen.
    """
    if isinstance(source, Pictures):
        sides = {picture(source, number)[1] for number in (0, len(source) - 1)}
        if len(sides) == 1:
            return Shown(len(source), *sides.pop(), source.access)
        return examine(source)
    with Video(source) as video:
        # Of every frame the time of decoding, place, size, and whether it is a key frame and discarded: plain values,
        # since the entries go with the file.
        index = [(e.timestamp, e.pos, e.size, e.is_keyframe, e.is_discard) for e in video.stream.index_entries]
        first = next(video.walk(), None)
        even = _regular([time for time, *_ in index])  # times of decoding are as even as those of showing
        whole = "mp4" in video.container.format.name and len(index) == video.stream.frames
        if not (whole and even and first and first.pts == video.stream.start_time):
            return examine(source)
        sides, access = video.sides(first), f"{SEEK} {first.pts} {even.split()[2]}"
        fps = _rate([time for time, *_ in index], float(video.stream.time_base or 0))
        extra = bytes(video.codec.extradata or b"")
        length = extra[4] % 4 + 1 if video.codec.name == "h264" and len(extra) > 4 else 0
    if any(discarded for *_, discarded in index) or max(place + size for _, place, size, *_ in index) > _size(source):
        return examine(source)
    keys = [place for _, place, _, key, _ in index if key]
    by_time = len(index) > FEW and length and all(_instant(_at(source, place), length) for place in keys)
    if not by_time and len(index) > THOROUGH:  # each clip of a long file from its start would cost more than looking
        return examine(source)
    return Shown(len(index), *sides, access if by_time else SCAN, fps)


def _size(source: Any) -> int:
    return len(source) if isinstance(source, bytes) else source.seek(0, 2)


def _at(source: Any, place: int) -> bytes:
    """Bytes from a place on, as many as hold the heads of a picture."""
    if isinstance(source, bytes):
        return source[place : place + HEAD]
    source.seek(place)
    return source.read(HEAD)


def _instant(data: bytes, length: int) -> bool:
    """Whether the first picture in H.264 units, each after its length in so many bytes, is an IDR picture."""
    place = 0
    while place + length < len(data):
        kind = data[place + length] & 31
        if 1 <= kind <= 5:
            return kind == 5
        place += length + int.from_bytes(data[place : place + length])
    return False


def _examine_long(source: Any, table: Packets) -> Shown | None:
    """The same of a long file by its packets, if what is decoded here and there agrees with them."""
    times = times_of(table)
    if not times:
        return None
    place, height, width = {time: index for index, time in enumerate(times)}, 0, 0
    with Video(source) as video:
        for part in range(PLACES):
            video.seek(times[part * (len(times) - 1) // PLACES])
            seen: list[int] = []
            for frame in video.walk():
                if not seen:
                    height, width = video.sides(frame)
                if seen or frame.key_frame:
                    seen.append(place.get(frame.pts, -1))
                if len(seen) == WINDOW:
                    break
            if not seen or seen != list(range(seen[0], seen[0] + len(seen))) or seen[0] < 0:
                return None
        fps = _rate(times, float(video.stream.time_base or 0))
    regular = _regular(times)
    return Shown(len(times), height, width, regular or PACKETS, fps, bool(regular))


def _regular(times: Sequence[Any]) -> str:
    """`seek <first> <step>` where frame i is shown at first + i step, within a third of a step."""
    if any(time is None for time in times) or len(times) < 2:
        return ""
    shown = np.array(times, float)
    step = float(shown[-1] - shown[0]) / (len(shown) - 1)
    even = step > 0 and np.abs(shown - shown[0] - step * np.arange(len(shown))).max() < step / 3
    return f"{SEEK} {times[0]} {step!r}" if even else ""


def _increasing(times: Sequence[Any]) -> bool:
    return None not in times and len(times) > 1 and all(b > a for a, b in pairwise(times))


def _rate(times: Sequence[Any], time_base: float) -> float:
    if len(times) < 2 or times[0] is None or times[-1] is None or not times[-1] > times[0] or not time_base:
        return 0.0
    return round((len(times) - 1) / ((times[-1] - times[0]) * time_base), 6)


def _print(frame: Any) -> int:
    """A number that equal pictures share."""
    return zlib.crc32(frame.planes[0])


def _leads(source: Any, access: str, times: Sequence[Any], prints: Sequence[int]) -> bool:
    """Whether frames by time are those of decoding from the start: tried from either end, sparsely and one by one."""
    if any(b <= a for a, b in pairwise(times)):
        return False
    last = len(times) - 1
    spread = [part * last // 7 for part in range(8)]
    for order in (spread, [last // 3, last // 3 + 1], [last - 1, last], [last // 2], [0, last]):
        with Video(source) as video:
            found = {number: _print(frame) for number, frame in by_time(video, access, sorted(set(order)))}
        if any(found.get(number) != prints[number] for number in order):
            return False
    return True


def _decord_leads(video: Video, table: Packets, first: Any, thumbs: Sequence[np.ndarray]) -> bool:
    """Whether decord finds the same frames: H.264 in MP4 whose groups of pictures are closed and shown whole.

    Its seeks give other frames, without a word, where a picture before a key frame refers to one behind it, and in
    files whose index leads astray. So it is asked for some as well, and what it gives must be most like these.
    """
    count = len(thumbs)
    whole = isinstance(video.source, bytes) and len(table) == count and not any(discarded for _, _, discarded in table)
    known = video.codec.name == "h264" and "mp4" in video.container.format.name and video.codec.pix_fmt == "yuv420p"
    plain = video.sides(first) == (video.codec.height, video.codec.width) and not first.rotation
    alone = len(video.container.streams.video) == 1
    if not (whole and known and plain and alone and _closed(table)):
        return False
    try:
        reader = decord_reader(video.source, THUMB, THUMB)
        asked = sorted({part * (count - 1) // 11 for part in range(12)})
        found = reader.get_batch(asked).asnumpy().astype(np.float32) if len(reader) == count else []
    except FAILURES:
        return False
    pictures = np.stack(thumbs).astype(np.float32)
    gaps = [np.abs(pictures - one).mean((1, 2, 3)) for one in found]
    return bool(gaps) and all(gap[number] <= gap.min() + ALIKE for number, gap in zip(asked, gaps, strict=True))


def _closed(table: Packets) -> bool:
    """Whether nothing that comes after a key frame in the file is shown before it."""
    latest = -math.inf
    for pts, key, _ in table:
        latest = max(latest, pts or 0) if key else latest
        if (pts or 0) < latest:
            return False
    return True
