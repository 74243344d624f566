"""The verbs of the story: train an encoder, embed, label. Each looks up before it makes.

Axes: N videos, G gallery, K classes, M soft targets.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa

from finepseudo import run as places
from finepseudo.align import collaborate
from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.data.batch import too_many_rejected
from finepseudo.data.manifest import Manifest, Video
from finepseudo.data.plan import Plan, Sample, derive, plan_score
from finepseudo.data.split import SplitLists
from finepseudo.driver.executor import Executor
from finepseudo.errors import ArtefactError, DecodeError
from finepseudo.models.table import Part
from finepseudo.progress import Progress
from finepseudo.recipe import METHODS, Method, Recipe
from finepseudo.run import EMBEDDINGS, LABELS, SECONDS, TEMPERATURES
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import differences
from finepseudo.storage.store import Store
from finepseudo.train import checkpoint
from finepseudo.train.objectives import Loss
from finepseudo.train.predict import Pass, Scores
from finepseudo.train.pseudo_labels import Compared, guard, label_table, pseudo_samples, temperatures
from finepseudo.train.stage import Stage, stage_of

log = logging.getLogger("finepseudo")

BLOCK_VIDEOS = 32  # videos that a pass decodes and scores at a time

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Trained:
    """A committed snapshot."""

    uri: str
    digest: str


@dataclass
class Steps:
    """The verbs of one run, and what they share."""

    recipe: Recipe
    run: Store
    base: Store  # another run directory; a training that is committed there with the same lineage is used from there
    manifest: Manifest
    split: SplitLists
    executor: Executor
    may_train: bool = True

    data: Store = field(init=False)
    videos: dict[str, Video] = field(init=False)
    labels: dict[str, int] = field(init=False)  # of D_l

    def __post_init__(self) -> None:
        self.data = places.data_store(self.recipe, self.base)
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

    def unlabelled(self) -> list[Video]:
        """D_u."""
        return [self.videos[video_id] for video_id in self.split.unlabelled]

    def train(
        self,
        name: str,
        part: Part,
        loss: Loss,
        plan: Plan,
        *,
        steps: int,
        lr: float,
        init: Trained | None = None,
        compared: Compared | None = None,
    ) -> Trained:
        """The snapshot of a training from `init` or random weights; a new score head standardises by `compared`."""
        where, folder = places.training_plan(name), places.snapshot(name)
        plan.ensure(self.run, where)
        stage = stage_of(
            self.recipe,
            part,
            loss,
            folder=places.training(name),
            plan=where,
            plan_fingerprint=plan.fingerprint,
            steps=steps,
            lr=lr,
            num_classes=self.manifest.num_classes,
            init=init.uri if init else "",
            init_digest=init.digest if init else "",
            score_mean=compared.mean if compared else 0.0,
            score_std=compared.std if compared else 0.0,
        )
        theirs = artefacts.committed(self.base, folder) if self.base != self.run else None
        if theirs is not None and not differences(stage.lineage(), theirs["lineage"]):
            log.info("%s: used from %s", name, self.base.uri())
            return Trained(self.base.uri(folder), artefacts.marker_digest(theirs))
        if not self.may_train and artefacts.committed(self.run, folder) is None:
            raise ArtefactError(f"{self.run.uri(stage.folder)} is not trained yet; jobs/run.py trains it")
        with self._trainings:
            digest = ensure_trained(stage, self.recipe, self.run, self.data, self.executor)
        return Trained(self.run.uri(folder), digest)

    def score(self, name: str, videos: Sequence[Video], what: Pass) -> Scores:
        """One pass over videos.

        Raises DecodeError: more than `data.max_rejected` of the videos could not be decoded.
        """
        with self._passes:
            log.info("%s: %d videos", name, len(videos))
            began = time.monotonic()
            frames = self.recipe.frames
            lengths = {"align_frames": frames.align, "video_frames": frames.video}
            plan = plan_score(videos, **lengths, clips=what.clips, block_videos=BLOCK_VIDEOS)
            folder = places.pass_plan(name, plan.fingerprint)
            plan.ensure(self.run, folder)
            progress, blocks, start = Progress(name, len(videos)), list[Mapping[str, np.ndarray]](), 0.0
            for block in self.executor.score(what, folder, self.manifest.num_classes, self.run, self.data):
                start = start or time.monotonic() - began
                blocks.append(block)
                progress.add(len(block["row"]))
            seconds = {"start": start, "total": time.monotonic() - began, "rows": float(len(plan))}
            scores = Scores.of(blocks, np.array(plan.table.column("video_id").to_pylist()), seconds)
        self._check_rejected(name, scores, len(videos))
        return scores

    def embed(self, name: str, frame: Trained, extra: Sequence[Video] = ()) -> Embeddings:
        """What f_A makes of D_l, and of `extra` videos beside them."""
        folder = places.embeddings(name)
        videos = [self.videos[video_id] for video_id in self.split.labelled] + list(extra)
        lineage = {"f_A": frame.digest, "videos": [video.video_id for video in videos], "T": self.recipe.frames.align}

        def make() -> Mapping[str, bytes]:
            scores = self.score(f"embed/{name}", videos, Pass(frame={"f_A": frame.uri}))
            seconds = json.dumps(dict(scores.seconds)).encode()
            return {EMBEDDINGS: scores.embeddings("f_A").to_bytes(), SECONDS: seconds}

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
        frame: Trained,
        video: Trained,
        scores: Callable[[], Scores],
        accuracy_A: float | None,
    ) -> pa.Table:
        """Committed pseudo-labels of D_u by f_A and f_E; `scores` is asked only where they are not committed yet.

        Raises TrainingError: they are useless (`guard`), with advice.
        """
        folder, recipe, traits = places.labels(name), self.recipe, METHODS[method]

        def make() -> Mapping[str, bytes]:
            found = scores()
            sbar_NK, logits_NK = found.sbar("f_A"), found.logits("f_E")
            heat = temperatures(sbar_NK, logits_NK, accuracy_A)
            p_A_NK, p_E_NK = collaborate.p_align(sbar_NK, heat.tau_A), collaborate.p_video(logits_NK, heat.tau_E)
            made = collaborate.decide(
                p_A_NK,
                p_E_NK,
                found.video_ids,
                threshold=recipe.label.threshold,
                uses_p_A=traits.uses_p_A,
                uses_p_E=traits.uses_p_E,
            )
            return {
                LABELS: artefacts.table_bytes(label_table(made, p_A_NK, p_E_NK)),
                TEMPERATURES: json.dumps(vars(heat)).encode(),
                SECONDS: json.dumps(dict(found.seconds)).encode(),
            }

        lineage = {
            "f_A": frame.digest,
            "f_E": video.digest,
            "clips": recipe.label.clips,
            "method": method,
            "threshold": recipe.label.threshold,
            "split": self.split.fingerprint,
        }
        artefacts.ensure(self.run, folder, lineage, make)
        table = artefacts.read_table(self.run, folder, LABELS)
        guard(table, recipe, name, self.manifest.class_names)
        return table

    def pseudo(self, table: pa.Table) -> tuple[list[Sample], np.ndarray | None]:
        """The accepted videos as samples, and their soft targets where the recipe wants them."""
        soft = self.recipe.rounds.targets == "soft"
        return pseudo_samples(table, self.videos, self.manifest.num_classes, soft=soft)

    def _check_rejected(self, name: str, scores: Scores, asked: int) -> None:
        for video_id, reason in scores.rejected.items():
            log.warning("%s: %s left out: %s", name, video_id, reason)
        most = self.recipe.data.max_rejected
        if too_many_rejected(len(scores.rejected), asked, most):
            raise DecodeError(
                f"{name}: {len(scores.rejected)} of {asked} videos could not be decoded, more than data.max_rejected = "
                f"{most:g}; {'; '.join(list(scores.rejected.values())[:3])}"
            )


def ensure_trained(stage: Stage, recipe: Recipe, run: Store, data: Store, executor: Executor) -> str:
    """Digest of the stage's committed snapshot, which is trained if it is not there yet, a segment at a time.

    Raises TrainingError: see Executor.train.
    """
    lineage, folder = stage.lineage(), f"{stage.folder}/snapshot"
    while (marker := artefacts.committed(run, folder)) is None:
        done = checkpoint.committed_step(run, stage.folder)
        if done < stage.steps:
            stop = min(stage.steps, done + recipe.scale.segment_steps)
            log.info("%s: training steps %d to %d of %d", stage.name, done, stop, stage.steps)
            executor.train(stage, run, data, stop=stop)
        else:  # the last worker died between its checkpoint and the snapshot
            checkpoint.export_snapshot(run, stage.folder, lineage=lineage)
    artefacts.check_lineage(run, folder, marker, lineage)
    return artefacts.marker_digest(marker)


def both(first: Callable[[], T], second: Callable[[], U]) -> tuple[T, U]:
    """Results of two chains of stages, run at the same time; both end before an error is raised."""
    with ThreadPoolExecutor(max_workers=2) as threads:
        futures = threads.submit(first), threads.submit(second)
    return futures[0].result(), futures[1].result()


def side_by_side(thunks: Sequence[Callable[[], T]]) -> list[T]:
    """The same of any number."""
    with ThreadPoolExecutor(max_workers=len(thunks)) as threads:
        futures = [threads.submit(thunk) for thunk in thunks]
    return [future.result() for future in futures]
