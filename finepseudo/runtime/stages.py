"""The verbs of the story: train an encoder, embed a gallery, label the unlabelled. Each looks up before it makes.

Axes: N videos, G gallery, K classes, M soft targets.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finepseudo.align import collaborate
from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.data.manifest import Manifest, Video
from finepseudo.data.plan import Plan, Sample, derive
from finepseudo.data.split import SplitLists
from finepseudo.errors import ArtefactError
from finepseudo.recipe import METHODS, Method, Recipe
from finepseudo.run import (
    EMBEDDINGS,
    LABELS,
    SECONDS,
    TEMPERATURES,
    embeddings,
    labels,
    snapshot,
    training,
    training_plan,
)
from finepseudo.runtime.scorers import AlignmentPool, Scores
from finepseudo.runtime.trainer import ensure_trained
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import differences
from finepseudo.storage.store import Store
from finepseudo.train.initial import Part
from finepseudo.train.loop import Stage
from finepseudo.train.objectives import ObjectiveName
from finepseudo.train.pseudo_labels import guard, label_table, pseudo_samples, temperatures

log = logging.getLogger("finepseudo")


@dataclass(frozen=True)
class Trained:
    """A committed snapshot."""

    uri: str
    digest: str


@dataclass(frozen=True)
class Start:
    """What all methods start from: the encoders after stage 2, and what f_A makes of D_l."""

    frame: Trained
    video: Trained
    pretrained: Embeddings
    aligned: Embeddings
    accuracy_A: float | None


@dataclass(frozen=True)
class Finish:
    """What a method ends with; `gallery` is that of its f_A."""

    frame: Trained
    video: Trained
    gallery: Gallery
    rounds: list[str] = field(default_factory=list)
    """Names of its committed labels."""


@dataclass
class Work:
    """What the stages of one run share."""

    recipe: Recipe
    run: Store
    base: Store
    """Another run directory; a training that is committed there with the same lineage is used from there."""
    manifest: Manifest
    split: SplitLists
    board: Any
    may_train: bool
    pool: AlignmentPool = field(init=False)
    videos: dict[str, Video] = field(init=False)

    def __post_init__(self) -> None:
        self.pool = AlignmentPool(self.recipe, self.run, self.manifest.num_classes)
        self.videos = {video.video_id: video for split in ("train", "test") for video in self.manifest.videos(split)}
        truth = self.manifest.truth("train")
        self.labels = {video_id: truth[video_id] for video_id in self.split.labelled}
        # Two trainings and one pass of the pool at a time: what preflight asked the cluster for.
        self._trainings, self._passes = threading.BoundedSemaphore(2), threading.Lock()

    def seed(self, name: str) -> int:
        """Of one stage's plan."""
        return derive(self.recipe.seed, self.recipe.split.seed, name)

    def labelled(self) -> list[Sample]:
        """D_l."""
        return [Sample(self.videos[video_id], label) for video_id, label in self.labels.items()]

    def train(
        self,
        name: str,
        part: Part,
        objective: ObjectiveName,
        plan: Callable[[], Plan],
        *,
        steps: int,
        lr: float,
        **more: Any,
    ) -> Trained:
        """The snapshot of `train/<name>`; `more` are fields of Stage."""
        where, run = training_plan(name), self.run
        made = plan()
        lineage = {"plan": made.fingerprint, "block_rows": made.block_rows}
        artefacts.ensure(run, where, lineage, made.parts)
        stage = Stage(
            folder=training(name), part=part, objective=objective, plan=where, plan_fingerprint=made.fingerprint,
            steps=steps, lr=lr, num_classes=self.manifest.num_classes, **more,
        )  # fmt: skip
        theirs = artefacts.committed(self.base, snapshot(name)) if self.base != run else None
        if theirs is not None and not differences(stage.lineage(self.recipe), theirs["lineage"]):
            log.info("%s: used from %s", name, self.base.uri())
            return Trained(self.base.uri(snapshot(name)), artefacts.marker_digest(theirs))
        if not self.may_train and artefacts.committed(run, snapshot(name)) is None:
            raise ArtefactError(f"{run.uri(stage.folder)} is not trained yet; jobs/run.py trains it")
        with self._trainings:
            digest = ensure_trained(stage, self.recipe, run, self.board)
        return Trained(run.uri(snapshot(name)), digest)

    def score(self, name: str, videos: Sequence[Video], **what: Any) -> Scores:
        """One pass of the pool."""
        with self._passes:
            log.info("%s: %d videos", name, len(videos))
            return self.pool.score(name, list(videos), **what)

    def embed(self, name: str, frame: Trained, extra: Sequence[Video] = ()) -> Embeddings:
        """What f_A makes of D_l, and of `extra` videos beside them."""
        folder = embeddings(name)
        videos = [self.videos[video_id] for video_id in self.split.labelled] + list(extra)
        lineage = {"f_A": frame.digest, "videos": [video.video_id for video in videos], "T": self.recipe.frames.align}

        def make() -> Mapping[str, bytes]:
            scores = self.score(f"embed/{name}", videos, frame={"f_A": frame.uri}, video={}, galleries={}, clips=1)
            embedded = Embeddings(torch.from_numpy(scores["emb/f_A"]), scores.video_ids)
            seconds = json.dumps(dict(scores.seconds)).encode()
            return {EMBEDDINGS: embedded.to_bytes(), SECONDS: seconds}

        artefacts.ensure(self.run, folder, lineage, make)
        return Embeddings.from_bytes(artefacts.read_part(self.run, folder, EMBEDDINGS))

    def gallery(self, embedded: Embeddings) -> Gallery:
        """The labelled videos of what `embed` gave, with their labels, balanced as the recipe says."""
        labelled = embedded.gallery(self.labels, self.manifest.num_classes)
        most = self.recipe.label.per_class_max
        labelled = labelled.balanced(most, self.seed("gallery")) if most else labelled
        without = [self.manifest.class_names[k] for k, count in enumerate(labelled.counts()) if not count]
        if without:
            log.warning("no gallery member, so p_A = 0, for class %s", ", ".join(without))
        return labelled

    def label(
        self,
        name: str,
        method: Method,
        scores: Callable[[], Scores],
        accuracy_A: float | None,
        lineage: Mapping[str, Any],
    ) -> pa.Table:
        """Committed pseudo-labels of D_u, and what they were decided with.

        Raises:
            TrainingError: they are useless (`guard`), with advice.
        """
        folder, recipe = labels(name), self.recipe

        def make() -> Mapping[str, bytes]:
            found = scores()
            sbar_NK, logits_NK = torch.from_numpy(found["sbar/f_A"]), torch.from_numpy(found["logits/f_E"])
            heat = temperatures(sbar_NK, logits_NK, accuracy_A)
            p_A_NK, p_E_NK = collaborate.p_align(sbar_NK, heat.tau_A), collaborate.p_video(logits_NK, heat.tau_E)
            made = collaborate.decide(
                p_A_NK,
                p_E_NK,
                found.video_ids,
                threshold=recipe.label.threshold,
                uses_p_A=METHODS[method].uses_p_A,
                uses_p_E=METHODS[method].uses_p_E,
            )
            return {
                LABELS: artefacts.table_bytes(label_table(made, p_A_NK, p_E_NK)),
                TEMPERATURES: json.dumps(vars(heat)).encode(),
                SECONDS: json.dumps(dict(found.seconds)).encode(),
            }

        body = {**lineage, "method": method, "threshold": recipe.label.threshold, "split": self.split.fingerprint}
        artefacts.ensure(self.run, folder, body, make)
        table = artefacts.read_table(self.run, folder, LABELS)
        guard(table, recipe, name, self.manifest.class_names)
        return table

    def pseudo(self, table: pa.Table) -> tuple[list[Sample], np.ndarray | None]:
        """The accepted videos as samples, and their soft targets where the recipe wants them."""
        soft = self.recipe.rounds.targets == "soft"
        return pseudo_samples(table, self.videos, self.manifest.num_classes, soft=soft)


def side_by_side(*thunks: Callable[[], Any]) -> list[Any]:
    """Results of several stages, run at the same time; all end before the first error is raised."""
    with ThreadPoolExecutor(max_workers=len(thunks)) as threads:
        futures = [threads.submit(thunk) for thunk in thunks]
    return [future.result() for future in futures]
