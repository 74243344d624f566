"""Labelled and unlabelled halves of the training clips: seeded, class by class, written down.

Axes: N clips.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finepseudo.data.manifest import UNKNOWN, Manifest
from finepseudo.data.plan import derive
from finepseudo.errors import ManifestError


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of D_l, class by class, and of D_u, ascending; and the seed and share that made them."""

    seed: int
    label_fraction: float
    labelled: np.ndarray
    unlabelled: np.ndarray
    labelled_ids: tuple[str, ...]
    fingerprint: str
    """Twelve digits of the ids of both, that results repeat: two people who have the same have the same split."""

    def to_bytes(self) -> bytes:
        """For people and other programs: D_u is what the manifest has besides."""
        body = {
            "seed": self.seed,
            "label_fraction": self.label_fraction,
            "fingerprint": self.fingerprint,
            "unlabelled": len(self.unlabelled),
            "labelled": self.labelled_ids,
        }
        return json.dumps(body, indent=1).encode()


def make_split(manifest: Manifest, *, label_fraction: float, seed: int) -> Split:
    """Keep the label of `label_fraction` of each class's training clips, of at least one; D_u is all others.

    The order within a class is by a hash of seed and id, so adding a clip moves no other between the halves beyond
    the changed count. Raises ManifestError where no class would have a labelled clip.
    """
    row_N = manifest.rows("train")
    truth_N = manifest.truth(row_N)
    known = int((truth_N != UNKNOWN).sum())
    if not known or label_fraction <= 0:
        raise ManifestError(
            f"no class has a labelled video: {known} usable training videos with a label, split.label_fraction "
            f"= {label_fraction:g}; check the annotations, or raise split.label_fraction"
        )
    labelled = [np.zeros(0, np.int64)]
    for label in range(manifest.num_classes):
        members = row_N[truth_N == label]
        if len(members):
            keys = [derive("split", seed, video_id) for video_id in manifest.ids(members)]
            keep = max(1, round(label_fraction * len(members)))
            labelled.append(np.sort(members[np.argsort(keys, kind="stable")[:keep]]))
    chosen = np.concatenate(labelled)
    others = np.setdiff1d(row_N, chosen)
    ids = tuple(manifest.ids(chosen))
    return Split(seed, label_fraction, chosen, others, ids, _fingerprint(ids, manifest, others))


def _fingerprint(labelled: Sequence[str], manifest: Manifest, unlabelled: np.ndarray) -> str:
    state = hashlib.sha256(json.dumps(labelled).encode())
    for start in range(0, len(unlabelled), 1 << 16):
        state.update(json.dumps(manifest.ids(unlabelled[start : start + (1 << 16)])).encode())
    return state.hexdigest()[:12]
