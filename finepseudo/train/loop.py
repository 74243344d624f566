"""One loop for all stages: a block in, a loss out, an update when a step is full, a commit now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from finepseudo.data.batch import ClipBatch, make_batch, too_many_rejected
from finepseudo.data.plan import Plan, derive
from finepseudo.errors import StreamError, TrainingError
from finepseudo.models.encoders import recompute
from finepseudo.progress import EVERY_S, Pace
from finepseudo.recipe import Scale
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train import checkpoint
from finepseudo.train.engine import Engine
from finepseudo.train.initial import carried
from finepseudo.train.session import Session
from finepseudo.train.stage import Stage, build_objective

Stream = Callable[[int, int], Iterable[Mapping[str, Any]]]
"""(first step, step to stop before) -> this rank's blocks, as decoded columns."""


def run_stage(stage: Stage, scale: Scale, store: Store, session: Session, stream: Stream, *, stop: int) -> None:
    """Train from the committed step to step `stop`, committing every `scale.checkpoint_every` steps; last the snapshot.

    A step is committed as well where the session is asked for it.

    Raises:
        TrainingError: a loss or gradient is not finite (step and videos are named; nothing of that step is kept), or
            too many rows could not be decoded; on all ranks together.
        StreamError: the stream does not give the plan's rows; a restart from the last commit may.
    """
    began = time.monotonic()
    plan = Plan.load(store, stage.plan)
    lineage = stage.lineage()
    done = artefacts.committed(store, f"{stage.folder}/snapshot")
    if done is not None:
        artefacts.check_lineage(store, f"{stage.folder}/snapshot", done, lineage)
        return  # restarted after its end: the checkpoints are gone, and must not be missed
    with ThreadPoolExecutor(max_workers=1) as ahead:
        # The stream starts its actors while the engine is built.
        start = checkpoint.committed_step(store, stage.folder)
        blocks = iter(stream(start, stop)) if start < stop else iter(())
        first = ahead.submit(next, blocks, None)
        objective = build_objective(stage)
        if stage.encoder.part in scale.recompute:
            recompute(objective.encoder)
        engine = Engine(
            objective,
            session,
            stage.optimiser,
            steps=stage.steps,
            lr=stage.lr,
            layer_decay=stage.layer_decay,
            block_rows=plan.block_rows,
            zero_stage=scale.zero_stage,
        )
        checkpoint.load(engine, session, store, stage.folder, lineage=lineage)
        recorder = _Recorder(session, plan, stage, engine.steps)
        before = checkpoint.taken(store, stage.folder) if session.rank == 0 else checkpoint.Taken()
        recorder.rejected = session.gather(before.rejected)[0]
        recorder.timing["setup"] = time.monotonic() - began
        with recorder.clock("wait"):
            columns = first.result()
    while engine.steps < stop:
        if columns is None:
            raise StreamError(f"{stage.folder}: the stream ended at step {engine.steps}, expected {stop}")
        with recorder.clock("transfer"):
            batch = make_batch(plan, stage.num_classes, columns).to(session.device)
        recorder.check(batch)
        with recorder.clock("compute"):
            updated = _train_block(engine, session, batch, stage.seed, recorder)
        due = engine.steps % scale.checkpoint_every == 0 or engine.steps == stop
        if updated and (due or recorder.asked > recorder.answered):
            recorder.commit(engine, store, stage.folder, lineage)
        if engine.steps < stop:
            with recorder.clock("wait"):
                columns = next(blocks, None)
    if engine.steps == stage.steps and session.rank == 0:
        checkpoint.export_snapshot(store, stage.folder, lineage=lineage, beside=carried(stage.init))
    session.gather(None)


def _train_block(engine: Engine, session: Session, batch: ClipBatch, seed: int, recorder: _Recorder) -> bool:
    """Forward, check, backward; True if the block completed a step."""
    # Dropout's draws belong to the block, not to the worker that happens to compute it.
    torch.manual_seed(derive("dropout", seed, batch.row_B[0]))
    loss, logged = engine.forward(batch)
    value, fault = float(loss.detach()), None
    if not math.isfinite(value):
        fault = (
            f"loss not finite ({value:g}) at step {engine.steps + 1}, before its update; rows "
            f"{batch.row_B[0]}..{batch.row_B[-1]}, videos {', '.join(batch.video_ids)}; last committed step: "
            f"{recorder.since}"
        )
    # All ranks stop, or commit, together: one that did so alone would leave the others waiting for it.
    faults, rejected, asked = session.totals(fault is not None, len(batch.errors), session.asked())
    recorder.asked = int(asked)
    recorder.rejected += int(rejected)
    if faults or recorder.too_many_rejected():
        texts = session.gather(fault or recorder.describe(batch))
        raise TrainingError(next(text for text in texts if text))
    recorder.note(engine, batch, {"loss": value, **{name: float(term) for name, term in logged.items()}})
    return engine.step(loss)


class _Recorder:
    """Checks rows against the plan, and gathers history, curve and seconds until the next commit."""

    def __init__(self, session: Session, plan: Plan, stage: Stage, start: int) -> None:
        self.session, self.plan, self.name = session, plan, stage.name
        self.since = start
        self.max_rejected = stage.max_rejected
        self.block = self.first = start * stage.optimiser.blocks_per_step + session.rank
        self.rejected = 0
        """Rows of this stage that no rank could decode, from its first step on."""
        self.pace, self.reported = Pace(stage.steps), 0.0
        self.asked = self.answered = 0  # how often a commit was asked for, and of that how often before the last one
        self._reset()

    @contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        """Adds the seconds of a `with` block to a kind."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.timing[kind] = self.timing.get(kind, 0.0) + time.monotonic() - began

    def check(self, batch: ClipBatch) -> None:
        """This must be the block that the plan has here."""
        expected = self.block * self.plan.block_rows
        if batch.row_B[0] != expected or len(batch.row_B) != self.plan.block_rows:
            raise StreamError(
                f"{self.name}: rank {self.session.rank} expected rows {expected}..{expected + self.plan.block_rows - 1}"
                f", got {batch.row_B[0]}..{batch.row_B[-1]}; the stage restarts from its last commit"
            )
        self.block += self.session.world

    def too_many_rejected(self) -> bool:
        return too_many_rejected(self.rejected, len(self.plan), self.max_rejected)

    def describe(self, batch: ClipBatch) -> str:
        """What to say of it, with examples; nothing on a rank that decoded all of this block."""
        examples = "; ".join(f"row {row}: {text}" for row, text in list(batch.errors.items())[:3])
        if not (examples and self.too_many_rejected()):
            return ""
        return (
            f"{self.name}: {self.rejected} of the plan's {len(self.plan)} rows could not be decoded, more than "
            f"data.max_rejected = {self.max_rejected:g}; {examples}"
        )

    def note(self, engine: Engine, batch: ClipBatch, logged: dict[str, float]) -> None:
        step = engine.steps + 1
        for row, error in batch.errors.items():
            video_id = batch.video_ids[row - batch.row_B[0]]
            found = {"row": row, "step": step, "rank": self.session.rank, "video_id": video_id, "error": error}
            self.errors.append(found)
        for kind, more in (("decode", batch.decode_s), ("cache_hits", batch.cache_hits), ("rows", len(batch.row_B))):
            self.timing[kind] = self.timing.get(kind, 0.0) + more
        point = {"step": float(step), **logged}
        if self.curve and self.curve[-1]["step"] == step:
            self.blocks_here += 1
            before = self.curve[-1]
            self.curve[-1] = {key: before[key] + (point[key] - before[key]) / self.blocks_here for key in before}
        else:
            self.blocks_here = 1
            self.curve.append(point)
        if self.session.rank == 0 and self.blocks_here == engine.blocks:
            self._report(step)

    def _report(self, step: int) -> None:
        """Tell the driver how far the stage is, now and then."""
        left_s, total = self.pace.left_s(step), self.pace.total
        if left_s is not None and (time.monotonic() - self.reported > EVERY_S or step == total):
            self.reported = time.monotonic()
            state = {"name": self.name, "done": step, "total": total, "left_s": left_s}
            self.session.report({**state, "loss": self.curve[-1]["loss"]})

    def commit(self, engine: Engine, store: Store, folder: str, lineage: Mapping[str, Any]) -> None:
        """Write down what was gathered, and start anew. The seconds of a commit are written with the next one."""
        began = time.monotonic()
        for kind in ("setup", "wait", "transfer", "compute", "commit"):
            self.timing.setdefault(kind, 0.0)
        checkpoint.save(
            engine, self.session, store, folder, lineage=lineage, since=self.since,
            blocks=(self.first, self.block, self.session.world), rejected=self.errors, curve=self.curve,
            timing=self.timing,
        )  # fmt: skip
        self.since, self.first = engine.steps, self.block
        self.answered = self.asked
        self._reset()
        self.timing["commit"] = time.monotonic() - began

    def _reset(self) -> None:
        self.errors: list[dict[str, Any]] = []
        self.curve: list[dict[str, float]] = []
        self.timing: dict[str, float] = {}
        self.blocks_here = 0
