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
from torch import Tensor

from finepseudo import artefacts, measures
from finepseudo.align import collaborate
from finepseudo.align.gallery import Gallery
from finepseudo.align.score import distances
from finepseudo.data.manifest import Manifest, Video
from finepseudo.data.plan import Plan, Sample, derive
from finepseudo.data.split import SplitLists
from finepseudo.errors import ArtefactError, TrainingError
from finepseudo.recipe import Recipe
from finepseudo.runtime.scorers import AlignmentPool, Scores
from finepseudo.runtime.trainer import ensure_trained
from finepseudo.storage import Store
from finepseudo.train.initial import Part
from finepseudo.train.loop import Stage
from finepseudo.train.objectives import ObjectiveName

log = logging.getLogger("finepseudo")

COMPARED = 2048
"""Labelled videos that the driver compares with each other, about: a matrix of 32 MiB."""
SECONDS = "seconds.json"
TOP = 5
"""Classes whose probability a committed label keeps; the rest of the mass is spread over the others."""
SMALLEST_STD = 1e-3
"""Of D over the labelled pairs, where these (almost) coincide."""
LOWEST_A, LOWEST_E, HIGHEST = 0.9, 0.2, 0.95
"""Estimated accuracies are kept within these: a temperature fitted to more would make labels over-confident."""


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
    pretrained: Gallery
    aligned: Gallery
    accuracy_A: float | None


@dataclass(frozen=True)
class Finish:
    """What a method ends with; `gallery` is that of its f_A."""

    frame: Trained
    video: Trained
    gallery: Gallery
    rounds: list[str] = field(default_factory=list)
    """Names of its committed labels."""


@dataclass(frozen=True)
class Temperatures:
    """Of p_A and p_E, and the estimated accuracies that they were fitted to."""

    tau_A: float
    tau_E: float
    accuracy_A: float
    accuracy_E: float


@dataclass
class Work:
    """What the stages of one run share."""

    recipe: Recipe
    run: Store
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
        where, run = f"plans/train/{name}", self.run
        made = plan()
        lineage = {"plan": made.fingerprint, "block_rows": made.block_rows}
        artefacts.ensure(run, where, lineage, made.parts)
        stage = Stage(
            folder=f"train/{name}", part=part, objective=objective, plan=where, plan_fingerprint=made.fingerprint,
            steps=steps, lr=lr, num_classes=self.manifest.num_classes, **more,
        )  # fmt: skip
        if not self.may_train and artefacts.committed(run, f"{stage.folder}/snapshot") is None:
            raise ArtefactError(f"{run.uri(stage.folder)} is not trained yet; jobs/run.py trains it")
        with self._trainings:
            digest = ensure_trained(stage, self.recipe, run, self.board)
        return Trained(run.uri(f"train/{name}/snapshot"), digest)

    def score(self, name: str, videos: Sequence[Video], **what: Any) -> Scores:
        """One pass of the pool."""
        with self._passes:
            log.info("%s: %d videos", name, len(videos))
            return self.pool.score(name, list(videos), **what)

    def embed(self, name: str, frame: Trained, extra: Sequence[Video] = ()) -> Gallery:
        """Embeddings by f_A of D_l and of `extra` videos beside them; `members` takes D_l out as the gallery.

        The extra videos' labels are not known here: theirs reads 0 and means nothing.
        """
        folder = f"gallery/{name}"
        videos = [self.videos[video_id] for video_id in self.split.labelled] + list(extra)
        lineage = {"f_A": frame.digest, "videos": [video.video_id for video in videos], "T": self.recipe.frames.align}

        def make() -> Mapping[str, bytes]:
            scores = self.score(f"embed/{name}", videos, frame={"f_A": frame.uri}, video={}, galleries={}, clips=1)
            label_G = torch.tensor([self.labels.get(video_id, 0) for video_id in scores.video_ids])
            emb_GTD = torch.from_numpy(scores["emb/f_A"])
            gallery = Gallery(emb_GTD, label_G, scores.video_ids, self.manifest.num_classes)
            seconds = json.dumps(dict(scores.seconds)).encode()
            return {"gallery.safetensors": gallery.to_bytes(), SECONDS: seconds}

        artefacts.ensure(self.run, folder, lineage, make)
        return Gallery.from_bytes(artefacts.read_part(self.run, folder, "gallery.safetensors"))

    def members(self, gallery: Gallery) -> Gallery:
        """The labelled videos of what `embed` gave, balanced as the recipe says."""
        labelled = gallery.take([i for i, video_id in enumerate(gallery.video_ids) if video_id in self.labels])
        most = self.recipe.label.per_class_max
        labelled = labelled.balanced(most, self.seed("gallery")) if most else labelled
        without = [self.manifest.class_names[k] for k, count in enumerate(labelled.counts()) if not count]
        if without:
            log.warning("no gallery member, so p_A = 0, for class %s", ", ".join(without))
        return labelled

    def label(
        self,
        name: str,
        method: collaborate.Method,
        scores: Callable[[], Scores],
        accuracy_A: float | None,
        lineage: Mapping[str, Any],
    ) -> pa.Table:
        """Committed pseudo-labels of D_u, and what they were decided with.

        Raises:
            TrainingError: they are useless (`guard`), with advice.
        """
        folder, recipe = f"labels/{name}", self.recipe

        def make() -> Mapping[str, bytes]:
            found = scores()
            sbar_NK, logits_NK = torch.from_numpy(found["sbar/f_A"]), torch.from_numpy(found["logits/f_E"])
            heat = temperatures(sbar_NK, logits_NK, accuracy_A)
            p_A_NK, p_E_NK = collaborate.p_align(sbar_NK, heat.tau_A), collaborate.p_video(logits_NK, heat.tau_E)
            made = collaborate.decide(p_A_NK, p_E_NK, found.video_ids, threshold=recipe.label.threshold, method=method)
            return {
                "labels.parquet": artefacts.table_bytes(_label_table(made, p_A_NK, p_E_NK)),
                "temperatures.json": json.dumps(vars(heat)).encode(),
                SECONDS: json.dumps(dict(found.seconds)).encode(),
            }

        body = {**lineage, "method": method, "threshold": recipe.label.threshold, "split": self.split.fingerprint}
        artefacts.ensure(self.run, folder, body, make)
        table = artefacts.read_table(self.run, folder, "labels.parquet")
        guard(table, recipe, name, self.manifest.class_names)
        return table

    def pseudo(self, table: pa.Table) -> tuple[list[Sample], np.ndarray | None]:
        """The accepted videos as samples, weighted by their confidence, and their soft targets."""
        rows = [row for row in table.to_pylist() if row["accepted"]]
        soft = self.recipe.rounds.targets == "soft"
        samples = [
            Sample(self.videos[row["video_id"]], row["label"], row["confidence"], index if soft else -1)
            for index, row in enumerate(rows)
        ]
        return samples, soft_targets(rows, self.manifest.num_classes) if soft else None


def side_by_side(*thunks: Callable[[], Any]) -> list[Any]:
    """Results of several stages, run at the same time; all end before the first error is raised."""
    with ThreadPoolExecutor(max_workers=len(thunks)) as threads:
        futures = [threads.submit(thunk) for thunk in thunks]
    return [future.result() for future in futures]


def temperatures(sbar_NK: Tensor, logits_NK: Tensor, accuracy_A: float | None) -> Temperatures:
    """tau_A and tau_E at which the mean confidence equals the estimated accuracy of each net.                    [C]

        acc_A = leave-one-out accuracy of the pre-trained f_A on D_l (it has seen no label), at least the root of the
        two nets' agreement, within .9...95; acc_E = agreement^2

    Agreement of two independent nets is about acc_A acc_E, hence the root. Nets that learned from the same few labels
    err together, and f_E fits them by heart, so its estimate is the cautious one. No label of D_u is used.

    Args:
        sbar_NK: class means of alignability of unlabelled videos.
        logits_NK: f_E's output for the same videos.
        accuracy_A: the leave-one-out accuracy; None where every class has one video.
    """
    agreement = measures.agreement(sbar_NK.argmax(1).numpy(), logits_NK.argmax(1).numpy())
    acc_A = min(max(accuracy_A or 0.0, agreement**0.5, LOWEST_A), HIGHEST)
    acc_E = min(max(agreement**2, LOWEST_E), HIGHEST)
    return Temperatures(
        tau_A=collaborate.fit_temperature(sbar_NK, acc_A),
        tau_E=collaborate.fit_temperature(logits_NK, acc_E),
        accuracy_A=acc_A,
        accuracy_E=acc_E,
    )


@dataclass(frozen=True)
class Compared:
    """What the labelled videos say of a pre-trained f_A when they are compared with each other."""

    mean: float
    std: float
    """Of D over the pairs: what a new score head standardises by."""
    accuracy: float | None
    """Of each video against the others, leave-one-out; None where every class has one video."""


def compare_labelled(gallery: Gallery, gamma: float, seed: int) -> Compared:
    """Compare the labelled videos with each other; of more than COMPARED a balanced sample.                 [C]

    The driver holds their G x G distances while all workers wait, hence the bound. A single pair has no deviation: a
    small one stands in, so that the head stays finite.
    """
    if len(gallery) > COMPARED:
        gallery = gallery.balanced(max(2, COMPARED // gallery.num_classes), seed)
    dist_GG = distances(gallery.emb_GTD, gallery.emb_GTD, gamma).double()
    above = torch.triu_indices(len(dist_GG), len(dist_GG), offset=1)
    values = dist_GG[above[0], above[1]]
    std = float(values.std()) if len(values) > 1 else 0.0
    accuracy = collaborate.leave_one_out_accuracy(gallery, dist_GG)
    return Compared(float(values.mean()), max(std, SMALLEST_STD), accuracy)


def guard(table: pa.Table, recipe: Recipe, name: str, class_names: Sequence[str]) -> None:
    """Stop before training on labels that have collapsed.

    Raises:
        TrainingError: coverage, class shares or agreement are beyond the recipe's bounds; with advice.
    """
    label = recipe.label
    accepted = np.array(table.column("accepted").to_pylist(), bool)
    classes = np.array(table.column("label").to_pylist())
    agree = float(np.mean(table.column("agree").to_pylist()))
    coverage = float(accepted.mean())
    counts = measures.class_counts(classes[accepted], len(class_names))
    share = float(counts.max() / max(1, accepted.sum()))
    state = f"coverage {coverage:.3f}, agreement {agree:.3f}, largest class share {share:.3f}"
    if coverage < label.min_coverage:
        raise TrainingError(
            f"{name}: almost nothing is accepted ({state}; label.min_coverage = {label.min_coverage:g}). Lower "
            f"label.threshold (now {label.threshold:g}), or train longer before the rounds"
        )
    if share > label.max_class_share:
        raise TrainingError(
            f"{name}: one class, {class_names[int(counts.argmax())]}, takes most accepted labels ({state}; "
            f"label.max_class_share = {label.max_class_share:g}). Train f_E longer first, or raise the bound"
        )
    if agree < label.min_agreement:
        raise TrainingError(
            f"{name}: p_E and p_A hardly ever agree ({state}; label.min_agreement = {label.min_agreement:g}). One of "
            "the encoders has not learned: look at the curves of stage 2"
        )


def soft_targets(rows: Sequence[Mapping[str, Any]], num_classes: int) -> np.ndarray:
    """targets_MK from the kept classes of each label; the rest of the mass is even over the others."""
    targets_MK = np.zeros((len(rows), num_classes), np.float32)
    for index, row in enumerate(rows):
        kept = sum(row["top_p"])
        others = num_classes - len(row["top"])
        targets_MK[index] = max(0.0, 1 - kept) / others if others else 0.0
        targets_MK[index, row["top"]] = row["top_p"]
    return targets_MK


def _label_table(made: collaborate.PseudoLabels, p_A_NK: Tensor, p_E_NK: Tensor) -> pa.Table:
    """About 200 bytes a video."""
    top = np.argsort(-made.p_NK, axis=1, kind="stable")[:, :TOP]
    return pa.table(
        {
            "video_id": made.video_ids,
            "label": made.label.astype(np.int32),
            "confidence": made.confidence,
            "accepted": made.accepted,
            "label_A": made.label_A.astype(np.int32),
            "label_E": made.label_E.astype(np.int32),
            "confidence_A": p_A_NK.max(1).values.numpy(),
            "confidence_E": p_E_NK.max(1).values.numpy(),
            "agree": made.label_A == made.label_E,
            "top": list(top.astype(np.int32)),
            "top_p": list(np.take_along_axis(made.p_NK, top, 1)),
        }
    )
