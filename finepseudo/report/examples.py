"""Pseudo-labels to look at: some accepted and rejected videos, each beside the gallery clip that it aligns with best.

Axes: T frames, H W pixels, C channels, D embedding, G gallery.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from finepseudo.align.gallery import Gallery
from finepseudo.align.score import distances
from finepseudo.align.softdtw import cosine_cost, dtw_path
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder
from finepseudo.data.manifest import UNKNOWN, Manifest
from finepseudo.data.plan import plan_score
from finepseudo.errors import DecodeError
from finepseudo.recipe import METHODS
from finepseudo.results import STAGE_2, Results
from finepseudo.run import Run
from finepseudo.storage import tables
from finepseudo.train.predict import Pass, Predictor

SHOWN, EACH = 8, 4
"""Frames shown of a clip; examples of a kind."""


@dataclass(frozen=True)
class Example:
    """One unlabelled video, its label, and its nearest labelled clip."""

    kind: str
    video_id: str
    truth: str
    label: str
    confidence: float
    label_A: str
    label_E: str
    neighbour_id: str
    neighbour: str
    distance: float
    frames_THWC: np.ndarray
    aligned_THWC: np.ndarray  # the neighbour's frames that the hard path aligns with those shown


def choose_examples(run: Run, results: Results) -> list[Example]:
    """The surest right, the surest wrong and the least sure labels of the first method that makes any."""
    makers = [method for method in reversed(METHODS) if METHODS[method].labels]
    rounds = next((results.rounds[method] for method in makers if results.rounds.get(method)), [])
    if not rounds:
        return []
    manifest, names = run.manifest(), run.manifest().class_names
    table = run.labels(rounds[-1].name)
    truth_N = manifest.truth(table["clip"].to_numpy())
    labels = run.labelled()
    look = _Look(run, manifest, run.embeddings("aligned").gallery(labels, manifest.num_classes))
    examples: list[Example] = []
    for kind, places in _chosen(table, truth_N).items():
        for place, row in zip(places, tables.rows_at(table, places), strict=True):
            try:
                neighbour, distance, frames, aligned = look.at(row["clip"])
            except DecodeError:  # it was counted and logged where it mattered
                continue
            truth = truth_N[place]
            examples.append(
                Example(
                    kind=kind,
                    video_id=row["video_id"],
                    truth=names[truth] if truth != UNKNOWN else "not known",
                    label=names[row["label"]],
                    confidence=row["confidence"],
                    label_A=names[row["label_A"]],
                    label_E=names[row["label_E"]],
                    neighbour_id=neighbour,
                    neighbour=names[labels[neighbour]],
                    distance=distance,
                    frames_THWC=frames,
                    aligned_THWC=aligned,
                )
            )
    return examples


def _chosen(table: pa.Table, truth_N: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the labels to show, by kind."""
    accepted_N, label_N, confidence_N = (table[name].to_numpy() for name in ("accepted", "label", "confidence"))
    order = np.lexsort((table["clip"].to_numpy(), -confidence_N))
    known_N, right_N = truth_N != UNKNOWN, truth_N == label_N
    kinds = {
        "accepted, right": order[(accepted_N & right_N)[order]],
        "accepted, wrong": order[(accepted_N & known_N & ~right_N)[order]],
        "accepted, truth not known": order[(accepted_N & ~known_N)[order]],
        "rejected": order[::-1][~accepted_N[order[::-1]]],
    }
    return {kind: found[:EACH] for kind, found in kinds.items()}


class _Look:
    """Decodes and embeds a few videos here, without the pool; where features are stored, f_A sees these."""

    def __init__(self, run: Run, manifest: Manifest, gallery: Gallery) -> None:
        recipe = run.recipe()
        self.manifest, self.gallery = manifest, gallery
        self.frames, self.gamma = recipe.frames, recipe.align.gamma
        height, width, child = recipe.frames.height, recipe.frames.width, Child(recipe.scale.decode_deadline_s)
        self.decoder = Decoder(run.data(), height, width, ClipCache("", 0), child)
        self.seen, where = run.seen()
        self.features = replace(self.decoder, data=where)
        what = Pass(frame={"f_A": run.snapshot(STAGE_2, "frame")})
        self.predictor = Predictor(recipe, manifest.num_classes, what, torch.device("cpu"))

    def at(self, clip: int) -> tuple[str, float, np.ndarray, np.ndarray]:
        """Nearest gallery member, distance, shown frames, and the member's frames aligned with them."""
        mine_THWC, emb_GTD = self._clip(clip, self.manifest, self.decoder), self.gallery.emb_GTD
        emb_1TD = self.predictor.embed("f_A", self._clip(clip, self.seen, self.features)[None])
        dist_G = distances(emb_1TD, emb_GTD, self.gamma)[0]
        nearest = int(dist_G.argmin())
        path = dict(reversed(dtw_path(cosine_cost(emb_1TD, emb_GTD[nearest : nearest + 1])[0])))
        shown = np.linspace(0, len(mine_THWC) - 1, SHOWN).round().astype(int)
        neighbour = self.gallery.video_ids[nearest]
        theirs_THWC = self._clip(int(self.manifest.rows_of([neighbour])[0]), self.manifest, self.decoder)
        aligned = theirs_THWC[[path[int(index)] for index in shown]]
        return neighbour, float(dist_G[nearest]), mine_THWC[shown], aligned

    def _clip(self, clip: int, manifest: Manifest, decoder: Decoder) -> np.ndarray:
        lengths = {"align_frames": self.frames.align, "video_frames": 0}
        (row,) = plan_score(manifest, np.array([clip]), **lengths, clips=1, block_videos=1).rows(0, 1)
        return decoder.clips(row, [row["frames_0"]])[0]
