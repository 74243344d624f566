"""Labelled and unlabelled halves of the training videos: seeded, class by class, written down."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from finepseudo.data.plan import derive
from finepseudo.errors import ManifestError
from finepseudo.storage.lineage import fingerprint


@dataclass(frozen=True)
class SplitLists:
    """Ids of D_l and D_u, and the seed and share that made them."""

    seed: int
    label_fraction: float
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Twelve digits that results repeat, so that a split can be recognised."""
        return fingerprint([self.labelled, self.unlabelled])

    def to_bytes(self) -> bytes:
        return json.dumps({**asdict(self), "fingerprint": self.fingerprint}, indent=1).encode()


def make_split(
    truth: Mapping[str, int], without: Iterable[str] = (), *, label_fraction: float, seed: int
) -> SplitLists:
    """Keep the label of `label_fraction` of each class's videos, of at least one; `without` have no label to keep.

    The order within a class is by a hash of seed and id, so adding a video moves no other between the halves
    beyond the changed count. Raises ManifestError where no class would have a labelled video.
    """
    by_class: dict[int, list[str]] = defaultdict(list)
    for video_id, label in truth.items():
        by_class[label].append(video_id)
    if not by_class or label_fraction <= 0:
        raise ManifestError(
            f"no class has a labelled video: {len(truth)} usable training videos with a label, split.label_fraction "
            f"= {label_fraction:g}; check the annotations, or raise split.label_fraction"
        )
    labelled: list[str] = []
    unlabelled = list(without)
    for label in sorted(by_class):
        order = sorted(by_class[label], key=lambda video_id: derive("split", seed, video_id))
        keep = max(1, round(label_fraction * len(order)))
        labelled += sorted(order[:keep])
        unlabelled += sorted(order[keep:])
    return SplitLists(seed, label_fraction, tuple(labelled), tuple(sorted(unlabelled)))
