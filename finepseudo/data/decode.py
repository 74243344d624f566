"""From a plan row to uint8 clips: the only module that knows the video decoder.

Axes: F frames of a video, T frames of a clip, H W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import decord
import numpy as np

from finepseudo.data.cache import ClipCache
from finepseudo.errors import DecodeError
from finepseudo.storage.store import Store

decord.logging.set_level(decord.logging.QUIET)

FAILURES = (decord.DECORDError, RuntimeError, ValueError)  # what the decoder raises for files that it cannot read
# Scaling to exactly these widths fails inside decord 0.6.0; such videos are decoded two pixels wider and cut.
_BROKEN_WIDTHS = frozenset({8, 12, 16, 24, 48, 72})


@dataclass(frozen=True)
class Decoder:
    """Decodes the clips of plan rows at one size, through a node's cache of decoded videos; `data` has the files."""

    data: Store
    height: int
    width: int
    cache: ClipCache

    def clips(self, row: Mapping[str, Any], columns: Sequence[str]) -> list[np.ndarray]:
        """One uint8 clip_THWC for each named column of frame indices.

        Raises DecodeError where the file is gone, is not the file that was probed, or does not decode.
        """
        wanted = [np.asarray(row[column]) for column in columns]
        if self.cache.limit_bytes > 0:
            video_FHWC = self.cache.get(row["sha256"], self.height, self.width)
            if video_FHWC is None:
                video_FHWC = self._decode(row, np.arange(row["num_frames"]))
                self.cache.put(row["sha256"], video_FHWC)
            return [video_FHWC[index_T] for index_T in wanted]
        every = np.unique(np.concatenate(wanted))
        frames_FHWC = self._decode(row, every)
        return [frames_FHWC[np.searchsorted(every, index_T)] for index_T in wanted]

    def _decode(self, row: Mapping[str, Any], index_F: np.ndarray) -> np.ndarray:
        uri = self.data.uri(row["path"])
        try:
            data = self.data.read(row["path"])
        except OSError as error:
            raise DecodeError(f"{uri}: unreadable: {error}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != row["sha256"]:
            raise DecodeError(
                f"{uri}: not the file that was probed: expected sha256 {row['sha256'][:12]}, got {found[:12]} "
                f"({len(data)} bytes)"
            )
        scale = max(self.height / row["height"], self.width / row["width"])
        height = max(self.height, round(scale * row["height"]))
        width = max(self.width, round(scale * row["width"]))
        width += 2 * (width in _BROKEN_WIDTHS)
        try:
            reader = open_video(data, uri, width=width, height=height)
            if len(reader) != row["num_frames"]:
                raise DecodeError(f"{uri}: expected {row['num_frames']} frames, got {len(reader)}")
            frames_FHWC = reader.get_batch(index_F.tolist()).asnumpy()
        except FAILURES as error:
            raise DecodeError(f"{uri}: {' '.join(str(error).split())[:200]}") from error
        top, left = (height - self.height) // 2, (width - self.width) // 2
        return np.ascontiguousarray(frames_FHWC[:, top : top + self.height, left : left + self.width])


def open_video(data: bytes, name: str, *, width: int = -1, height: int = -1) -> Any:
    """A decord reader over a whole file in memory, scaled while decoding; one thread, so that workers add up.

    Raises DecodeError where the bytes are no video that the decoder can open.
    """
    try:
        return decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    except FAILURES as error:
        raise DecodeError(f"{name}: cannot be opened: {' '.join(str(error).split())[:200]}") from error
