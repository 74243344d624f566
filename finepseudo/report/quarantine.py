"""What a run left out: clips that probing rejected, rows that trainings and passes could not decode, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finepseudo.report.times import passes
from finepseudo.results import Results
from finepseudo.run import LEFT_OUT, Run, pass_left_out, training
from finepseudo.storage import artefacts, tables
from finepseudo.storage.tables import pc
from finepseudo.train import checkpoint

SHOWN = 20  # of each list; the whole one lies in the run directory


def rejected(run: Run) -> dict[str, Any]:
    """The first clips that no plan has, their number, and where the table of all lies."""
    seen = run.seen()[0]
    row_N = np.flatnonzero(pc.invert(seen.usable).to_numpy())
    first = tables.rows_at(run.manifest().clips.select(["video_id", "path"]), row_N[:SHOWN])
    reasons = pc.take(seen.clips["reason"], row_N[:SHOWN]).to_pylist()
    rows = [
        {"clip": row["video_id"], "file": row["path"], "reason": reason}
        for row, reason in zip(first, reasons, strict=True)
    ]
    return {"count": len(row_N), "rows": rows, "where": run.store.uri(f"{seen.folder}/clips.parquet")}


def left_out(run: Run, results: Results) -> list[dict[str, Any]]:
    """One row a training or pass that could not decode all: how much, the first of it, and where the rest lies."""
    rows: list[dict[str, Any]] = []
    for store, folder in run.trainings():
        if count := checkpoint.taken(store, folder).rejected:
            found = ((part, _rows(store, part)) for part in checkpoint.kept(store, folder))
            part, first = next((part, some) for part, some in found if len(some))
            reasons = dict(zip(first["video_id"].to_pylist(), first["error"].to_pylist(), strict=True))
            said = _first(reasons)
            where = store.uri(f"{part.rpartition('/')[0]}/*/rejected.parquet")
            rows.append(_row(folder.removeprefix(training("")), f"{count} rows of its plan", said, where))
    for folder, seconds in passes(results).items():
        if count := int(seconds.get("rejected", 0)):
            reasons = pass_left_out(run.store, folder)
            said = (
                _first(dict(zip(run.manifest().ids(np.array([*reasons], int)), reasons.values(), strict=True))) or "-"
            )
            where = run.store.uri(f"{folder}/{LEFT_OUT}") if reasons else "the log"
            rows.append(_row(folder, f"{count} of {seconds['clips']:.0f} clips", said, where))
    return rows


def _row(what: str, count: str, first: str, where: str) -> dict[str, Any]:
    return {"training or pass": what, "left out": count, "first": first, "whole list": where}


def _first(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{clip}: {why}" for clip, why in list(reasons.items())[:SHOWN])


def _rows(store: Any, part: str) -> Any:
    return artefacts.read_table(store, part, "rejected.parquet").slice(0, SHOWN)
