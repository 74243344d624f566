"""Plans: randomness as data. One row per training sample, decided before any pixel is read.

A plan is a pure function of the videos, the recipe and a seed; no clock, worker count, environment or global
generator takes part. Rows form blocks of equal size; a block is one micro-batch, and `blocks_per_step` blocks
one optimiser step. Each row's seeds come from a hash of what the row is, so one video more changes no other row's
draws.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.data import sampling
from finepseudo.data.manifest import Video
from finepseudo.errors import ManifestError
from finepseudo.recipe import Align, Augment, Gitdl
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

SCHEMA = pa.schema(
    {"row": pa.int64(), "video": pa.int32(), "video_id": pa.string(), "path": pa.string(), "sha256": pa.string()}
    | {"num_frames": pa.int32(), "height": pa.int32(), "width": pa.int32(), "access": pa.string()}
    | {"start": pa.int32(), "file_frames": pa.int32()}
    | {"frames_0": pa.list_(pa.int32()), "frames_1": pa.list_(pa.int32())}
    | {"aug_seed": pa.int64(), "label": pa.int32(), "weight": pa.float32(), "target": pa.int32()}
)


def derive(*parts: object) -> int:
    """A 63-bit seed from its parts; the same in every process (`hash()` is not)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Plan:
    """The rows of one training or one pass, in order, and the soft targets that rows point at."""

    table: pa.Table
    block_rows: int
    targets_MK: np.ndarray | None = None
    """Soft targets of pseudo-labelled videos; column `target` is the row in it, null for the label itself."""

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def blocks(self) -> int:
        """Number of blocks, the last of which may be shorter in a pass over videos."""
        return -(-len(self) // self.block_rows)

    @cached_property
    def fingerprint(self) -> str:
        state = hashlib.sha256(repr(self.block_rows).encode())
        for column in self.table.columns:
            for value in column.to_pylist():
                state.update(repr(value).encode() + b";")
        if self.targets_MK is not None:
            state.update(self.targets_MK.tobytes())
        return state.hexdigest()[:12]

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        return self.table.slice(start, stop - start).to_pylist()

    def parts(self) -> dict[str, bytes]:
        found = {"plan.parquet": artefacts.table_bytes(self.table)}
        if self.targets_MK is not None:
            sink = io.BytesIO()
            np.save(sink, self.targets_MK, allow_pickle=False)
            found["targets.npy"] = sink.getvalue()
        return found

    def ensure(self, store: Store, folder: str) -> None:
        """Commit it; `load` reads it."""
        artefacts.ensure(store, folder, {"plan": self.fingerprint, "block_rows": self.block_rows}, self.parts)

    @staticmethod
    def load(store: Store, folder: str) -> Plan:
        table = artefacts.read_table(store, folder, "plan.parquet")
        marker = artefacts.committed(store, folder)
        assert marker is not None
        targets_MK = None
        if "targets.npy" in marker["parts"]:
            targets_MK = np.load(io.BytesIO(artefacts.read_part(store, folder, "targets.npy")), allow_pickle=False)
        return Plan(table, marker["lineage"]["block_rows"], targets_MK)


Sampler = Callable[[Video, np.random.Generator], tuple[sampling.Frames, "sampling.Frames | None"]]


@dataclass(frozen=True)
class Sample:
    """What a plan row is made of, before its frames are drawn."""

    video: Video
    label: int | None = None
    weight: float = 1.0
    target: int | None = None


def plan_gitdl(videos: Sequence[Video], gitdl: Gitdl, *, steps: int, blocks_per_step: int, seed: int) -> Plan:
    """Pre-training: epochs over all videos, two clips of each."""

    def sampler(video: Video, rng: np.random.Generator) -> tuple[sampling.Frames, sampling.Frames]:
        skips = {"skip_global": gitdl.skip_global, "skip_local": gitdl.skip_local}
        return sampling.global_local(video.num_frames, gitdl.frames, rng, **skips)

    stream = _epochs(videos, "gitdl", seed)
    samples = [Sample(next(stream)) for _ in range(steps * blocks_per_step * gitdl.videos)]
    return _plan(samples, gitdl.videos, sampler, seed)


def plan_classify(
    labelled: Sequence[Sample],
    pseudo: Sequence[Sample],
    *,
    frames: int,
    augment: Augment,
    steps: int,
    batch: int,
    label_share: float,
    blocks_per_step: int,
    seed: int,
    targets_MK: np.ndarray | None = None,
) -> Plan:
    """Cross-entropy training: `label_share` of every block are labelled videos, the others pseudo-labelled ones.

    Without pseudo-labelled videos all are labelled.
    """
    from_labelled = _labelled_rows(label_share, batch) if pseudo else batch
    real, extra = _epochs(labelled, "labelled", seed), _epochs(pseudo, "pseudo", seed)
    samples: list[Sample] = []
    for _ in range(steps * blocks_per_step):
        samples += [next(real) for _ in range(from_labelled)]
        samples += [next(extra) for _ in range(batch - from_labelled)]
    return _plan(samples, batch, _whole_action(frames, augment), seed, targets_MK)


def plan_align(
    labelled: Sequence[Sample],
    pseudo: Sequence[Sample],
    align: Align,
    *,
    frames: int,
    augment: Augment,
    steps: int,
    label_share: float,
    blocks_per_step: int,
    seed: int,
) -> Plan:
    """Metric learning: blocks of P classes x M clips; a class with fewer videos repeats them.

    `label_share` of the M clips of a class are labelled, as far as it has pseudo-labelled ones.
    Raises ManifestError where fewer than two classes have labelled videos.
    """
    real = _by_class(labelled, "labelled", seed)
    extra = _by_class(pseudo, "pseudo", seed)
    if len(real) < 2:
        raise ManifestError(f"alignment needs labelled videos of at least two classes, got {len(real)}")
    count = min(align.classes, len(real))
    classes = _epochs(sorted(real), "classes", seed)
    samples: list[Sample] = []
    for _ in range(steps * blocks_per_step):
        chosen: list[int] = []
        while len(chosen) < count:
            label = next(classes)
            if label not in chosen:
                chosen.append(label)
        for label in chosen:
            from_real = _labelled_rows(label_share, align.clips) if label in extra else align.clips
            samples += [next(real[label]) for _ in range(from_real)]
            samples += [next(extra[label]) for _ in range(align.clips - from_real)]
    return _plan(samples, count * align.clips, _whole_action(frames, augment), seed)


def plan_score(videos: Sequence[Video], *, align_frames: int, video_frames: int, clips: int, block_videos: int) -> Plan:
    """One inference pass: `clips` evenly phased views of each video, one after the other, no augmentation."""
    rows = []
    for video in videos:
        for view in range(clips):
            phase = (view + 0.5) / clips
            frames = [sampling.spread(video.num_frames, count, phase=phase) for count in (align_frames, video_frames)]
            rows.append(_row(len(rows), Sample(video), frames[0], frames[1], 0))
    return Plan(pa.Table.from_pylist(rows, schema=SCHEMA), block_videos * clips)


def _labelled_rows(share: float, rows: int) -> int:
    """How many of some rows are labelled: the share, rounded, but one at least unless it is 0."""
    return max(1, round(share * rows)) if share else 0


def _whole_action(frames: int, augment: Augment) -> Sampler:
    def sampler(video: Video, rng: np.random.Generator) -> tuple[sampling.Frames, None]:
        return sampling.spread_jittered(video.num_frames, frames, rng, ends=augment.ends, warp=augment.warp), None

    return sampler


def _plan(
    samples: Sequence[Sample], block_rows: int, sampler: Sampler, seed: int, targets_MK: np.ndarray | None = None
) -> Plan:
    rows: list[dict[str, Any]] = []
    uses: dict[str, int] = {}
    for number, sample in enumerate(samples):
        use = uses[sample.video.video_id] = uses.get(sample.video.video_id, -1) + 1
        rng = np.random.default_rng(derive("frames", seed, sample.video.video_id, use))
        aug_seed = derive("augment", seed, sample.video.video_id, use)
        rows.append(_row(number, sample, *sampler(sample.video, rng), aug_seed))
    return Plan(pa.Table.from_pylist(rows, schema=SCHEMA), block_rows, targets_MK)


def _row(
    number: int, sample: Sample, frames_0: sampling.Frames, frames_1: sampling.Frames | None, aug_seed: int
) -> dict[str, Any]:
    drawn = {"row": number, "frames_0": frames_0, "frames_1": frames_1, "aug_seed": aug_seed}
    return {**vars(sample.video), **vars(sample), **drawn, "video": sample.video.index}  # SCHEMA takes its columns


def _by_class(samples: Sequence[Sample], what: str, seed: int) -> Mapping[int, Iterator[Sample]]:
    members: dict[int, list[Sample]] = {}
    for sample in samples:
        assert sample.label is not None, f"{what} videos have labels"
        members.setdefault(sample.label, []).append(sample)
    return {label: _epochs(members[label], f"{what}-{label}", seed) for label in sorted(members)}


def _epochs(items: Sequence[Any], what: str, seed: int) -> Iterator[Any]:
    """The items again and again, each epoch in an order of its own."""
    if not items:
        raise ManifestError(f"nothing to plan from: no {what} videos")
    epoch = 0
    while True:
        order = np.random.default_rng(derive("order", what, seed, epoch)).permutation(len(items))
        for index in order:
            yield items[int(index)]
        epoch += 1
