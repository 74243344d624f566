"""Pseudo-labels to look at: some accepted and rejected videos, each beside the gallery clip that it aligns with best.

Axes: T frames, H W pixels, C channels, D embedding, G gallery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finepseudo.align.gallery import Gallery
from finepseudo.align.score import distances
from finepseudo.align.softdtw import cosine_cost, dtw_path
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder
from finepseudo.data.manifest import Video
from finepseudo.data.plan import plan_score
from finepseudo.errors import DecodeError
from finepseudo.recipe import METHODS
from finepseudo.results import STAGE_2, Results
from finepseudo.run import Run
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
    manifest = run.manifest()
    truth = manifest.truth("train")
    chosen = _chosen(run.labels(rounds[-1].name).to_pylist(), truth)
    videos = {video.video_id: video for video in manifest.videos("train")}
    labelled = run.embeddings("aligned").gallery(truth, manifest.num_classes)
    look = _Look(run, manifest.num_classes)
    names = manifest.class_names
    examples: list[Example] = []
    for kind, row in chosen:
        try:
            seen = look.at(videos[row["video_id"]], labelled, videos)
        except DecodeError:  # it was counted and logged where it mattered
            continue
        neighbour, distance, frames, aligned = seen
        examples.append(
            Example(
                kind=kind,
                video_id=row["video_id"],
                truth=names[truth[row["video_id"]]] if row["video_id"] in truth else "not known",
                label=names[row["label"]],
                confidence=row["confidence"],
                label_A=names[row["label_A"]],
                label_E=names[row["label_E"]],
                neighbour_id=neighbour,
                neighbour=names[truth[neighbour]],
                distance=distance,
                frames_THWC=frames,
                aligned_THWC=aligned,
            )
        )
    return examples


def _chosen(rows: Sequence[Mapping[str, Any]], truth: Mapping[str, int]) -> list[tuple[str, Mapping[str, Any]]]:
    order = sorted(rows, key=lambda row: (-row["confidence"], row["video_id"]))
    accepted = [row for row in order if row["accepted"]]
    kinds = {
        "accepted, right": [row for row in accepted if truth.get(row["video_id"]) == row["label"]],
        "accepted, wrong": [row for row in accepted if truth.get(row["video_id"], row["label"]) != row["label"]],
        "accepted, truth not known": [row for row in accepted if row["video_id"] not in truth],
        "rejected": [row for row in reversed(order) if not row["accepted"]],
    }
    return [(kind, row) for kind, found in kinds.items() for row in found[:EACH]]


class _Look:
    """Decodes and embeds a few videos here, without the pool."""

    def __init__(self, run: Run, num_classes: int) -> None:
        recipe = run.recipe()
        self.frames, self.gamma = recipe.frames, recipe.align.gamma
        height, width, child = recipe.frames.height, recipe.frames.width, Child(recipe.scale.decode_deadline_s)
        self.decoder = Decoder(run.data(), height, width, ClipCache("", 0), child)
        what = Pass(frame={"f_A": run.snapshot(STAGE_2, "frame")})
        self.predictor = Predictor(recipe, num_classes, what, torch.device("cpu"))

    def at(
        self, video: Video, gallery: Gallery, videos: Mapping[str, Video]
    ) -> tuple[str, float, np.ndarray, np.ndarray]:
        """Nearest gallery member, distance, shown frames, and the member's frames aligned with them."""
        clip = self._clip(video)
        emb_1TD = self.predictor.embed("f_A", clip[None])
        dist_G = distances(emb_1TD, gallery.emb_GTD, self.gamma)[0]
        nearest = int(dist_G.argmin())
        path = dict(reversed(dtw_path(cosine_cost(emb_1TD, gallery.emb_GTD[nearest : nearest + 1])[0])))
        shown = np.linspace(0, len(clip) - 1, SHOWN).round().astype(int)
        neighbour = gallery.video_ids[nearest]
        other = self._clip(videos[neighbour])
        return neighbour, float(dist_G[nearest]), clip[shown], other[[path[int(index)] for index in shown]]

    def _clip(self, video: Video) -> np.ndarray:
        plan = plan_score([video], align_frames=self.frames.align, video_frames=1, clips=1, block_videos=1)
        return self.decoder.clips(plan.rows(0, 1)[0], ["frames_0"])[0]
