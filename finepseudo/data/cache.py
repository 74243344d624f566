"""A byte-bounded cache of decoded videos on a node's disk, shared by all its processes.

One file a video and size, memory-mapped, committed by rename; the least recently used go first. A small labelled
set is read hundreds of times, and opening and decoding dominate each reading.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class ClipCache:
    """Decoded videos below `folder`, at most `limit_bytes` of them (0: off); hits and misses are counted."""

    folder: str
    limit_bytes: int
    hits: int = 0
    misses: int = 0
    _written: int = field(default=0, repr=False)

    def keeps(self, nbytes: int) -> bool:
        """Whether a video of so many bytes would be kept: none that would take more than a tenth of the cache."""
        return 0 < nbytes <= self.limit_bytes // 10

    def get(self, sha256: str, height: int, width: int) -> np.ndarray | None:
        path = self._path(sha256, height, width)
        try:
            video_FHWC = np.load(path, mmap_mode="r", allow_pickle=False)
            os.utime(path)
        except (OSError, ValueError, EOFError) as error:  # not there, not ours to read, or cut short
            if not isinstance(error, OSError):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            self.misses += 1
            return None
        self.hits += 1
        return video_FHWC

    def put(self, sha256: str, video_FHWC: np.ndarray) -> None:
        """Keep a video, unless it is too large or the disk has no room for it."""
        if not self.keeps(video_FHWC.nbytes):
            return
        path = self._path(sha256, *video_FHWC.shape[1:3])
        # A full disk must not fail a decode that has succeeded: the cache is a convenience.
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.save(file, video_FHWC, allow_pickle=False)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        self._written += video_FHWC.nbytes
        # Every process looks at the whole folder now and then, so that together they keep the bound closely.
        if self._written > self.limit_bytes // 50:
            self._written = 0
            self.evict()

    def evict(self) -> None:
        files = []
        for path in Path(self.folder).glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, sha256: str, height: int, width: int) -> Path:
        return Path(self.folder) / sha256[:2] / f"{sha256}-{height}x{width}.npy"
