"""Inference with committed snapshots: the one path for gallery, labels, evaluation and prediction.

Axes: B rows, V views of a video, N videos, T frames, D embedding, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.align.head import ScoreHead
from finepseudo.align.score import ClassScorer
from finepseudo.data.transforms import centre
from finepseudo.models import weights
from finepseudo.models.encoders import build
from finepseudo.models.table import Part
from finepseudo.recipe import Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

# Columns of a pass: a prefix, and the encoder's name.
_EMBEDDINGS, _SBAR, _LOGITS = "embeddings/", "sbar/", "logits/"


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one pass over videos runs: encoders by name, each by the URI of its snapshot folder."""

    frame: Mapping[str, str] = field(default_factory=dict[str, str])
    """f_A: class means against its gallery, or embeddings where it has none."""
    video: Mapping[str, str] = field(default_factory=dict[str, str])  # f_E: logits
    galleries: Mapping[str, Gallery] = field(default_factory=dict[str, Gallery])  # by name of an f_A
    clips: int = 1  # V, clips of a video, one after the other; class means and logits are averaged over them


@dataclass(frozen=True, eq=False)
class Scores:
    """Results of one pass, one row a video in the order of `video_ids`; what could not be decoded is beside them."""

    video_ids: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    rejected: Mapping[str, str]  # reasons by video
    seconds: Mapping[str, float]

    def sbar(self, name: str) -> Tensor:
        return torch.from_numpy(self.columns[_SBAR + name])

    def logits(self, name: str) -> Tensor:
        return torch.from_numpy(self.columns[_LOGITS + name])

    def embeddings(self, name: str) -> Embeddings:
        """Of the first clip of each video, by one f_A."""
        return Embeddings(torch.from_numpy(self.columns[_EMBEDDINGS + name]), self.video_ids)

    @staticmethod
    def of(blocks: Iterable[Mapping[str, np.ndarray]], video_ids: np.ndarray, seconds: Mapping[str, float]) -> Scores:
        """Join what `Predictor.block` gave for every block of a plan, in any order; `video_ids` of the plan's rows."""
        parts = list(blocks)
        columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        order = np.argsort(columns["row"])
        columns = {key: value[order] for key, value in columns.items()}
        ids, errors = video_ids[columns.pop("row")], columns.pop("error")
        good = np.array([not text for text in errors])
        seconds = {name: float(columns.pop(f"{name}_s").sum()) for name in ("decode", "predict")} | dict(seconds)
        return Scores(
            tuple(ids[good].tolist()),
            {key: value[good] for key, value in columns.items()},
            {str(video_id): str(text) for video_id, text in zip(ids, errors, strict=True) if text},
            seconds,
        )


class Predictor:
    def __init__(self, recipe: Recipe, num_classes: int, what: Pass, device: torch.device) -> None:
        self.recipe, self.views, self.device = recipe, what.clips, device
        self.frame = {name: self._load(uri, "frame", num_classes) for name, uri in what.frame.items()}
        self.video = {name: self._load(uri, "video", num_classes)[0] for name, uri in what.video.items()}
        self.scorers = {name: self._scorer(name, gallery) for name, gallery in what.galleries.items()}

    def block(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Results of one block of decoded rows: whole videos, the views of each one after the other.

        Returns row (of each video's first view), error, seconds decode_s and predict_s, and the columns of `__call__`.
        """
        began, first = time.monotonic(), slice(None, None, self.views)
        found = self(columns["clip_0"], columns["clip_1"])
        videos = len(columns["row"][first])
        return {
            "row": columns["row"][first],
            "error": columns["error"][first],
            "decode_s": columns["decode_s"].reshape(-1, self.views).sum(1),
            "predict_s": np.full(videos, (time.monotonic() - began) / videos),
            **found,
        }

    @torch.inference_mode()
    def __call__(self, clip_0: np.ndarray, clip_1: np.ndarray) -> dict[str, np.ndarray]:
        """Results for N videos from B = N V rows, the views of a video one after the other.

        Args:
            clip_0, clip_1: uint8 clips BTHWC of f_A and of f_E.
        Returns float32 columns by name of an encoder: embeddings (N,T,D) of the first view, class means (N,K) and
        logits (N,K) averaged over the views; `Scores` reads them.
        """
        found: dict[str, Tensor] = {}
        if self.frame:
            clips = self._clips(clip_0)
            for name, (encoder, _) in self.frame.items():
                emb_BTD = encoder(clips).float()
                if name not in self.scorers:
                    found[_EMBEDDINGS + name] = emb_BTD[:: self.views]
                    continue
                found[_SBAR + name] = self.scorers[name](emb_BTD).unflatten(0, (-1, self.views)).mean(1)
        if self.video:
            clips = self._clips(clip_1)
            for name, encoder in self.video.items():
                found[_LOGITS + name] = encoder(clips).float().unflatten(0, (-1, self.views)).mean(1)
        return {name: value.cpu().numpy() for name, value in found.items()}

    @torch.inference_mode()
    def embed(self, name: str, clip_BTHWC: np.ndarray) -> Tensor:
        return self.frame[name][0](self._clips(clip_BTHWC)).float()

    def _load(self, uri: str, part: Part, num_classes: int) -> tuple[Any, ScoreHead | None]:
        encoder = build(self.recipe.models.encoder(part), num_classes=num_classes, size=self.recipe.frames.crop, seed=0)
        run, _, folder = uri.rpartition("/")
        state = weights.read_state(artefacts.read_part(Store(run), folder, "weights.safetensors"))
        weights.load_bytes(encoder, weights.to_bytes(_below(state, "encoder."), {}), sha256=None)
        score, head = _below(state, "score."), None
        if score:
            head = ScoreHead()
            head.load_state_dict(score)
            head.to(self.device).eval()
        return encoder.to(self.device).eval(), head

    def _scorer(self, name: str, gallery: Gallery) -> ClassScorer:
        head = self.frame[name][1]
        assert head is not None, f"{name} has a gallery, but no score head: it is not trained by L_AV"
        gamma, mean = self.recipe.align.gamma, self.recipe.label.mean
        return ClassScorer(gallery, head, gamma=gamma, mean=mean, device=self.device)

    def _clips(self, clip_BTHWC: np.ndarray) -> Tensor:
        raw = torch.from_numpy(np.array(clip_BTHWC)).to(self.device)
        return centre(raw, self.recipe.augment, self.recipe.frames.crop)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
