"""A video file made small and quick to seek in: the frames that it shows, at the size that a recipe decodes.

H.264 in MP4, its index in front, a key frame every few frames and none that refers to a later one, without sound.

Axes: F frames, H W pixels, C channels.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np

from finepseudo.data import probe, video
from finepseudo.errors import DecodeError

SAMPLE = 8  # frames of a file that are compared with the original's
SPREAD = 16  # frames that are decoded to know what decoding costs
GUESSED_FPS = 25  # of a file that has neither times nor a rate
WINDOW = 7  # pixels of a side of the windows of the structural similarity


@dataclass(frozen=True)
class How:
    """What decides a packed file, beside the file it is made from."""

    height: int  # of the frames that are decoded from it
    width: int
    gop: int = 8  # frames from one key frame to the next
    crf: int = 18  # x264's constant quality: less is better and larger


def pack(source: Any, shown: video.Shown, how: How) -> tuple[dict[str, Any], bytes]:
    """A file's frames in a small file, and what that gains and costs.

    Args:
        source: bytes, a file that can be sought, or pictures.
        shown: what probing found in it.
    Returns:
        `num_frames, fps, height, width, access` of the packed file; `psnr` (dB) and `ssim` of a few of its frames
        against the original's at its size; CPU seconds of 16 spread frames, `raw_s` and `packed_s`; and its bytes.
    Raises DecodeError or one of video.FAILURES where the file does not show what probing found.
    """
    height, width = _sides(shown, how)
    sample = dict.fromkeys(_spread(shown.num_frames, SAMPLE).tolist(), np.empty(0))
    data = _encoded(_kept(video.presented(source, height, width), sample), (height, width), shown.fps, how)
    packed = probe.examine(data)
    if packed.num_frames != shown.num_frames:
        raise DecodeError(f"expected {shown.num_frames} frames, packed {packed.num_frames}; was the file replaced?")
    original_FHWC = np.stack(list(sample.values()))
    found_FHWC = video.frames(data, replace(packed, access=video.SCAN), list(sample), height, width)
    gains = {"psnr": psnr(original_FHWC, found_FHWC), "ssim": ssim(original_FHWC, found_FHWC)}
    costs = {"raw_s": _decode_s(source, shown, how), "packed_s": _decode_s(data, packed, how)}
    return {**asdict(packed), **gains, **costs}, data


def psnr(a_FHWC: np.ndarray, b_FHWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB; 99 at most, which equal ones have."""
    error = np.square(a_FHWC.astype(np.float64) - b_FHWC).mean()
    return float(min(99.0, 10 * np.log10(255**2 / max(error, 1e-12))))


def ssim(a_FHWC: np.ndarray, b_FHWC: np.ndarray) -> float:
    """Structural similarity of the brightness of 8-bit pictures: mean over all windows of 7 x 7 pixels, 1 where equal.

    Windows are as large as the picture where that is smaller.
    """
    a, b = a_FHWC.mean(3), b_FHWC.mean(3)
    mean_a, mean_b = _boxes(a), _boxes(b)
    var_a, var_b, both = _boxes(a * a) - mean_a**2, _boxes(b * b) - mean_b**2, _boxes(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _boxes(picture_FHW: np.ndarray) -> np.ndarray:
    """Means of all windows."""
    for axis in (1, 2):
        size = min(WINDOW, picture_FHW.shape[axis])
        sums = np.insert(picture_FHW.cumsum(axis), 0, 0, axis)
        last = sums.shape[axis]
        picture_FHW = (sums.take(range(size, last), axis) - sums.take(range(last - size), axis)) / size
    return picture_FHW


def _sides(shown: video.Shown, how: How) -> tuple[int, int]:
    """Height and width that still cover what is decoded: even, and never more than the file has."""
    needed = how.height + how.height % 2, how.width + how.width % 2
    scaled = video.covering(shown.height, shown.width, *needed)
    tall, wide = min(scaled, (shown.height, shown.width))
    return max(2, tall - tall % 2), max(2, wide - wide % 2)


def _spread(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _kept(frames: Iterator[video.Presented], sample: dict[int, np.ndarray]) -> Iterator[video.Presented]:
    """The same frames; those that the sample names are put into it."""
    for number, frame in enumerate(frames):
        if number in sample:
            sample[number] = frame[1]
        yield frame


def _encoded(frames: Iterator[video.Presented], sides: tuple[int, int], fps: float, how: How) -> bytes:
    """Frames as a file, at their own times, counted from the first; evenly where some have none, or none in order."""
    rate = Fraction(fps or GUESSED_FPS).limit_denominator(100_000)
    closed = f"keyint={how.gop}:min-keyint={how.gop}:scenecut=0:bframes=0"
    # The index can be put in front only of a file that has a name.
    handle, name = tempfile.mkstemp(suffix=".mp4")
    os.close(handle)
    try:
        with av.open(name, "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
            options = {"crf": str(how.crf), "preset": "fast", "tune": "fastdecode", "x264-params": closed}
            stream: Any = container.add_stream("libx264", rate=rate, options=options)
            (stream.height, stream.width), stream.pix_fmt, stream.thread_count = sides, "yuv420p", 1
            times, packets = _packets(stream, frames, rate)
            stream.time_base = base = Fraction(1, math.lcm(*(time_s.denominator for time_s in times)))
            for time_s, packet in zip(times, packets, strict=True):
                packet.pts = packet.dts = int(time_s / base)
                packet.time_base = base
                container.mux(packet)
        with open(name, "rb") as file:
            return file.read()
    finally:
        os.unlink(name)


def _packets(stream: Any, frames: Iterator[video.Presented], rate: Fraction) -> tuple[list[Fraction], list[Any]]:
    """Times of the frames in seconds, and a packet of each frame, in order."""
    times, packets = list[Fraction | None](), list[Any]()
    for time_s, pixels_HWC in frames:
        frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")
        frame.pts, frame.time_base = len(times), 1 / rate
        times.append(time_s)
        packets += stream.encode(frame)
    packets += stream.encode()
    known = [time_s for time_s in times if time_s is not None]
    if len(known) < len(times) or any(b <= a for a, b in pairwise(known)):
        return [number / rate for number in range(len(times))], packets
    return [time_s - known[0] for time_s in known], packets


def _decode_s(source: Any, shown: video.Shown, how: How) -> float:
    """CPU seconds of frames that are spread over the file, as a clip asks for them: the better of two."""
    order, found = _spread(shown.num_frames, SPREAD).tolist(), list[float]()
    for _ in range(2):
        began = time.process_time()
        video.frames(source, shown, order, how.height, how.width)
        found.append(time.process_time() - began)
    return min(found)
