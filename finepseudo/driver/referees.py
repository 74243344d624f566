"""Some clips of D_u, and D_l, as f_A and f_E see them before stage 2: what the fusion of a run is estimated by.

Axes: N judged clips, G of D_l.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finepseudo.align.fusion import PAPER, Fusion, Referees, estimate
from finepseudo.align.score import distances
from finepseudo.train.predict import Columns, embeddings, logits, pooled, sbar


@dataclass(frozen=True, eq=False)
class Judged:
    """Clips of D_u by their rows of the manifest, and what is known of them without any label."""

    clip_N: np.ndarray
    referees: Referees | None  # none: the paper's rule asks nobody

    def fusion(self, found: Columns, f_A: str, f_E: str) -> Fusion:
        """Of two nets, by what they make of these clips; the names are those of the columns."""
        place = {clip: n for n, clip in enumerate(self.clip_N.tolist())}
        both = [(n, place[clip]) for n, clip in enumerate(found["clip"].tolist()) if clip in place]
        if self.referees is None or not both:
            return PAPER
        here, there = map(list, zip(*both, strict=True))
        return estimate(sbar(found, f_A)[here], logits(found, f_E)[here], self.referees.among(there))


def judged(clip_N: np.ndarray, found: Columns, truth: Mapping[int, int], gamma: float) -> Judged:
    """From what f_A and f_E before stage 2 make of the clips and of D_l.

    Args:
        found: embeddings of "f_A" and mean features of "f_E", of the clips and of D_l in any order.
        truth: of D_l, by the row of the manifest.
        gamma: γ of the distances.
    """
    here, real = (np.flatnonzero(np.isin(found["clip"], rows)) for rows in (clip_N, list(truth)))
    order = np.concatenate([here, real])
    emb_MTD = embeddings(found, "f_A")[order]
    feat_MF = _standardised(torch.tensor(pooled(found, "f_E")[order]))
    N = len(here)
    near_RNM = distances(emb_MTD[:N], emb_MTD, gamma), 1 - feat_MF[:N] @ feat_MF.T
    label_G = torch.tensor([truth[clip] for clip in found["clip"][real].tolist()], dtype=torch.int64)
    return Judged(found["clip"][here], Referees(near_RNM, label_G))


def _standardised(feat_MF: Tensor) -> Tensor:
    """Each feature by its mean and deviation over the clips, each clip of length 1."""
    feat_MF = (feat_MF - feat_MF.mean(0)) / feat_MF.std(0, correction=0).clamp_min(1e-6)
    return torch.nn.functional.normalize(feat_MF, dim=1)
