"""Plans: randomness as data, and a plan as a function. Row i is decided before any pixel is read, and made when asked.

What is committed is a specification of a few numbers and a table of samples, one row a clip: its row of the manifest,
label, weight and kept classes of its pseudo-label. Row i of the plan follows from them and from i alone, without the
rows before it; no clock, worker count, environment or global generator takes part. Rows form blocks of equal size; a
block is one micro-batch. The seeds of a row come from a hash of its clip and of how often the plan has used that
before, so one clip more changes no other's draws.

Axes: N clips, T frames.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from finepseudo.data import manifest as manifests
from finepseudo.data import sampling
from finepseudo.data.manifest import Manifest
from finepseudo.errors import ArtefactError, ManifestError
from finepseudo.recipe import Align, Augment, Gitdl
from finepseudo.storage import artefacts, lineage, tables
from finepseudo.storage.store import Store

SAMPLES = pa.schema(
    {"clip": pa.int32(), "label": pa.int32(), "weight": pa.float32()}
    | {"top": pa.list_(pa.int32()), "top_p": pa.list_(pa.float32())}
)
CLIP = ("video_id", "path", "sha256", "num_frames", "height", "width", "access", "start", "file_frames")
"""What a row has of its clip."""

PAIRS = {"gitdl": sampling.global_local, "tclr": sampling.global_tiled}
"""How kinds of pre-training draw the two clips of a row."""

At = Callable[[int], tuple[int, int]]
"""Row of a plan -> row of its samples, and how often the plan has used that sample before."""


def derive(*parts: object) -> int:
    """A 63-bit seed from its parts; the same in every process (`hash()` is not)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def drawn(manifest: Manifest, row_N: np.ndarray, count: int, *key: object) -> np.ndarray:
    """Some of the clips by a hash of key and id: one clip more displaces one at most, whatever the order of rows."""
    keys = np.array([derive(*key, video_id) for video_id in manifest.ids(row_N)], np.int64)
    return row_N[np.argsort(keys, kind="stable")[:count]]


def samples(clip_N: Any, label_N: Any = None, weight_N: Any = None, top: Any = None, top_p: Any = None) -> pa.Table:
    """A table of samples: clips by their rows of the manifest; weight 1 and neither label nor soft target by default.

    Args are one entry a clip, of numpy, Arrow or lists:
        top, top_p: classes and probabilities of a soft target; the rest of the mass is even over the other classes.
    """
    given = (clip_N, label_N, np.ones(len(clip_N)) if weight_N is None else weight_N, top, top_p)
    types: list[Any] = SAMPLES.types
    columns = [
        pa.nulls(len(clip_N), kind) if column is None else _column(column, kind)
        for column, kind in zip(given, types, strict=True)
    ]
    return pa.table(columns, schema=SAMPLES)


def _column(values: Any, kind: pa.DataType) -> Any:
    return values.cast(kind) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The numbers of a plan."""

    kind: Literal["gitdl", "tclr", "classify", "align", "score"]
    rows: int
    block_rows: int
    seed: int = 0
    labelled: int = 0  # samples in front that are labelled; pseudo-labelled ones follow
    from_labelled: int = 0  # classify: rows of a block that are labelled
    classes: int = 0  # align: P classes of a block
    clips: int = 1  # align: M clips of each; score: V views of a video, one after the other
    label_share: float = 1.0  # align: of the M clips, as far as a class has pseudo-labelled ones
    frames: tuple[int, ...] = ()  # T, of one or of two encoders
    manifest: str = manifests.FOLDER  # folder of that of its clips, below the run
    draw: tuple[float, float] = (0, 0)  # skips of global and local clips; or largest cut at the ends, and warp


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one training or one pass, in order."""

    spec: Spec
    samples: pa.Table
    clips: pa.Table  # of the manifest, without labels
    fingerprint: str

    @staticmethod
    def of(spec: Spec, chosen: pa.Table, manifest: Manifest) -> Plan:
        spec = replace(spec, manifest=manifest.folder)
        made = lineage.fingerprint([lineage.chosen(spec), tables.digest(chosen), manifest.fingerprint])
        return Plan(spec, chosen, manifest.clips, made)

    def __len__(self) -> int:
        return self.spec.rows

    @property
    def block_rows(self) -> int:
        return self.spec.block_rows

    @property
    def blocks(self) -> int:
        """Number of blocks, the last of which may be shorter in a pass over videos."""
        return -(-len(self) // self.block_rows)

    @property
    def columns(self) -> list[str]:
        """Columns of frame indices: of one clip a row, or of two."""
        two = self.spec.kind in PAIRS or len(self.spec.frames) == 2
        return ["frames_0", "frames_1"] if two else ["frames_0"]

    @cached_property
    def soft(self) -> bool:
        """Whether some rows have soft targets."""
        return self.samples["top"].null_count < len(self.samples)

    @cached_property
    def _at(self) -> At:
        return _ORDERS[self.spec.kind](self.spec, self.samples)

    @cached_property
    def _clips(self) -> pa.Table:
        return self.clips.select(CLIP)

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Row, CLIP, frames_0 and frames_1, aug_seed, SAMPLES; video is the clip's row of the manifest."""
        numbers = range(start, min(stop, len(self)))
        drawn = [self._at(number) for number in numbers]
        chosen = tables.rows_at(self.samples, np.array([sample for sample, _ in drawn], int))
        clips = tables.rows_at(self._clips, np.array([sample["clip"] for sample in chosen], int))
        rows: list[dict[str, Any]] = []
        for number, (index, use), sample, clip in zip(numbers, drawn, chosen, clips, strict=True):
            drawn_here = {"row": number, "sample": index, "video": sample.pop("clip")}
            rows.append({**drawn_here, **sample, **clip, **self._draw(clip, use)})
        return rows

    def reads(self) -> list[tuple[slice, float]]:
        """Which samples are read how often, each: the labelled ones, and the others."""
        spec, count = self.spec, len(self.samples)
        share = {"classify": spec.from_labelled / spec.block_rows, "align": spec.label_share}.get(spec.kind, 0.0)
        share = 1.0 if spec.labelled == count else share
        groups = ((slice(0, spec.labelled), share), (slice(spec.labelled, count), 1 - share))
        return [(part, len(self) * of_rows / (part.stop - part.start)) for part, of_rows in groups if of_rows]

    def _draw(self, clip: dict[str, Any], use: int) -> dict[str, Any]:
        """What chance decides of one use of a clip."""
        spec, length = self.spec, clip["num_frames"]
        if spec.kind == "score":
            views = [sampling.spread(length, count, phase=(use + 0.5) / spec.clips) for count in spec.frames]
            return {"frames_0": views[0], "frames_1": views[1] if len(views) == 2 else None, "aug_seed": 0}
        rng = np.random.default_rng(derive("frames", spec.seed, clip["video_id"], use))
        aug_seed = derive("augment", spec.seed, clip["video_id"], use)
        (frames,), (first, second) = spec.frames, spec.draw
        if spec.kind in PAIRS:
            skips = {"skip_global": int(first), "skip_local": int(second)}
            both = PAIRS[spec.kind](length, frames, rng, **skips)
            return {"frames_0": both[0], "frames_1": both[1], "aug_seed": aug_seed}
        whole = sampling.spread_jittered(length, frames, rng, ends=first, warp=second)
        return {"frames_0": whole, "frames_1": None, "aug_seed": aug_seed}

    def ensure(self, run: Store, folder: str) -> None:
        """Commit it beside the manifest of its clips; `load` reads it."""
        made_of = {"plan": self.fingerprint, "spec": self.spec}
        artefacts.ensure(run, folder, made_of, lambda: {"samples.parquet": artefacts.table_bytes(self.samples)})

    @staticmethod
    def load(run: Store, folder: str) -> Plan:
        """Tables are mapped, and shared by the processes of a node."""
        chosen, made_of = tables.mapped(run, folder, "samples.parquet"), artefacts.required(run, folder)["lineage"]
        try:
            spec, made = made_of["spec"], made_of["plan"]
            lists = {name: tuple(spec[name]) for name in ("frames", "draw")}
            there = Spec(**{**spec, **lists})
        except (KeyError, TypeError) as error:
            raise ArtefactError(
                f"{run.uri(folder)}: its marker is not that of a plan ({error}); "
                "delete the folder to have it made again"
            ) from None
        return Plan(there, chosen, manifests.load_clips(run, there.manifest), made)


def plan_pretrain(
    manifest: Manifest,
    row_N: np.ndarray,
    gitdl: Gitdl,
    kind: Literal["gitdl", "tclr"] = "gitdl",
    *,
    steps: int,
    blocks_per_step: int,
    seed: int,
) -> Plan:
    """Epochs over clips of any kind, two views of each; `row_N` are their rows of the manifest."""
    _check(len(row_N), "training")
    spec = Spec(
        kind=kind,
        rows=steps * blocks_per_step * gitdl.videos,
        block_rows=gitdl.videos,
        seed=seed,
        frames=(gitdl.frames,),
        draw=(gitdl.skip_global, gitdl.skip_local),
    )
    return Plan.of(spec, samples(row_N), manifest)


def plan_classify(
    manifest: Manifest,
    labelled: pa.Table,
    pseudo: pa.Table | None = None,
    *,
    frames: int,
    augment: Augment,
    steps: int,
    batch: int,
    label_share: float,
    blocks_per_step: int,
    seed: int,
) -> Plan:
    """Cross-entropy training: `label_share` of every block are labelled clips, the others pseudo-labelled ones.

    Without pseudo-labelled clips all are labelled.
    """
    chosen = _joined(labelled, pseudo)
    from_labelled = _labelled_rows(label_share, batch) if len(chosen) > len(labelled) else batch
    _check(len(labelled) if from_labelled else 1, "labelled")
    spec = Spec(
        kind="classify",
        rows=steps * blocks_per_step * batch,
        block_rows=batch,
        seed=seed,
        labelled=len(labelled),
        from_labelled=from_labelled,
        frames=(frames,),
        draw=(augment.ends, augment.warp),
    )
    return Plan.of(spec, chosen, manifest)


def plan_align(
    manifest: Manifest,
    labelled: pa.Table,
    pseudo: pa.Table | None,
    align: Align,
    *,
    frames: int,
    augment: Augment,
    steps: int,
    label_share: float,
    blocks_per_step: int,
    seed: int,
) -> Plan:
    """Metric learning: blocks of P classes x M clips; a class with fewer clips repeats them.

    `label_share` of the M clips of a class are labelled, as far as it has pseudo-labelled ones. P is at most the
    number of classes with labelled clips. Raises ManifestError where these are fewer than two.
    """
    there = len(np.unique(labelled["label"].to_numpy()))
    if there < 2:
        raise ManifestError(f"alignment needs labelled videos of at least two classes, got {there}")
    count = min(align.classes, there)
    spec = Spec(
        kind="align",
        rows=steps * blocks_per_step * count * align.clips,
        block_rows=count * align.clips,
        seed=seed,
        labelled=len(labelled),
        classes=count,
        clips=align.clips,
        label_share=label_share,
        frames=(frames,),
        draw=(augment.ends, augment.warp),
    )
    return Plan.of(spec, _joined(labelled, pseudo), manifest)


def plan_score(
    manifest: Manifest, row_N: np.ndarray, *, align_frames: int, video_frames: int, clips: int, block_videos: int
) -> Plan:
    """One inference pass: `clips` evenly phased views of each clip, one after the other, no augmentation.

    `video_frames` 0: of one encoder alone.
    """
    spec = Spec(
        kind="score",
        rows=len(row_N) * clips,
        block_rows=block_videos * clips,
        clips=clips,
        frames=(align_frames, video_frames) if video_frames else (align_frames,),
    )
    return Plan.of(spec, samples(row_N), manifest)


class _Epochs:
    """Members again and again, each epoch in an order of its own: draw j follows from j alone."""

    def __init__(self, members: np.ndarray, what: str, seed: int) -> None:
        self.members, self.what, self.seed = members, what, seed
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __call__(self, draw: int) -> tuple[int, int]:
        """The member, and the epoch: how often it was drawn before."""
        epoch, place = divmod(draw, len(self.members))
        return int(self.members[self._order(epoch)[place]]), epoch

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(derive("order", self.what, self.seed, epoch)).permutation(len(self.members))


def _pretrain(spec: Spec, chosen: pa.Table) -> At:
    return _Epochs(np.arange(len(chosen)), spec.kind, spec.seed)


def _classify(spec: Spec, chosen: pa.Table) -> At:
    real = _Epochs(np.arange(spec.labelled), "labelled", spec.seed)
    extra = _Epochs(np.arange(spec.labelled, len(chosen)), "pseudo", spec.seed)
    from_extra = spec.block_rows - spec.from_labelled

    def at(row: int) -> tuple[int, int]:
        block, place = divmod(row, spec.block_rows)
        if place < spec.from_labelled:
            return real(block * spec.from_labelled + place)
        return extra(block * from_extra + place - spec.from_labelled)

    return at


def _align(spec: Spec, chosen: pa.Table) -> At:
    """Classes take turns: draw d of a cycle has class d mod K of the cycle's order, so a block's P classes differ.

    A cycle is as many blocks as draw every class equally often, K / gcd(K, P).
    """
    real, extra = (_by_class(spec, chosen, what) for what in ("labelled", "pseudo"))
    classes = _Epochs(np.array(sorted(real)), "classes", spec.seed)
    K, P, M = len(real), spec.classes, spec.clips
    cycle, turns = K // math.gcd(K, P), P // math.gcd(K, P)

    def at(row: int) -> tuple[int, int]:
        block, place = divmod(row, P * M)
        number, within = divmod(block, cycle)
        turn, draw = divmod(within * P + place // M, K)
        label, _ = classes(number * K + draw)
        before, clip = number * turns + turn, place % M  # how often the class was drawn before
        from_real = _labelled_rows(spec.label_share, M) if label in extra else M
        if clip < from_real:
            return real[label](before * from_real + clip)
        return extra[label](before * (M - from_real) + clip - from_real)

    return at


def _score(spec: Spec, chosen: pa.Table) -> At:
    return lambda row: divmod(row, spec.clips)


_ORDERS: dict[str, Callable[[Spec, pa.Table], At]] = {
    "gitdl": _pretrain,
    "tclr": _pretrain,
    "classify": _classify,
    "align": _align,
    "score": _score,
}


def _by_class(spec: Spec, chosen: pa.Table, what: str) -> dict[int, _Epochs]:
    start, stop = (0, spec.labelled) if what == "labelled" else (spec.labelled, len(chosen))
    label_N = chosen["label"].slice(start, stop - start).to_numpy()
    order = np.argsort(label_N, kind="stable")
    found, firsts = np.unique(label_N[order], return_index=True)
    groups = np.split(order + start, firsts[1:])
    return {
        int(label): _Epochs(members, f"{what}-{label}", spec.seed)
        for label, members in zip(found, groups, strict=False)
    }


def _joined(labelled: pa.Table, pseudo: pa.Table | None) -> pa.Table:
    return labelled if pseudo is None else pa.concat_tables([labelled, pseudo])


def _labelled_rows(share: float, rows: int) -> int:
    """How many of some rows are labelled: the share, rounded, but one at least unless it is 0."""
    return max(1, round(share * rows)) if share else 0


def _check(count: int, what: str) -> None:
    if not count:
        raise ManifestError(f"nothing to plan from: no {what} videos")
