"""The verbs of the story: train an encoder, embed, label. Each looks up before it makes.

Clips are known by their rows of the manifest. Axes: N videos, G gallery, K classes.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa

from finepseudo import run as places
from finepseudo.align import collaborate
from finepseudo.align.fusion import Fusion
from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.data.manifest import Manifest
from finepseudo.data.plan import Plan, derive, drawn, plan_score, samples
from finepseudo.data.split import Split
from finepseudo.data.stream import BlockReader
from finepseudo.driver.executor import Executor
from finepseudo.driver.passes import run_pass
from finepseudo.driver.referees import Judged, judged
from finepseudo.errors import ArtefactError
from finepseudo.models.table import Part
from finepseudo.recipe import METHODS, Method, Recipe
from finepseudo.run import EMBEDDINGS, FUSION, KNOWN, LABELS, LEFT_OUT, SECONDS
from finepseudo.sizes import BLOCK_VIDEOS, COMPARED, JUDGED
from finepseudo.storage import artefacts, tables
from finepseudo.storage.lineage import differences, fingerprint
from finepseudo.storage.store import Store
from finepseudo.train import checkpoint
from finepseudo.train.initial import carried
from finepseudo.train.objectives import Loss
from finepseudo.train.predict import PARTS_FORM, Pass, Scores, embeddings, logits, nearest, sbar, score_head
from finepseudo.train.pseudo_labels import Compared, guard, known_from, label_table
from finepseudo.train.stage import Stage, stage_of

log = logging.getLogger("finepseudo")


T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Trained:
    """A committed snapshot."""

    uri: str
    digest: str


class Turns:
    """Two trainings and one pass of the pool at a time: what preflight asked the cluster for."""

    def __init__(self) -> None:
        self.trainings, self.passes = threading.BoundedSemaphore(2), threading.Lock()


@dataclass
class Steps:
    """The verbs of one run, and what they share."""

    recipe: Recipe
    run: Store
    base: Store  # another run directory; a training that is committed there with the same lineage is used from there
    manifest: Manifest  # of what the encoders see: videos, or stored features
    split: Split
    executor: Executor
    features: Store | None = None  # where stored features lie, if the manifest is of these
    kin: tuple[Store, ...] = ()  # more directories like the base, for trainings alone
    may_train: bool = True
    turns: Turns = field(default_factory=Turns)  # one for all that use a cluster at the same time

    data: Store = field(init=False)  # where the clips of the manifest lie
    label_N: np.ndarray = field(init=False)  # of D_l, in the order of its rows in the split

    def __post_init__(self) -> None:
        self.data = self.features or places.data_store(self.recipe, self.base)
        self.label_N = self.split.label_N

    def seed(self, name: str) -> int:
        """Of one stage's plan."""
        return derive(self.recipe.seed, self.recipe.split.seed, name)

    def labelled(self) -> pa.Table:
        """D_l as samples."""
        return samples(self.split.labelled, self.label_N)

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
        halfway: Callable[[Trained], None] | None = None,
    ) -> Trained:
        """The snapshot of a training from `init` or random weights; a new score head standardises by `compared`.

        `halfway` is called with the weights after half of the steps, before the training goes on.
        """
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
            num_classes=self.split.num_classes,
            init=init.uri if init else "",
            init_digest=init.digest if init else "",
            score_mean=compared.mean if compared else 0.0,
            score_std=compared.std if compared else 0.0,
        )
        for other in (self.base, *self.kin):
            theirs = artefacts.committed(other, folder) if other != self.run else None
            if theirs is None or differences(stage.lineage(), theirs["lineage"]):
                continue
            if halfway:
                half = artefacts.committed(other, places.halfway(name))
                if half is None:
                    continue  # that run labelled after its trainings
                halfway(Trained(other.uri(places.halfway(name)), artefacts.marker_digest(half)))
            log.info("%s: used from %s", name, other.uri())
            return Trained(other.uri(folder), artefacts.marker_digest(theirs))
        if not self.may_train and artefacts.committed(self.run, folder) is None:
            raise ArtefactError(f"{self.run.uri(stage.folder)} is not trained yet; jobs/run.py trains it")
        with self.turns.trainings, artefacts.making(self.run, folder) as run:
            if artefacts.committed(run, folder) is None and not self.recipe.models.frozen:
                foretold = BlockReader.of(self.recipe, self.data, plan).kept.hit_rate
                log.info("%s: an empty cache of clips would have %.1f %% of its reads", name, 100 * foretold)
            work = stage, self.recipe, run, self.data, self.executor
            if halfway:
                halfway(Trained(self.run.uri(places.halfway(name)), ensure_trained(*work, half=True)))
            digest = ensure_trained(*work)
        return Trained(self.run.uri(folder), digest)

    def score(self, name: str, row_N: np.ndarray, what: Pass) -> Scores:
        """One pass over clips, by their rows of the manifest; what an earlier start left of it is not done again.

        Raises DecodeError: more than `data.max_rejected` of the videos could not be decoded.
        """
        with self.turns.passes:
            lengths = {"align_frames": self.recipe.frames.align, "video_frames": self.recipe.frames.video}
            plan = plan_score(self.manifest, row_N, **lengths, clips=what.clips, block_videos=BLOCK_VIDEOS)
            folder = places.scores(name, fingerprint([plan.fingerprint, what.lineage(), PARTS_FORM]))
            return run_pass(
                name, what, plan, row_N, folder,
                recipe=self.recipe, manifest=self.manifest, num_classes=self.split.num_classes,
                run=self.run, data=self.data, executor=self.executor,
            )  # fmt: skip

    def embed(self, name: str, frame: Trained, extra: np.ndarray | None = None) -> Embeddings:
        """What f_A makes of D_l, and of `extra` clips beside them."""
        folder = places.embeddings(name)
        row_N = np.concatenate([self.split.labelled, np.zeros(0, int) if extra is None else extra])
        lineage = {"f_A": frame.digest, "videos": self.manifest.ids(row_N), "T": self.recipe.frames.align}

        def make() -> Mapping[str, bytes]:
            scores = self.score(f"embed/{name}", row_N, Pass(frame={"f_A": frame.uri}))
            found = scores.columns()
            made = Embeddings(embeddings(found, "f_A"), tuple(self.manifest.ids(found["clip"])))
            return {EMBEDDINGS: made.to_bytes(), **told_of(scores)}

        artefacts.ensure(self.run, folder, lineage, make)
        return Embeddings.from_bytes(artefacts.read_part(self.run, folder, EMBEDDINGS))

    def gallery(self, embedded: Embeddings) -> Gallery:
        """The labelled videos of what `embed` gave, with their labels, balanced as the recipe says."""
        labels = dict(zip(self.split.labelled_ids, self.label_N.tolist(), strict=True))
        labelled = places.gallery_of(self.recipe, embedded, labels, self.split.num_classes)
        without = [self.split.class_names[k] for k, count in enumerate(labelled.counts()) if not count]
        if without:
            log.warning("no gallery member, so p_A = 0, for class %s", ", ".join(without))
        return labelled

    def judge(self, frame: Trained, untaught: Trained) -> Judged:
        """Some clips of D_u, and D_l (of a large one, some), as f_A and f_E see them before stage 2."""
        recipe, seed = self.recipe, self.recipe.seed
        clip_N = drawn(self.manifest, self.split.unlabelled, JUDGED, "judged", seed)
        if recipe.label.fusion == "mean" or not len(clip_N):
            return Judged(clip_N, None)
        truth = dict(zip(self.split.labelled.tolist(), self.label_N.tolist(), strict=True))
        labelled = drawn(self.manifest, self.split.labelled, COMPARED, "compared", seed)
        what = Pass(frame={"f_A": frame.uri}, pooled={"f_E": "" if recipe.models.frozen else untaught.uri})
        found = self.score("referees", np.concatenate([clip_N, labelled]), what).columns()
        return judged(clip_N, found, {clip: truth[clip] for clip in labelled.tolist()}, recipe.align.gamma)

    def label(
        self,
        name: str,
        method: Method,
        frame: Trained,
        video: Trained,
        gallery: Gallery,
        scores: Callable[[], Scores],
        judges: Callable[[], Judged],
    ) -> pa.Table:
        """Committed pseudo-labels of D_u by f_A, with its gallery, and f_E.

        `scores` and `judges` are asked only where they are not committed yet.

        Raises TrainingError: they are useless (`guard`), with advice.
        """
        folder, recipe = places.labels(name), self.recipe

        def make() -> Mapping[str, bytes]:
            found = scores()
            clips = judges()
            fusion = clips.fusion(found.of(clips.clip_N), "f_A", "f_E")
            known = -math.inf
            if recipe.label.known and METHODS[method].uses_p_A:
                known = known_from(gallery, score_head(frame.uri), recipe, self.seed(f"known/{name}"))
            return {
                LABELS: artefacts.tables_bytes(self._labelled(found, method, fusion, known, gallery)),
                FUSION: json.dumps(vars(fusion)).encode(),
                **told_of(found),
                **({KNOWN: json.dumps(known).encode()} if known > -math.inf else {}),
            }

        lineage = {
            "f_A": frame.digest,
            "f_E": video.digest,
            "clips": recipe.label.clips,
            "method": method,
            "fusion": recipe.label.fusion,
            "threshold": recipe.label.threshold,
            "split": self.split.fingerprint,
            **({"known": recipe.label.known} if recipe.label.known else {}),
        }
        artefacts.ensure(self.run, folder, lineage, make)
        table = tables.mapped(self.run, folder, LABELS)
        guard(table, recipe, name, self.split.class_names)
        return table

    def _labelled(
        self, found: Scores, method: Method, fusion: Fusion, known: float, gallery: Gallery
    ) -> Iterator[pa.Table]:
        """What a method makes of scores, some thousand videos at a time."""
        traits, clip_G = METHODS[method], self.manifest.rows_of(gallery.video_ids)
        for batch in found.batches():
            sbar_NK, logits_NK = sbar(batch, "f_A"), logits(batch, "f_E")
            p_A_NK, p_E_NK = fusion.p_A(sbar_NK), fusion.p_E(logits_NK)
            made = collaborate.decide(
                fusion.p(sbar_NK, logits_NK) if traits.fuses else p_A_NK if traits.uses_p_A else p_E_NK,
                p_A_NK,
                p_E_NK,
                self.manifest.ids(batch["clip"]),
                threshold=self.recipe.label.threshold,
                knownness_N=collaborate.knownness(sbar_NK),
                known=known,
            )
            member_NM, near_S_NM = nearest(batch, "f_A")
            yield label_table(made, batch["clip"], p_A_NK, p_E_NK, clip_G[member_NM], near_S_NM)


def told_of(scores: Scores) -> dict[str, bytes]:
    """Parts that tell of a pass, beside what was made of it: where its time went, and what it left out, if anything."""
    left = {LEFT_OUT: json.dumps(dict(scores.rejected)).encode()} if scores.rejected else {}
    return {SECONDS: json.dumps(dict(scores.seconds)).encode(), **left}


def ensure_trained(
    stage: Stage, recipe: Recipe, run: Store, data: Store, executor: Executor, *, half: bool = False
) -> str:
    """Digest of the stage's committed snapshot, which is trained if it is not there yet, a segment at a time.

    With `half`, of that after half of the steps.

    Raises:
        TrainingError: see Executor.train.
        ArtefactError: more than half is trained, and the weights of the half are gone.
    """
    end, name = (stage.steps // 2, checkpoint.HALFWAY) if half else (stage.steps, "snapshot")
    lineage, folder = {**stage.lineage(), **({"step": end} if half else {})}, f"{stage.folder}/{name}"
    while (marker := artefacts.committed(run, folder)) is None:
        done = checkpoint.committed_step(run, stage.folder)
        if half and (done > end or artefacts.committed(run, f"{stage.folder}/snapshot") is not None):
            raise ArtefactError(
                f"{run.uri(folder)} is missing, and {run.uri(stage.folder)} has trained past it; delete that folder "
                "and what was made of it, and start the same command again"
            )
        if done < end:
            stop = min(end, done + recipe.scale.segment_steps)
            log.info("%s: training steps %d to %d of %d", stage.name, done, stop, stage.steps)
            executor.train(stage, run, data, stop=stop)
            seconds = checkpoint.taken(run, stage.folder).seconds
            share = 100 * seconds["cache_hits"] / max(1, seconds["rows"])
            if not stage.stored:
                log.info("%s: the cache of clips had %.1f %% of its reads", stage.name, share)
        else:  # halfway; or the last worker died between its checkpoint and the snapshot
            checkpoint.export_snapshot(run, stage.folder, lineage=lineage, beside=carried(stage.init), name=name)
    artefacts.check_lineage(run, folder, marker, lineage)
    return artefacts.marker_digest(marker)


def both(first: Callable[[], T], second: Callable[[], U]) -> tuple[T, U]:
    """Results of two chains of stages, run at the same time; both end before an error is raised."""
    with ThreadPoolExecutor(max_workers=2) as threads:
        futures = threads.submit(first), threads.submit(second)
    return futures[0].result(), futures[1].result()


def side_by_side(thunks: Sequence[Callable[[], T]]) -> list[T]:
    """The same of any number."""
    with ThreadPoolExecutor(max_workers=max(1, len(thunks))) as threads:
        futures = [threads.submit(thunk) for thunk in thunks]
    return [future.result() for future in futures]
