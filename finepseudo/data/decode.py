"""From a plan row to uint8 clips, through a node's cache of decoded videos; or to stored features, where it has these.

Axes: F frames of a video, T frames of a clip, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finepseudo.data import features
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.storage.store import Store

DEADLINE_S = 60.0  # for the frames of one row, where nobody says another


@dataclass(frozen=True)
class Decoder:
    """Decodes the clips of plan rows at one size; `data` has the files, `child` opens them."""

    data: Store
    height: int
    width: int
    cache: ClipCache
    child: Child = field(default_factory=lambda: Child(DEADLINE_S))

    def clips(self, row: Mapping[str, Any], wanted: Sequence[np.ndarray], *, keep: bool = False) -> list[np.ndarray]:
        """One uint8 clip_THWC for each list of frame indices of the clip of a row.

        A clip that the cache is to `keep` is decoded whole; of any other only the frames that are asked for.
        Of a clip whose features are stored, feat_TC.
        Raises DecodeError where the file is gone, is not the file that was probed, does not decode, or not in time.
        """
        if row["access"] == features.ACCESS:
            return features.taken(self.data, row, wanted)
        whole = row["num_frames"] == row["file_frames"]
        name = row["sha256"] if whole else f"{row['sha256']}-{row['start']}-{row['num_frames']}"
        video_FHWC = self.cache.get(name, self.height, self.width)
        if video_FHWC is None and keep and self.cache.keeps(row["num_frames"] * self.height * self.width * 3):
            video_FHWC = self._decode(row, np.arange(row["num_frames"]))
            self.cache.put(name, video_FHWC)
        if video_FHWC is not None:
            return [video_FHWC[index_T] for index_T in wanted]
        every = np.unique(np.concatenate(wanted))
        frames_FHWC = self._decode(row, every)
        return [frames_FHWC[np.searchsorted(every, index_T)] for index_T in wanted]

    def _decode(self, row: Mapping[str, Any], index_F: np.ndarray) -> np.ndarray:
        in_file_F = (row["start"] + index_F).tolist()
        return self.child.frames(self.data.inside(row["path"]), row, in_file_F, self.height, self.width)
