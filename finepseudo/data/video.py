"""What a video file shows: its presented frames in their order, upright, and how to come to any of them.

The only module that knows a decoder. Frame i is the i-th that decoding from the start presents, edit lists and hidden
frames taken into account. decord is asked where probing has shown that its seeks find these frames; PyAV elsewhere.

Axes: F frames, H W pixels, C channels.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import av.error
import av.logging
import decord
import numpy as np

from finepseudo.data.pictures import Pictures
from finepseudo.errors import DecodeError

decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(av.logging.PANIC)

FAILURES = (decord.DECORDError, av.error.FFmpegError, RuntimeError, ValueError, IndexError, EOFError)
"""What decoders raise for files that they cannot read."""
THOROUGH = 2000  # packets up to which probing decodes a whole file; of a longer one it looks into PLACES windows
PLACES, WINDOW = 8, 48
FEW = 48  # frames up to which a file is always decoded from its start
MOST_BROKEN = 0.1  # share of packets that may be broken; their frames are left out, in probing and decoding alike
AHEAD_S = 2.0  # without an index of key frames: seconds up to which decoding on is taken to be cheaper than a seek
HEAD = 4096  # bytes of a picture in which it says of what kind it is
THUMB = 36  # pixels of the pictures by which two decoders' frames are compared
ALIKE = 1.0  # grey levels: decoders round colours differently
# Scaling to exactly these widths fails inside decord 0.6.0; such videos are decoded two pixels wider and cut.
_BROKEN_WIDTHS = frozenset({8, 12, 16, 24, 48, 72})

DECORD, SCAN, PACKETS, SEEK = "decord", "scan", "packets", "seek"

Packets = list[tuple[int | None, bool, bool]]
Presented = tuple[Fraction | None, np.ndarray]


@dataclass(frozen=True)
class Shown:
    """What probing found. Sides are in pixels as shown: upright, and stretched where pixels are not square."""

    num_frames: int
    height: int
    width: int
    access: str
    """How frames are come by: `decord`; by time, `seek <first> <step>` in ticks of the stream where times are even,
    `packets` where they are not; `scan`, from the start, where times lead to other frames or are missing; or
    `pictures <digest>`, each a file, of a folder with these names and sizes."""
    fps: float = 0.0  # the mean; decoding does not ask for it
    even: bool = True  # whether frame i is shown i / fps after the first: where not, seconds do not say a frame


class _Video:
    """A file from its start, decoded by one thread, so that workers add up."""

    def __init__(self, source: Any) -> None:
        self.source, self.broken = source, 0
        self.open()

    def open(self) -> None:
        self.container: Any = av.open(_again(self.source), metadata_errors="replace")
        streams = [one for one in self.container.streams.video if not one.disposition & one.disposition.attached_pic]
        if not streams:
            raise DecodeError("no video stream")
        self.stream = streams[0]
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def packets(self) -> Packets:
        """Time, whether it is a key frame, and whether it is discarded, of every packet, in the order of decoding."""
        packets = (packet for packet in self.container.demux(self.stream) if packet.size)
        return [(packet.pts, packet.is_keyframe, packet.is_discard) for packet in packets]

    def walk(self) -> Iterator[Any]:
        """Frames from here on; broken packets are counted and left out."""
        for packet in self.container.demux(self.stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                self.broken += 1
                continue
            yield from frames

    def sides(self, frame: Any) -> tuple[int, int]:
        """Height and width of a frame as it is shown."""
        ratio = float(self.stream.sample_aspect_ratio or self.codec.sample_aspect_ratio or 1)
        height, width = frame.height, max(1, round(frame.width * ratio)) if ratio > 0 else frame.width
        return (width, height) if round(frame.rotation / 90) % 2 else (height, width)

    def seek(self, pts: int) -> None:
        self.container.seek(pts, stream=self.stream, backward=True)

    def key_before(self, pts: int) -> int | None:
        """Time of the last key frame up to a time, where the file has an index of them."""
        entries = self.stream.index_entries
        place = entries.search_timestamp(pts, backward=True)
        return entries[place].timestamp if place >= 0 else None


def examine(source: Any) -> Shown:
    """Look at a file: count its frames, and find out which way leads to them.

    Args:
        source: bytes, a file that can be sought, or pictures.
    Raises DecodeError or one of FAILURES where it shows nothing.
    """
    if isinstance(source, Pictures):
        return _examine_pictures(source)
    with _Video(source) as video:
        table = video.packets()
    if len(table) > THOROUGH and (shown := _examine_long(source, table)):
        return shown
    times: list[int | None] = []
    prints: list[int] = []
    thumbs: list[np.ndarray] = []
    with _Video(source) as video:
        first = None
        for frame in video.walk():
            first = first or frame
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
        if thumbs and _decord_leads(video, table, first, thumbs):
            return Shown(len(times), height, width, DECORD, fps, even)
    ways = [regular, PACKETS if _listed(table) == times else ""] if len(times) > FEW else []
    access = next((way for way in ways if way and _leads(source, way, times, prints)), SCAN)
    return Shown(len(times), height, width, access, fps, even)


def _examine_pictures(source: Pictures) -> Shown:
    """The same of a folder of pictures, which must all be of one size."""
    sides: tuple[int, int] | None = None
    for number, name in enumerate(source.names):
        found = _picture(source, number)[1]
        sides = sides or found
        if found != sides:
            wanted, got = (f"{height}x{width}" for height, width in (sides, found))
            raise DecodeError(f"pictures of several sizes: {source.names[0]} is {wanted}, {name} is {got}")
    assert sides is not None
    return Shown(len(source), *sides, source.access)


def _picture(source: Pictures, number: int) -> tuple[Any, tuple[int, int]]:
    """One picture, and its sides as it is shown."""
    data = source.read(number)  # what is wrong with the store is not the picture's
    try:
        with _Video(data) as video:
            frame = next(video.walk(), None)
            if frame is None:
                raise DecodeError("shows nothing")
            return frame, video.sides(frame)
    except (DecodeError, *FAILURES) as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DecodeError(f"picture {source.names[number]}: {text}") from None


def glance(source: Any) -> Shown:
    """The same as `examine` finds, from the headers and the first frame where these leave no doubt.

    That is an MP4 whose index has every frame, shown at even times, within the file. Frames are come by from the start
    unless every key frame is an IDR picture of H.264, before which nothing is referred to. Broken packets are not seen.
    """
    if isinstance(source, Pictures):
        sides = {_picture(source, number)[1] for number in (0, len(source) - 1)}
        if len(sides) == 1:
            return Shown(len(source), *sides.pop(), source.access)
        return examine(source)
    with _Video(source) as video:
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
    times = _listed(table)
    if not times:
        return None
    place, height, width = {time: index for index, time in enumerate(times)}, 0, 0
    with _Video(source) as video:
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


def frames(source: Any, shown: Shown, index_F: Sequence[int], height: int, width: int) -> np.ndarray:
    """Frames of the given numbers, in that order, scaled to cover height x width and cut at the centre: uint8 FHWC.

    Raises DecodeError where one is not there: it is not the file that was probed.
    """
    order = sorted(set(index_F))
    if not order or order[0] < 0 or order[-1] >= shown.num_frames:
        raise DecodeError(f"expected frames within 0..{shown.num_frames - 1}, got {order[:1]} to {order[-1:]}")
    if isinstance(source, Pictures):
        if source.access != shown.access:
            raise DecodeError("the folder has other pictures than when it was probed")
        pictures = ((number, _picture(source, number)) for number in order)
        found = {number: _fitted(*picture, height, width) for number, picture in pictures}
    elif shown.access == DECORD:
        found = _by_decord(source, shown, order, height, width)
    else:
        with _Video(source) as video:
            walk = _scan(video, order) if shown.access == SCAN else _by_time(video, shown.access, order)
            found = {number: _fitted(frame, video.sides(frame), height, width) for number, frame in walk}
    missing = [number for number in order if number not in found]
    if missing:
        raise DecodeError(
            f"expected {shown.num_frames} frames, frame {missing[0]} is not there; was the file replaced?"
        )
    return np.stack([found[number] for number in index_F])


def presented(source: Any, height: int, width: int) -> Iterator[Presented]:
    """Every frame from the start: its time in seconds, if it has one, and its pixels_HWC as `frames` gives them."""
    if isinstance(source, Pictures):
        yield from ((None, _fitted(*_picture(source, number), height, width)) for number in range(len(source)))
        return
    with _Video(source) as video:
        base = video.stream.time_base or Fraction(1)
        for frame in video.walk():
            time_s = None if frame.pts is None else frame.pts * base
            yield time_s, _fitted(frame, video.sides(frame), height, width)


def _scan(video: _Video, order: Sequence[int]) -> Iterator[tuple[int, Any]]:
    wanted = set(order)
    for number, frame in enumerate(video.walk()):
        if number in wanted:
            yield number, frame
        if number == order[-1]:
            return


def _by_time(video: _Video, access: str, order: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Frames by their times: from the key frame before each, or onwards where that is nearer."""
    if access == PACKETS:
        with _Video(video.source) as again:
            times = _listed(again.packets())
        if len(times) <= order[-1]:
            return
        tolerance = 0.0
    else:
        first, step = (float(word) for word in access.split()[1:])
        times, tolerance = _Even(first, step), step / 2
    ahead = AHEAD_S / float(video.stream.time_base or 1)
    walk: Iterator[Any] | None = None
    now: int | None = None
    for number in order:
        time = times[number]
        target = round(time)
        if walk is not None and now is not None:
            key = video.key_before(target)
            if key > now if key is not None else target - now > ahead:
                walk = None
        frame = None if walk is None else _until(walk, time, tolerance)
        if walk is None:
            walk, frame = _from_key(video, time, tolerance)
        if frame is None:
            return
        now = frame.pts
        yield number, frame


def _from_key(video: _Video, time: float, tolerance: float) -> tuple[Iterator[Any], Any]:
    """Seek to a key frame before a time, farther back if need be; decoding from it on, and the frame of that time."""
    base = float(video.stream.time_base or 1)
    for back_s in (0, 1, 4, 16, 64, None):
        try:
            if back_s is None:
                video.container.close()
                video.open()
            else:
                video.seek(round(time - back_s / base))
        except av.error.FFmpegError:  # some containers refuse what lies before their first key frame
            continue
        walk = video.walk()
        # What comes before the first key frame refers to frames that were jumped over.
        head = next((frame for frame in walk if frame.key_frame), None)
        if head is None or head.pts is None or head.pts > time + tolerance:
            continue
        if abs(head.pts - time) <= tolerance:
            return walk, head
        return walk, _until(walk, time, tolerance)
    return iter(()), None


def _until(walk: Iterator[Any], time: float, tolerance: float) -> Any:
    for frame in walk:
        if frame.pts is not None and frame.pts >= time - tolerance:
            return frame if frame.pts <= time + tolerance else None
    return None


class _Even:
    """Times that are even: as good as a list of them."""

    def __init__(self, first: float, step: float) -> None:
        self.first, self.step = first, step

    def __getitem__(self, number: int) -> float:
        return self.first + number * self.step


def _by_decord(source: Any, shown: Shown, order: Sequence[int], height: int, width: int) -> dict[int, np.ndarray]:
    scaled_height, scaled_width = covering(shown.height, shown.width, height, width)
    scaled_width += 2 * (scaled_width in _BROKEN_WIDTHS)
    size = {"width": scaled_width, "height": scaled_height}
    try:
        reader = decord.VideoReader(_again(source), ctx=decord.cpu(0), num_threads=1, **size)
    except FAILURES:
        with _Video(source):  # says in a line what is wrong with the file; decord shows all of it
            raise
    if len(reader) != shown.num_frames:
        raise DecodeError(f"expected {shown.num_frames} frames, got {len(reader)}")
    frames_FHWC = reader.get_batch(list(order)).asnumpy()
    return {number: _cut(frame, height, width) for number, frame in zip(order, frames_FHWC, strict=True)}


def _fitted(frame: Any, sides: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Upright, scaled to cover, cut at the centre."""
    turns = round(frame.rotation / 90) % 4
    scaled = covering(*sides, height, width)
    tall, wide = scaled[::-1] if turns % 2 else scaled
    pixels = frame.reformat(width=wide, height=tall, format="rgb24", interpolation="BICUBIC").to_ndarray()
    return _cut(np.rot90(pixels, turns), height, width)


def _cut(frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (frame_HWC.shape[0] - height) // 2, (frame_HWC.shape[1] - width) // 2
    return np.ascontiguousarray(frame_HWC[top : top + height, left : left + width])


def covering(tall: int, wide: int, height: int, width: int) -> tuple[int, int]:
    """Sides of a picture that is scaled to cover height x width."""
    scale = max(height / tall, width / wide)
    return max(height, round(scale * tall)), max(width, round(scale * wide))


def _again(source: Any) -> Any:
    """The source from its start: decoders keep a place in it."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    source.seek(0)
    return source


def _listed(table: Packets) -> list[int]:
    """Times of the packets that are shown, in the order of showing; nothing where one has no time."""
    shown = [pts for pts, _, discarded in table if not discarded]
    times = [pts for pts in shown if pts is not None]
    return sorted(times) if len(times) == len(shown) else []


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
        with _Video(source) as video:
            found = {number: _print(frame) for number, frame in _by_time(video, access, sorted(set(order)))}
        if any(found.get(number) != prints[number] for number in order):
            return False
    return True


def _decord_leads(video: _Video, table: Packets, first: Any, thumbs: Sequence[np.ndarray]) -> bool:
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
        reader = decord.VideoReader(_again(video.source), ctx=decord.cpu(0), width=THUMB, height=THUMB, num_threads=1)
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
