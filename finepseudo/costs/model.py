"""What a run of any size costs on any cluster, by arithmetic over the unit costs of units.py.

A group of workers (decode, train, score) takes rows x unit cost / workers; a stage takes as long as its slowest group,
after its start and what the driver does alone; the chains of a phase run side by side. Rows, and the videos that the
cache keeps, are counted by the functions that plan a run. Left out: preparing the videos, starting Ray, the network,
exchange of gradients, checkpoints, first and last blocks of a stream, failures, memory, caches of several nodes (one is
assumed), what a stage pushes out of the cache that a later one wants, and that the alignment in L_AV grows with T x T.

Axes: N videos, G gallery, K classes, T frames of a clip. All times are seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.costs.units import UnitCosts
from finepseudo.data.cache import Kept
from finepseudo.data.layout import Layout
from finepseudo.data.manifest import CLIPS, Manifest
from finepseudo.data.plan import Plan, plan_align, plan_classify, plan_pretrain, plan_score, samples
from finepseudo.errors import RecipeError
from finepseudo.recipe import METHODS, Method, Recipe, changed
from finepseudo.sizes import BLOCK_VIDEOS, COMPARED, JUDGED

GROUPS = ("decode", "train", "score")
CORE_PRICE, GPU_PRICE = 0.05, 3.0
"""Money an hour for a rented core and a rented GPU: assumed, and in proportion to any other."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Workers as in `scale.*`: of each of the two trainings, of each of the three streams, of the pool."""

    decode_workers: int = 1
    train_workers: int = 1
    score_workers: int = 1
    cores: int = 0  # real cores that all share; 0: every worker has its own
    decode_price: float = CORE_PRICE  # money per worker and hour, busy or not
    train_price: float = CORE_PRICE
    score_price: float = CORE_PRICE

    @classmethod
    def of(cls, recipe: Recipe) -> Cluster:
        """What the recipe asks for."""
        scale = recipe.scale
        return cls(
            decode_workers=scale.decode_workers,
            train_workers=scale.train_workers,
            score_workers=scale.score_workers,
            train_price=scale.train_cpus * CORE_PRICE + scale.train_gpus * GPU_PRICE,
            score_price=scale.score_cpus * CORE_PRICE + scale.score_gpus * GPU_PRICE,
        )


@dataclass(frozen=True)
class Sizes:
    """What a run grows with. Sizes that are not given, 0, are the recipe's."""

    videos: int = 0  # N, training videos
    tests: int = 0  # test videos; N / 10 where the recipe does not say
    classes: int = 0  # K
    labelled: int = 0  # labelled videos, from which the gallery G is balanced
    frames: int = 0  # T of f_A; the clips of f_E and of pre-training grow in proportion
    steps: float = 1.0  # times the recipe's, of every training

    def of(self, recipe: Recipe) -> Sizes:
        """With those of the recipe.

        Raises:
            RecipeError: neither says how many videos there are.
        """
        spec, videos, tests, classes = recipe.data.rehearsal, self.videos, self.tests, self.classes
        if spec is not None:
            classes = classes or len(spec.words)
            videos, tests = videos or classes * spec.train_per_class, tests or classes * spec.test_per_class
        if not (videos and classes):
            raise RecipeError(f"recipe {recipe.name!r} has no sizes of its own: give --sizes.videos, --sizes.classes")
        each, more = divmod(videos, classes)  # so many classes have one video more; the split is class by class
        kept, kept_more = (max(1, round(recipe.split.label_fraction * count)) for count in (each, each + 1))
        labelled = min(videos, self.labelled or (classes - more) * kept + more * kept_more)
        return Sizes(videos, tests or videos // 10, classes, labelled, self.frames or recipe.frames.align, self.steps)


@dataclass(frozen=True)
class StageCost:
    """One stage: a constant for its start, what the driver does alone, and rows that stream through the groups."""

    name: str
    rows: int = 0
    start: float = 0.0
    driver: float = 0.0
    work: Mapping[str, float] = field(default_factory=dict)  # worker-seconds of each group that takes part
    workers: Mapping[str, int] = field(default_factory=dict)  # that find something to do in it: at most one a block

    @property
    def busy(self) -> dict[str, float]:
        """Seconds that each group needs, all its workers at work."""
        return {group: work / self.workers[group] for group, work in self.work.items()}

    @property
    def seconds(self) -> float:
        """From its beginning to its end."""
        return self.start + self.driver + max(self.busy.values(), default=0.0)

    @property
    def bound(self) -> str:
        """What it waits for most."""
        parts = {"start": self.start, "driver": self.driver, **self.busy}
        return max(parts, key=parts.__getitem__)

    @property
    def idle(self) -> dict[str, float]:
        """Share of the stage in which each of its groups waits, for its start, the driver or the slower group."""
        return {group: 1 - busy / self.seconds for group, busy in self.busy.items()}


class Model:
    """driver/rounds.py in seconds. Every pseudo-label is accepted; between rounds the methods wait for each other."""

    def __init__(self, recipe: Recipe, sizes: Sizes, costs: UnitCosts, cluster: Cluster) -> None:
        sizes, frames, gitdl = sizes.of(recipe), recipe.frames, recipe.gitdl
        longer = sizes.frames / frames.align
        workers = {f"{group}_workers": getattr(cluster, f"{group}_workers") for group in GROUPS}
        lengths = {"frames.align": sizes.frames, "frames.video": round(longer * frames.video)}
        lengths["gitdl.frames"] = round(longer * gitdl.frames)
        self.recipe = recipe = changed(recipe, lengths | {f"scale.{name}": count for name, count in workers.items()})
        self.sizes, self.costs, self.cluster = sizes, costs, cluster
        self.sets = {"labelled": sizes.labelled, "other": sizes.videos - sizes.labelled, "test": sizes.tests}
        members = Counter(index % sizes.classes for index in range(sizes.labelled))
        most = recipe.label.per_class_max or sizes.labelled
        self.gallery = sum(min(most, count) for count in members.values())
        self.pair_s = recipe.frames.align**2 * costs.cell_s
        self.manifest = stand_in(sizes.videos + sizes.tests, round(costs.video_frames))
        row_N = np.arange(sizes.videos)
        self.every, split = samples(row_N, row_N % sizes.classes), sizes.labelled
        self.labelled, self.others = self.every[:split], self.every[split:]
        self.cached = dict.fromkeys(self.sets, 0.0)  # share of each set that the cache holds
        self.alignment = 0.0  # worker-seconds of scoring that are alignment
        self.pseudo: list[Method] = [method for method in recipe.methods if METHODS[method].labels]
        self.phases = {"stage 2": self.stage_2()}  # chains of stages that run side by side
        for number in range(1, recipe.rounds.count + 1):
            asked = self.judge() if number == 1 and recipe.label.fusion != "mean" else []
            chain = [*self.galleries(number - 1), *asked, *self.label(number)]
            if number > 1 and recipe.label.lag:
                training = self.phases[f"train {number - 1}"]
                wait = max(stage.seconds for stages in training for stage in stages) / 2
                training.append([replace(chain[0], start=chain[0].start + wait), *chain[1:]])
            else:
                self.phases[f"label {number}"] = [chain]
            self.phases[f"train {number}"] = self.train(number)
        self.phases["evaluate"] = [[*self.galleries(recipe.rounds.count), self.evaluate(), *self.probe()]]
        self.stages = [stage for chains in self.phases.values() for chain in chains for stage in chain]
        # Workers that the run holds from beginning to end, as resources.py asks for them.
        copies = {"decode": 3, "train": 2, "score": 1}
        self.held = {group: copies[group] * workers[f"{group}_workers"] for group in GROUPS}

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(map(self.phase_seconds, self.phases))

    @property
    def money(self) -> dict[str, float]:
        """Of all workers of each group, busy or not."""
        hours = self.seconds / 3600
        return {group: held * hours * getattr(self.cluster, f"{group}_price") for group, held in self.held.items()}

    @property
    def work(self) -> dict[str, float]:
        """Worker-seconds of each group, and seconds of the driver."""
        found = {group: sum(stage.work.get(group, 0.0) for stage in self.stages) for group in GROUPS}
        return {**found, "driver": sum(stage.driver for stage in self.stages)}

    def phase_seconds(self, name: str) -> float:
        """The longest chain; longer where trainings (two at a time) or real cores are short."""
        chains = self.phases[name]
        longest = max(sum(stage.seconds for stage in chain) for chain in chains)
        stages = [stage for chain in chains for stage in chain]
        trainings = sum(stage.seconds for stage in stages if "train" in stage.work) / 2
        shared = sum(sum(stage.work.values()) for stage in stages)
        return max(longest, trainings, shared / self.cluster.cores if self.cluster.cores else 0.0)

    def stage_2(self) -> list[list[StageCost]]:
        """f_A: pre-train, embed, compare, align, embed; f_E: pre-train, supervise."""
        recipe = self.recipe
        sets = {"labelled": self.sets["labelled"], "test": min(recipe.evaluate.pair_videos, self.sizes.tests)}
        frame = [
            *self.pretrain("frame", recipe.gitdl.frame_steps),
            self.scoring("gallery/pretrained", sets, frames=1),
            StageCost("driver/compare", driver=min(self.gallery, COMPARED) ** 2 * self.pair_s),
            self.training("train/align/frame", "align/frame", recipe.align.steps),
            self.scoring("gallery/aligned", sets, frames=1),
        ]
        video = self.pretrain("video", recipe.gitdl.video_steps)
        return [frame, [*video, self.training("train/supervise/video", "classify/video", recipe.supervise.steps)]]

    def pretrain(self, part: str, steps: int) -> list[StageCost]:
        """GITDL, where the recipe has steps of it."""
        return [self.training(f"train/pretrain/{part}", f"gitdl/{part}", steps)] if steps else []

    def label(self, number: int) -> list[StageCost]:
        """Passes over the unlabelled videos through both encoders and the gallery; the first serves all methods."""
        N, clips = self.sets["other"], self.recipe.label.clips
        names = [f"labels/{method}/round-{number}" for method in self.pseudo[: 1 if number == 1 else None]]
        both = {"frames": 1, "galleries": 1, "nearest": 1, "videos": 1}
        found = [self.scoring(name, {"other": N}, **both, clips=clips) for name in names]
        costs = self.costs
        deciding = self.sizes.classes * (min(N, JUDGED) * costs.fusion_class_s + N * costs.label_class_s)
        return [replace(stage, driver=stage.driver + deciding) for stage in found]

    def judge(self) -> list[StageCost]:
        """The pass by which the fusion is estimated; it makes embeddings, and compares them in the driver."""
        sets = {"other": min(JUDGED, self.sets["other"]), "labelled": min(COMPARED, self.sets["labelled"])}
        pairs = sets["other"] * sum(sets.values())
        stage = self.scoring("referees", sets, frames=1, videos=1)
        return [replace(stage, driver=stage.driver + pairs * self.pair_s)]

    def train(self, number: int) -> list[list[StageCost]]:
        """Every method's f_E, and f_A where the recipe says so."""
        recipe, rounds, chains = self.recipe, self.recipe.rounds, []
        for method in self.pseudo:
            name = f"train/{method}/round-{number}"
            chains.append([self.training(f"{name}/video", "classify/video", rounds.video_steps, pseudo=True)])
            if self.trains_frame(method, number):
                chains.append([self.training(f"{name}/frame", "align/frame", rounds.frame_steps, pseudo=True)])
        if "timebalance" in recipe.methods:
            name = f"train/timebalance/round-{number}/video"
            student = self.training(name, "classify/video", rounds.video_steps, pseudo=True)
            chains.append([*(self.teachers() if number == 1 else ()), student])
        if "fixmatch" in recipe.methods:
            name = f"train/fixmatch/round-{number}/video"
            chains.append([self.training(name, "classify/video", rounds.video_steps, pseudo=True, weak=True)])
        if any(METHODS[method].trains and not METHODS[method].unlabelled for method in recipe.methods):
            name = f"train/supervised/round-{number}/video"
            chains.append([self.training(name, "classify/video", rounds.video_steps)])
            if number == rounds.count and "supervised_2x" in recipe.methods:
                steps = recipe.supervise.steps + rounds.count * rounds.video_steps
                chains[-1].append(self.training("train/supervised_2x/video", "classify/video", steps))
        return chains

    def teachers(self) -> list[StageCost]:
        """Of timebalance: the invariant one, pre-trained for what f_E's pre-training costs, and a pass of both."""
        recipe, N = self.recipe, self.sets["other"]
        return [
            *(
                [self.training("train/pretrain/invariant", "gitdl/video", recipe.gitdl.video_steps)]
                if recipe.gitdl.video_steps
                else []
            ),
            self.training("train/timebalance/invariant", "classify/video", recipe.supervise.steps),
            self.scoring("labels/timebalance/targets", {"other": N}, frames=0, videos=3, clips=recipe.label.clips),
        ]

    def trains_frame(self, method: Method, number: int) -> bool:
        """Whether this round trains f_A again."""
        return 1 <= number <= self.recipe.rounds.frame_rounds and METHODS[method].trains_f_A

    def galleries(self, number: int) -> list[StageCost]:
        """Embedding D_l by each f_A that this round has trained."""
        names = [f"gallery/{method}/round-{number}" for method in self.pseudo if self.trains_frame(method, number)]
        return [self.scoring(name, {"labelled": self.sets["labelled"]}, frames=1) for name in names]

    def evaluate(self) -> StageCost:
        """One pass over the test videos through all encoders; the pair test is small."""
        sets = {"test": self.sizes.tests, "other": min(JUDGED, self.sets["other"])}
        frames = 1 + sum(self.trains_frame(method, 1) for method in self.pseudo)
        videos, clips = 1 + len(self.recipe.methods), self.recipe.evaluate.clips
        return self.scoring("results", sets, frames=frames, galleries=frames, videos=videos, clips=clips)

    def probe(self) -> list[StageCost]:
        """The frozen probe's pass over D_l; its fit is small."""
        asked, clips = "frozen_probe" in self.recipe.methods, self.recipe.evaluate.clips
        sets = {"labelled": self.sets["labelled"]}
        return [self.scoring("frozen_probe", sets, frames=0, videos=1, clips=clips)] if asked else []

    def training(self, name: str, kind: str, steps: int, *, pseudo: bool = False, weak: bool = False) -> StageCost:
        """One training: launches, and steps x blocks of the plan's rows.

        Args:
            weak: f_E sees a weak view of every row as well, forward alone.
        Raises:
            RecipeError: the unit costs have none of this kind.
        """
        recipe, scale, costs = self.recipe, self.recipe.scale, self.costs
        if kind not in costs.train_frame_s:
            raise RecipeError(f"{name}: the unit costs have no {kind}; measure them with a recipe that trains it")
        steps, per_step = round(steps * self.sizes.steps), recipe.optimiser.blocks_per_step
        labelled = self.every if kind.startswith("gitdl") else self.labelled
        plan = make_plan(recipe, kind, self.manifest, labelled, self.others if pseudo else None, steps)
        rows = len(plan)
        decode_s = self.decoding(plan, {name: self.sets[name] for name in ("labelled", "other")})
        layout = Layout.of(0, min(steps, scale.segment_steps), scale.train_workers, per_step, scale.steps_per_block)
        frame_s = costs.train_frame_s[kind] + (costs.embed_frame_s["video"] if weak else 0.0)
        work = {"train": rows * row_frames(plan) * frame_s, "decode": decode_s}
        workers = {"train": scale.train_workers, "decode": min(scale.decode_workers, len(layout))}
        start = math.ceil(steps / scale.segment_steps) * costs.launch_s
        return StageCost(name, rows, start, work=work, workers=workers)

    def scoring(
        self,
        name: str,
        sets: Mapping[str, int],
        *,
        frames: int,
        galleries: int = 0,
        nearest: int = 0,
        videos: int = 0,
        clips: int = 1,
    ) -> StageCost:
        """One pass of the pool through so many f_A, galleries and f_E; first views meet `nearest` galleries again."""
        scale, costs, T = self.recipe.scale, self.costs, self.recipe.frames
        count = sum(sets.values())
        lengths = {"align_frames": T.align, "video_frames": T.video}
        plan = plan_score(self.manifest, np.arange(count), **lengths, clips=clips, block_videos=BLOCK_VIDEOS)
        rows, blocks = len(plan), plan.blocks
        row_s = frames * T.align * costs.embed_frame_s["frame"] + videos * T.video * costs.embed_frame_s["video"]
        row_s += (align_s := (galleries + nearest / clips) * self.gallery * self.pair_s)
        self.alignment += rows * align_s
        decode_s = self.decoding(plan, sets)
        workers = {"decode": min(scale.decode_workers, blocks), "score": min(scale.score_workers, blocks)}
        work = {"decode": decode_s, "score": rows * row_s}
        return StageCost(name, rows, costs.pool_s, work=work, workers=workers)

    def decoding(self, plan: Plan, sets: Mapping[str, int]) -> float:
        """Worker-seconds of making and decoding the rows of a plan, of so many videos of each set."""
        total, costs, frames = len(plan) * self.costs.plan_row_s, self.costs, self.recipe.frames
        frame_bytes, limit = frames.height * frames.width * 3, int(self.recipe.scale.cache_gib * (1 << 30))
        # A video of more than a tenth of the cache is not kept: see ClipCache.keeps.
        kept = Kept.of(plan, frame_bytes, limit if costs.video_frames * frame_bytes <= limit / 10 else 0)
        reads = {part.start > 0: each for part, each in plan.reads()}
        for name, count in sets.items():
            behind = plan.spec.labelled > 0 and name != "labelled"
            rows, there = count * reads.get(behind, 0.0), self.cached[name]
            new = max(0.0, kept.shares[behind] - there)
            missed, first = rows * (1 - there - new), count * new
            total += missed * costs.decode_once_s + first * costs.decode_kept_s
            total += (rows - missed - first) * costs.decode_hit_s
            self.cached[name] += first / max(1, self.sets[name])
        return total


def growth(recipe: Recipe, sizes: Sizes, costs: UnitCosts, cluster: Cluster) -> dict[str, dict[str, float | None]]:
    """log2 of what doubling each size does to the work of each group, the alignment in it, and time."""

    def totals(**doubled: Any) -> dict[str, float]:
        found = Model(recipe, replace(whole, **doubled), costs, cluster)
        return {**found.work, "alignment": found.alignment, "time": found.seconds}

    whole = sizes.of(recipe)
    named = {"N": "videos", "G": "labelled", "T": "frames", "K": "classes", "N, G and steps": "videos labelled steps"}
    before, found = totals(), {}
    for name, keys in named.items():
        after = totals(**{key: 2 * getattr(whole, key) for key in keys.split()})
        found[name] = {key: math.log2(after[key] / value) if value else None for key, value in before.items()}
    return found


def make_plan(
    recipe: Recipe, kind: str, manifest: Manifest, labelled: pa.Table, pseudo: pa.Table | None, steps: int
) -> Plan:
    """The plan of a training, by the functions that the run uses."""
    common: dict[str, Any] = {"steps": steps, "blocks_per_step": recipe.optimiser.blocks_per_step, "seed": 0}
    if kind.startswith("gitdl"):
        of = recipe.gitdl.video_loss if kind == "gitdl/video" else "gitdl"
        return plan_pretrain(manifest, labelled["clip"].to_numpy(), recipe.gitdl, of, **common)
    common["augment"], rounds, frames = recipe.augment, recipe.rounds, recipe.frames
    if kind.startswith("align"):
        common |= {"frames": frames.align, "label_share": 1.0 if pseudo is None else rounds.frame_label_share}
        return plan_align(manifest, labelled, pseudo, recipe.align, **common)
    common |= {"frames": frames.video, "label_share": rounds.video_label_share}
    return plan_classify(manifest, labelled, pseudo, batch=recipe.supervise.batch, **common)


def row_frames(plan: Plan) -> int:
    """Frames that one row of a plan brings to the encoder; local clips of TCLR are seen twice."""
    row, times = plan.rows(0, 1)[0], (1, 2 if plan.spec.kind == "tclr" else 1)
    return sum(count * len(row[column]) for column, count in zip(plan.columns, times, strict=False))


class StandIn(Manifest):
    """A manifest of clips that are nowhere: for plans that are counted, not read."""

    @cached_property
    def fingerprint(self) -> str:
        """None, since nothing is made of it: digests of hundreds of thousands of clips take seconds."""
        return ""


@lru_cache
def stand_in(count: int, frames: int = 64) -> Manifest:
    """Clips 0, 1, ... of so many frames."""
    columns = {item.name: pa.nulls(count, item.type) for item in CLIPS}
    columns["video_id"] = pa.array(np.arange(count)).cast(pa.string())
    columns["num_frames"] = pa.array(np.full(count, frames, np.int32))
    return StandIn(pa.table(columns, schema=CLIPS), pa.chunked_array([pa.nulls(count, pa.int32())]), ())
