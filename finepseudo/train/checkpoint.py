"""What a training leaves behind: its committed history, a checkpoint to resume from, a snapshot for readers.

Each rank writes the pieces that it holds, without gathering; the marker, written by rank 0 after all, makes them
visible. Any number of ranks reads them. The history is committed before the checkpoint that covers it, and cut back
to the checkpoint at resume, so the committed history holds every block of the plan exactly once: as ranges, since what
a block holds is the plan's business. Each commit carries the sums up to it, so that a resume reads the last one alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from finepseudo.errors import ArtefactError
from finepseudo.models import weights
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import plain
from finepseudo.storage.store import Store
from finepseudo.train.engine import MOMENTS, Engine
from finepseudo.train.session import Session

HALFWAY = "halfway"  # folder, beside that of the snapshot, of the weights after half of the steps
REJECTED = pa.schema(
    [("row", pa.int64()), ("step", pa.int64()), ("rank", pa.int32()), ("video_id", pa.string()), ("error", pa.string())]
)
"""Rows that could not be decoded."""


@dataclass(frozen=True)
class Taken:
    """What one rank did between two commits, or all ranks up to one."""

    rejected: int = 0  # rows that could not be decoded
    seconds: dict[str, float] = field(default_factory=dict[str, float])  # by kind, of the mean rank
    blocks: list[list[int]] = field(default_factory=list[list[int]])
    """`rank, first, stop, stride` of the plan's blocks that each rank took since the commit before."""


@dataclass(frozen=True)
class History:
    """All that the committed parts of a training say."""

    blocks: list[list[int]]  # rank, first, stop, stride
    rejected: list[dict[str, Any]]  # rows of REJECTED, in the order of the plan
    curve: list[dict[str, float]]  # by step
    seconds: dict[str, float]  # by kind


def committed_step(store: Store, folder: str) -> int:
    """Optimiser steps behind the newest committed checkpoint; 0 without one."""
    return max(_committed(store, f"{folder}/checkpoints"), default=0)


def save(
    engine: Engine,
    session: Session,
    store: Store,
    folder: str,
    *,
    lineage: Mapping[str, Any],
    since: int,
    blocks: Sequence[int],
    rejected: Sequence[Mapping[str, Any]],
    curve: Sequence[Mapping[str, float]],
    timing: Mapping[str, float],
) -> None:
    """Commit the history since step `since`, then the checkpoint of `engine.steps`; then prune the older one.

    Args:
        lineage: of the stage; the checkpoint's adds its step.
        since: step of the last commit.
        blocks: first, stop and stride of the plan's blocks that this rank took since then.
        rejected: its rows of them that could not be decoded, as REJECTED has them.
        curve: one dictionary a step, of this rank.
        timing: seconds by kind since then, of this rank.
    """
    step = engine.steps
    everyone = session.gather((list(blocks), list(rejected), list(curve), dict(timing)))
    parts = _history_parts(*zip(*everyone, strict=True), before=taken(store, folder)) if session.rank == 0 else {}
    _write_all_ranks(session, store, f"{folder}/history/{since:08d}-{step:08d}", parts, lineage)
    parts = {f"rank-{session.rank}.safetensors": _state_bytes(engine)}
    if session.rank == 0:
        parts["whole.safetensors"] = _whole_bytes(engine)
    _write_all_ranks(session, store, f"{folder}/checkpoints/{step:08d}", parts, {**lineage, "step": step})
    if session.rank == 0:
        for older in _committed(store, f"{folder}/checkpoints"):
            if older < step:
                store.delete(f"{folder}/checkpoints/{older:08d}")


def load(engine: Engine, session: Session, store: Store, folder: str, *, lineage: Mapping[str, Any]) -> int:
    """Restore the newest committed checkpoint into the engine and cut the history back to it; the step, 0 if none."""
    step = committed_step(store, folder)
    if session.rank == 0:
        for name in store.list(f"{folder}/history"):
            if last_step(name) > step:
                store.delete(f"{folder}/history/{name}")
    if step:
        target = f"{folder}/checkpoints/{step:08d}"
        marker = artefacts.required(store, target)
        artefacts.check_lineage(store, target, marker, {**lineage, "step": step})
        tensors, whole = _assemble(store, target)
        buffers = {name.partition(":")[2]: value for name, value in whole.items() if name.startswith("buffer:")}
        engine.restore(tensors, buffers, step)
    session.gather(step)  # nobody trains on before the history is cut back
    return step


def export_snapshot(
    store: Store,
    folder: str,
    *,
    lineage: Mapping[str, Any],
    beside: Mapping[str, bytes] = MappingProxyType({}),
    name: str = "snapshot",
) -> None:
    """From the last checkpoint to one file of weights for readers; needs no engine. Checkpoints go afterwards.

    Args:
        beside: other parts of the snapshot.
        name: HALFWAY for that of a training that goes on: its checkpoint stays.
    """
    step = committed_step(store, folder)
    tensors, whole = _assemble(store, f"{folder}/checkpoints/{step:08d}")
    shapes = json.loads(bytes(whole.pop("shapes").tolist()))
    state = {name.partition(":")[2]: value for name, value in whole.items()}
    state |= {name: parts["param"].view(shapes[name]) for name, parts in tensors.items()}
    state = {name: value for name, value in state.items() if not name.startswith("projection.")}
    data = weights.to_bytes(state, {"lineage": json.dumps(plain(lineage), sort_keys=True)})
    artefacts.commit(store, f"{folder}/{name}", {"weights.safetensors": data, **beside}, lineage)
    if name != HALFWAY:
        store.delete(f"{folder}/checkpoints")


def taken(store: Store, folder: str) -> Taken:
    """The sums up to the last committed part of the history."""
    for name in reversed(store.list(f"{folder}/history")):
        where = f"{folder}/history/{name}"
        if artefacts.committed(store, where) is not None:
            return taken_at(store, where)
    return Taken()


def taken_at(store: Store, part: str) -> Taken:
    """The sums up to the end of a committed part of the history, by its folder."""
    return Taken(**json.loads(artefacts.read_part(store, part, "taken.json")))


def curve_at(store: Store, part: str) -> list[dict[str, float]]:
    """The steps of a committed part of the history."""
    return artefacts.read_table(store, part, "curve.parquet").to_pylist()


def kept(store: Store, folder: str) -> list[str]:
    """Folders of the committed parts of the history that no resume will cut off, in the order of their steps."""
    names = store.list(f"{folder}/history")
    if artefacts.committed(store, f"{folder}/snapshot") is None:
        step = committed_step(store, folder)
        names = [name for name in names if last_step(name) <= step]
    return [f"{folder}/history/{name}" for name in names]


def last_step(part: str) -> int:
    """Of a part of the history, by its name or folder."""
    return int(part.rpartition("-")[2])


def read_history(store: Store, folder: str) -> History:
    """Every committed part, in their order."""
    blocks: list[list[int]] = []
    rejected: list[dict[str, Any]] = []
    curve: list[dict[str, float]] = []
    for name in store.list(f"{folder}/history"):
        where = f"{folder}/history/{name}"
        if artefacts.committed(store, where) is None:
            continue
        blocks += taken_at(store, where).blocks
        rejected += artefacts.read_table(store, where, "rejected.parquet").to_pylist()
        curve += curve_at(store, where)
    return History(blocks, sorted(rejected, key=lambda row: row["row"]), curve, taken(store, folder).seconds)


def _committed(store: Store, folder: str) -> list[int]:
    return [int(name) for name in store.list(folder) if store.exists(f"{folder}/{name}/{artefacts.MARKER}")]


def _write_all_ranks(
    session: Session, store: Store, folder: str, parts: Mapping[str, bytes], lineage: Mapping[str, Any]
) -> None:
    """Every rank writes its parts; rank 0 the marker."""
    for name, data in parts.items():
        store.write(f"{folder}/{name}", data)
    everyone = session.gather({name: artefacts.part_record(data) for name, data in parts.items()})
    if session.rank == 0:
        artefacts.seal(store, folder, {name: item for records in everyone for name, item in records.items()}, lineage)
    session.gather(None)  # no rank goes on, or away, before the commit


def _history_parts(
    blocks: Sequence[Any], rejected: Sequence[Any], curves: Sequence[Any], timings: Sequence[Any], *, before: Taken
) -> dict[str, bytes]:
    """From what each rank has. The curve is the mean over ranks; seconds are those of the mean rank too."""
    merged = [
        {key: sum(point[key] for point in points) / len(points) for key in points[0]}
        for points in zip(*curves, strict=True)
    ]
    seconds = {key: sum(timing[key] for timing in timings) / len(timings) for key in timings[0]}
    rows = [row for of_rank in rejected for row in of_rank]
    sums = Taken(
        rejected=before.rejected + len(rows),
        seconds={key: before.seconds.get(key, 0.0) + value for key, value in seconds.items()},
        blocks=[[rank, *of_rank] for rank, of_rank in enumerate(blocks)],
    )
    return {
        "curve.parquet": artefacts.table_bytes(pa.Table.from_pylist(merged)),
        "rejected.parquet": artefacts.table_bytes(pa.Table.from_pylist(rows, schema=REJECTED)),
        "taken.json": json.dumps(vars(sums)).encode(),
    }


def _state_bytes(engine: Engine) -> bytes:
    """This rank's pieces. ZeRO-0 ranks hold the same, so only rank 0 writes there; names carry the position."""
    tensors = {
        f"{key}:{piece.start}:{piece.name}": view.contiguous().cpu().clone()
        for piece in engine.pieces()
        if engine.writes(piece)
        for key, view in {"param": piece.master, **piece.moments}.items()
    }
    return safetensors.torch.save(tensors)


def _whole_bytes(engine: Engine) -> bytes:
    """What every rank holds whole: buffers, frozen parameters, and the shapes of the trained ones."""
    tensors = {f"buffer:{name}": buffer for name, buffer in engine.module.named_buffers()}
    tensors |= {f"frozen:{name}": value for name, value in engine.frozen.items()}
    shapes = json.dumps({name: engine.shape(p) for name, p in engine.module.named_parameters() if p.requires_grad})
    tensors["shapes"] = torch.tensor(list(shapes.encode()), dtype=torch.uint8)
    return safetensors.torch.save({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()})


def _assemble(store: Store, folder: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Whole parameters and moments, flattened, from all ranks' pieces; and what rank 0 wrote beside them."""
    marker = artefacts.required(store, folder)
    whole = safetensors.torch.load(artefacts.read_part(store, folder, "whole.safetensors"))
    shapes = json.loads(bytes(whole["shapes"].tolist()))
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    # NaN marks what no rank wrote: it must all be overwritten.
    tensors = {name: {key: torch.full((n,), torch.nan) for key in ("param", *MOMENTS)} for name, n in sizes.items()}
    for part in marker["parts"]:
        if not part.startswith("rank-"):
            continue
        for key, piece in safetensors.torch.load(artefacts.read_part(store, folder, part)).items():
            kind, start, name = key.split(":", 2)
            tensors[name][kind][int(start) : int(start) + piece.numel()] = piece
    missing = [name for name, kinds in tensors.items() if any(bool(t.isnan().any()) for t in kinds.values())]
    if missing:
        names = f"{', '.join(missing[:5])} ({len(missing)} in all)"
        raise ArtefactError(f"{store.uri(folder)}: pieces are missing of {names}")
    return tensors, whole
