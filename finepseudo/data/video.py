"""What a video file shows: its presented frames in their order, upright, and how to come to any of them.

The only module that knows a decoder. Frame i is the i-th that decoding from the start presents, edit lists and hidden
frames taken into account. decord is asked where probing has shown that its seeks find these frames; PyAV elsewhere.

Axes: F frames, H W pixels, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
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

FAILURES = (
    *(decord.DECORDError, av.error.FFmpegError, RuntimeError, ValueError, LookupError, EOFError),
    *(ArithmeticError, AttributeError, TypeError, MemoryError),
)
"""What decoders raise for files that they cannot read, and their bindings for streams that lack something."""
MOST_PIXELS = 1 << 26  # of a frame, 8192 x 8192: a header of some bytes may claim more than a machine has memory for
AHEAD_S = 2.0  # without an index of key frames: seconds up to which decoding on is taken to be cheaper than a seek
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


class Video:
    """A file from its start, decoded by one thread, so that workers add up."""

    def __init__(self, source: Any) -> None:
        self.source, self.broken = source, 0
        self.open()

    def open(self) -> None:
        limits = {"max_pixels": str(MOST_PIXELS)}  # also of what is decoded to find out what the streams are
        self.container: Any = av.open(_again(self.source), metadata_errors="replace", options=limits)
        streams = [one for one in self.container.streams.video if not one.disposition & one.disposition.attached_pic]
        if not streams:
            raise DecodeError("no video stream")
        self.stream = streams[0]
        self.codec = self.stream.codec_context
        if self.codec is None:
            raise DecodeError("no decoder for the codec of its video stream")
        if self.codec.width * self.codec.height > MOST_PIXELS:
            raise DecodeError(f"frames of {self.codec.height}x{self.codec.width}, of more than {MOST_PIXELS} pixels")
        self.codec.options, self.codec.thread_count = limits, 1

    def __enter__(self) -> Video:
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
            except av.error.ArgumentError:
                most = f"{MOST_PIXELS} pixels"
                raise DecodeError(f"its decoder refuses it; has it frames of more than {most}, or none?") from None
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
        pictures = ((number, picture(source, number)) for number in order)
        found = {number: _fitted(*picture, height, width) for number, picture in pictures}
    elif shown.access == DECORD:
        found = _by_decord(source, shown, order, height, width)
    else:
        with Video(source) as video:
            walk = _scan(video, order) if shown.access == SCAN else by_time(video, shown.access, order)
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
        yield from ((None, _fitted(*picture(source, number), height, width)) for number in range(len(source)))
        return
    with Video(source) as video:
        base = video.stream.time_base or Fraction(1)
        for frame in video.walk():
            time_s = None if frame.pts is None else frame.pts * base
            yield time_s, _fitted(frame, video.sides(frame), height, width)


def _scan(video: Video, order: Sequence[int]) -> Iterator[tuple[int, Any]]:
    wanted = set(order)
    for number, frame in enumerate(video.walk()):
        if number in wanted:
            yield number, frame
        if number == order[-1]:
            return


def by_time(video: Video, access: str, order: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Frames by their times: from the key frame before each, or onwards where that is nearer."""
    if access == PACKETS:
        with Video(video.source) as again:
            times = times_of(again.packets())
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


def _from_key(video: Video, time: float, tolerance: float) -> tuple[Iterator[Any], Any]:
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
    try:
        reader = decord_reader(source, scaled_height, scaled_width)
    except FAILURES:
        with Video(source):  # says in a line what is wrong with the file; decord shows all of it
            raise
    if len(reader) != shown.num_frames:
        raise DecodeError(f"expected {shown.num_frames} frames, got {len(reader)}")
    frames_FHWC = reader.get_batch(list(order)).asnumpy()
    return {number: _cut(frame, height, width) for number, frame in zip(order, frames_FHWC, strict=True)}


def decord_reader(source: Any, height: int, width: int) -> Any:
    """By one thread, so that workers add up."""
    return decord.VideoReader(_again(source), ctx=decord.cpu(0), num_threads=1, height=height, width=width)


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


def times_of(table: Packets) -> list[int]:
    """Times of the packets that are shown, in the order of showing; nothing where one has no time."""
    shown = [pts for pts, _, discarded in table if not discarded]
    times = [pts for pts in shown if pts is not None]
    return sorted(times) if len(times) == len(shown) else []


def picture(source: Pictures, number: int) -> tuple[Any, tuple[int, int]]:
    """One picture, and its sides as it is shown."""
    data = source.read(number)  # what is wrong with the store is not the picture's
    try:
        with Video(data) as video:
            frame = next(video.walk(), None)
            if frame is None:
                raise DecodeError("shows nothing")
            return frame, video.sides(frame)
    except (DecodeError, *FAILURES) as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DecodeError(f"picture {source.names[number]}: {text}") from None
