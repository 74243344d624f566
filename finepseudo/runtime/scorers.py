"""The scoring pool: Ray actors that embed, label and evaluate by one inference path.

Decoded blocks stream from the decoding actors into the scoring actors; what comes back is small. The galleries are put
into the object store once, and every actor of a node reads them there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from finepseudo.align.gallery import Gallery
from finepseudo.data.manifest import Video
from finepseudo.data.plan import Plan, plan_score
from finepseudo.errors import DecodeError
from finepseudo.recipe import Recipe
from finepseudo.run import pass_plan
from finepseudo.runtime.ingest import scoring_stream
from finepseudo.runtime.progress import describe
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.predict import Predictor

log = logging.getLogger("finepseudo")

BLOCK_VIDEOS = 32
LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Scores:
    """Results of one pass: arrays with one row a video, in the order of `video_ids`; rejected videos beside them."""

    video_ids: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    rejected: Mapping[str, str]
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


@dataclass(frozen=True)
class AlignmentPool:
    """The pool of one run."""

    recipe: Recipe
    run: Store
    num_classes: int

    def score(
        self,
        name: str,
        videos: list[Video],
        *,
        frame: Mapping[str, str],
        video: Mapping[str, str],
        galleries: Mapping[str, Gallery],
        clips: int,
    ) -> Scores:
        """One pass over videos: class means of every f_A that has a gallery, embeddings of the others, logits of f_E.

        Args:
            name: of the pass, for its plan and the log.
            videos: what to score.
            frame: URI of an f_A snapshot, by name.
            video: URI of an f_E snapshot, by name.
            galleries: by name of an f_A.
            clips: V, evenly phased clips a video.
        Raises:
            DecodeError: more than `data.max_rejected` of the videos could not be decoded.
        """
        began = time.monotonic()
        frames = self.recipe.frames
        plan = plan_score(
            videos, align_frames=frames.align, video_frames=frames.video, clips=clips, block_videos=BLOCK_VIDEOS
        )
        folder = pass_plan(name, plan.fingerprint)
        lineage = {"plan": plan.fingerprint, "block_rows": plan.block_rows}
        artefacts.ensure(self.run, folder, lineage, plan.parts)
        shared = {key: ray.put(gallery) for key, gallery in galleries.items()}
        scale = self.recipe.scale
        stream = scoring_stream(self.run.root, folder, self.recipe).map_batches(
            _Scorer,
            fn_constructor_args=(self.recipe, self.num_classes, dict(frame), dict(video), shared, clips),
            batch_size=None,
            compute=ActorPoolStrategy(size=scale.score_workers),
            num_cpus=scale.score_cpus,
            num_gpus=scale.score_gpus or None,
            resources={scale.score_resource: 1.0} if scale.score_resource else None,
        )
        return self._collect(name, stream, plan, clips, began)

    def _collect(self, name: str, stream: Any, plan: Plan, clips: int, began: float) -> Scores:
        parts: list[Mapping[str, np.ndarray]] = []
        done, first, logged = 0, 0.0, time.monotonic()
        for part in stream.iter_batches(batch_size=None, batch_format="numpy"):
            parts.append(part)
            total = len(plan) // clips
            if first and time.monotonic() - logged > LOG_EVERY_S and done < total:
                logged = time.monotonic()
                left = (logged - first) / done * (total - done)
                log.info("%s", describe({"stage": name, "step": done, "steps": total, "left_s": left}))
            done += len(part["row"])
            first = first or time.monotonic()
        columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        order = np.argsort(columns["row"])
        columns = {key: value[order] for key, value in columns.items()}
        ids = np.array(plan.table.column("video_id").to_pylist())[columns.pop("row")]
        errors = columns.pop("error")
        bad = np.array([bool(text) for text in errors])
        rejected = {str(ids[index]): str(errors[index]) for index in np.flatnonzero(bad)}
        for video_id, reason in rejected.items():
            log.warning("%s: %s left out: %s", name, video_id, reason)
        if len(rejected) > max(self.recipe.data.max_rejected * len(ids), 1 if self.recipe.data.max_rejected else 0):
            raise DecodeError(
                f"{name}: {len(rejected)} of {len(ids)} videos could not be decoded, more than data.max_rejected = "
                f"{self.recipe.data.max_rejected:g}; {'; '.join(list(rejected.values())[:3])}"
            )
        seconds = {
            "start": first - began,
            "total": time.monotonic() - began,
            "decode": float(columns.pop("decode_s").sum()),
            "predict": float(columns.pop("predict_s").sum()),
            "rows": float(len(plan)),
        }
        return Scores(tuple(ids[~bad].tolist()), {k: v[~bad] for k, v in columns.items()}, rejected, seconds)


class _Scorer:
    """Actor of the pool: decoded blocks in, results of whole videos out."""

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        frame: Mapping[str, str],
        video: Mapping[str, str],
        galleries: Mapping[str, Any],
        clips: int,
    ) -> None:
        torch.set_num_threads(max(1, int(recipe.scale.score_cpus)))
        device = torch.device("cuda" if recipe.scale.score_gpus else "cpu")
        self.clips = clips
        self.predict = Predictor(
            recipe,
            num_classes,
            frame=frame,
            video=video,
            galleries={name: ray.get(reference, timeout=300) for name, reference in galleries.items()},
            device=device,
        )

    def __call__(self, block: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Column row (of the video's first clip), error, seconds, and the results."""
        began = time.monotonic()
        found = self.predict(block["clip_0"], block["clip_1"], self.clips)
        first = slice(None, None, self.clips)
        return {
            "row": block["row"][first],
            "error": block["error"][first],
            "decode_s": block["decode_s"].reshape(-1, self.clips).sum(1),
            "predict_s": np.full(len(block["row"][first]), (time.monotonic() - began) / len(block["row"][first])),
            **found,
        }
