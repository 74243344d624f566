"""A byte-bounded cache of decoded clips on a node's disk, shared by all its processes, that knows the future.

One file a clip and size, memory-mapped, committed by rename; the least recently used go first. How often a clip will be
read follows from the plan: what is read hundreds of times pays, what is read a few times would only cost, since a clip
is kept whole and a row needs a few frames of it. Of more than fits, a fixed share is kept: clips that push each
other out would never be there when they are asked for.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finepseudo.data.plan import Plan, derive
from finepseudo.errors import ArtefactError

PAYS = 4.0
"""Reads from which a clip is kept. To decode and write a 10-s clip whole costs up to two or three reads more than the
frames of a row, and each later read saves most of one (benchmarks/ingest.py stream)."""
ROOM = 0.9  # of the bound that a plan's clips may take: a share by chance is a little more or less


@dataclass(frozen=True)
class Kept:
    """Which clips of a plan a cache keeps."""

    labelled: int  # samples of the plan in front of all others
    shares: tuple[float, float]  # of the labelled ones, and of the others
    hit_rate: float  # of all rows of the plan, in one cache that is empty at its start

    @staticmethod
    def of(plan: Plan, frame_bytes: int, limit_bytes: int) -> Kept:
        """Those that are read most often, as far as the bound goes."""
        left, hits, shares = ROOM * limit_bytes, 0.0, [0.0, 0.0]
        length_N = plan.clips["num_frames"].take(plan.samples["clip"]).to_numpy()
        for part, reads in sorted(plan.reads(), key=lambda group: -group[1]):
            if reads >= PAYS:
                size = float(length_N[part].sum()) * frame_bytes
                share = min(1.0, left / size)
                shares[part.start > 0] = share
                left -= share * size
                hits += share * (reads - 1) * (part.stop - part.start)
        return Kept(plan.spec.labelled, (shares[0], shares[1]), hits / max(1, len(plan)))

    def __call__(self, sample: int, video_id: str) -> bool:
        """Whether the clip of a sample is one of them: the same one in every plan and process."""
        share = self.shares[sample >= self.labelled > 0]
        return share >= 1 or derive("kept", video_id) / (1 << 63) < share


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
        if not self.limit_bytes:
            return None
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
        if "/" in sha256 or sha256.startswith("."):
            raise ArtefactError(
                f"a manifest has {sha256!r} where the digest of a file is expected; probe the files again"
            )
        return Path(self.folder) / sha256[:2] / f"{sha256}-{height}x{width}.npy"
