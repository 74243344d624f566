"""Inference with committed snapshots: the one path for gallery, labels, evaluation and prediction.

Axes: B rows, V views of a video, N videos, T frames, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finepseudo.align.gallery import Gallery
from finepseudo.align.head import ScoreHead
from finepseudo.align.score import ClassScorer
from finepseudo.data.transforms import centre
from finepseudo.models import weights
from finepseudo.models.encoders import build
from finepseudo.recipe import Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store


class Predictor:
    """Encoders of one pass over videos, by name.

    For every f_A it gives class means against its gallery, or embeddings where it has none; for every f_E logits.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        *,
        frame: Mapping[str, str],
        video: Mapping[str, str],
        galleries: Mapping[str, Gallery],
        device: torch.device,
    ) -> None:
        """`frame` and `video` give the URI of a snapshot folder for each name."""
        self.recipe, self.device = recipe, device
        self.frame = {name: _load(uri, "frame", recipe, num_classes, device) for name, uri in frame.items()}
        self.video = {name: _load(uri, "video", recipe, num_classes, device)[0] for name, uri in video.items()}
        self.scorers = {name: self._scorer(name, gallery) for name, gallery in galleries.items()}

    @torch.inference_mode()
    def __call__(self, clip_0: np.ndarray, clip_1: np.ndarray, views: int) -> dict[str, np.ndarray]:
        """Results for N videos from B = N V rows, the views of a video one after the other.

        Args:
            clip_0: uint8 clips of f_A, BTHWC.
            clip_1: uint8 clips of f_E.
            views: V; class means and logits are averaged over them, embeddings are those of the first.
        Returns:
            `emb/<name>` (N,T,D), `sbar/<name>` (N,K), `logits/<name>` (N,K), float32.
        """
        found: dict[str, Tensor] = {}
        if self.frame:
            clips = self._clips(clip_0)
            for name, (encoder, _) in self.frame.items():
                emb_BTD = encoder(clips).float()
                if name not in self.scorers:
                    found[f"emb/{name}"] = emb_BTD[::views]
                    continue
                sbar_BK = self.scorers[name](emb_BTD)
                found[f"sbar/{name}"] = sbar_BK.unflatten(0, (-1, views)).mean(1)
        if self.video:
            clips = self._clips(clip_1)
            for name, encoder in self.video.items():
                found[f"logits/{name}"] = encoder(clips).float().unflatten(0, (-1, views)).mean(1)
        return {name: value.cpu().numpy() for name, value in found.items()}

    def _scorer(self, name: str, gallery: Gallery) -> ClassScorer:
        head = self.frame[name][1]
        assert head is not None, f"{name} has a gallery, but no score head: it is not trained by L_AV"
        gamma, mean = self.recipe.align.gamma, self.recipe.label.mean
        return ClassScorer(gallery, head, gamma=gamma, mean=mean, device=self.device)

    def _clips(self, clip_BTHWC: np.ndarray) -> Tensor:
        raw = torch.from_numpy(np.array(clip_BTHWC)).to(self.device)
        return centre(raw, self.recipe.augment, self.recipe.frames.crop)


def load_score_head(uri: str) -> ScoreHead:
    """The score head of a snapshot of f_A after L_AV."""
    head = ScoreHead()
    state = _snapshot_state(uri)
    head.load_state_dict({name.partition(".")[2]: value for name, value in state.items() if name.startswith("score.")})
    return head.eval()


def _load(uri: str, part: str, recipe: Recipe, num_classes: int, device: torch.device) -> tuple[Any, ScoreHead | None]:
    classes = {"num_classes": num_classes} if part == "video" else {}
    encoder: nn.Module = build(getattr(recipe.models, part), size=recipe.frames.crop, seed=0, **classes)
    state = _snapshot_state(uri)
    kept = {name.partition(".")[2]: value for name, value in state.items() if name.startswith("encoder.")}
    weights.load_bytes(encoder, weights.to_bytes(kept, {}), sha256=None)
    head = load_score_head(uri).to(device) if any(name.startswith("score.") for name in state) else None
    return encoder.to(device).eval(), head


def _snapshot_state(uri: str) -> dict[str, Tensor]:
    run, _, folder = uri.rpartition("/")
    return weights.read_state(artefacts.read_part(Store(run), folder, "weights.safetensors"))
