"""What a run says of its unlabelled clips: a row each, some at a time, from the committed labels of one method.

Axes: N clips of a window, R rounds, M nearest gallery clips.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.errors import ArtefactError, RecipeError
from finepseudo.recipe import METHODS
from finepseudo.run import NEAR, RESULTS, Run, labels, made_before, pass_left_out, round_number
from finepseudo.storage import tables
from finepseudo.storage.tables import pc

log = logging.getLogger("finepseudo")

WINDOW = 4096  # rows that are held at a time
UNDECODED = "could not be decoded when this round was labelled"

_TOP: dict[str, pa.DataType] = {"label": pa.string(), "p": pa.float32()}
_NEAR: dict[str, pa.DataType] = {"video_id": pa.string(), "label": pa.string(), "alignability": pa.float32()}
_ROUND: dict[str, pa.DataType] = {"round": pa.int32(), "label": pa.string(), "confidence": pa.float32()}
_ROUND |= {"accepted": pa.bool_()}
OUTCOME = pa.schema(
    {"video_id": pa.string(), "file": pa.string()}
    | {"start_s": pa.float64(), "end_s": pa.float64(), "first_frame": pa.int32(), "num_frames": pa.int32()}
    | {"label": pa.string(), "confidence": pa.float32(), "accepted": pa.bool_()}
    | {"label_E": pa.string(), "confidence_E": pa.float32(), "label_A": pa.string(), "confidence_A": pa.float32()}
    | {"known": pa.bool_(), "knownness": pa.float32()}
    | {name: pa.list_(pa.struct([*of.items()])) for name, of in (("top", _TOP), ("near", _NEAR), ("rounds", _ROUND))}
    | {"reason": pa.string()}
)
"""A row of what is taken home.

file: below data.root. start_s, end_s, first_frame: of a part of a file, null for a whole one; seconds by the file's
mean rate, null where it has none. num_frames: of the clip.
label, confidence: argmax and maximum of p; label_E and label_A: of p_E and p_A. top: the likeliest classes by p.
known: whether the known-ness is at least the bound that was used; null where all classes are known.
near: the gallery clips that align best, best first. rounds: every committed round of the method that labelled the clip.
reason: why there is no label; null where there is one.
"""


class Outcome:
    """The labels of one method, by its last committed round."""

    schema = OUTCOME

    def __init__(self, run: Run, method: str | None = None) -> None:
        """Args are the run, and a method that has labelled; None: the one that the run stands by.

        Raises:
            ArtefactError: nothing is labelled yet, or by an older version, which kept less of a label.
            RecipeError: the method has not labelled.
        """
        self.run, self.data = run, run.data()
        self.method, self.rounds = _chosen(run, method)
        self.last = self.rounds[-1]
        self.manifest = run.manifest()
        self.classes, self._labelled = run.class_names(), run.labelled()
        self._names: Any = pa.array(self.classes, pa.string())
        self._bound = run.known_from(self.last)
        self._tables = [run.labels(name) for name in self.rounds]
        if "near" not in self._tables[-1].column_names:
            raise made_before(run.store, self.last, NEAR)
        self._clips = [table["clip"].to_numpy() for table in self._tables]  # ascending, as D_u is
        self._left_out = pass_left_out(run.store, labels(self.last))
        self._seen = run.seen()[0].clips  # it has the reasons of the videos' manifest, and of what came later
        refused = pc.and_(pc.equal(self._seen["split"], "train"), pc.not_equal(self._seen["status"], "ok"))
        self.clip_N = np.union1d(run.asked(), np.flatnonzero(refused.to_numpy()))
        """D_u, and the training clips that were rejected before it was drawn, by their rows of the manifest."""

    @property
    def labelled(self) -> int:
        """How many clips have a label."""
        return len(self._tables[-1])

    def batches(self) -> Iterator[pa.Table]:
        """Tables of OUTCOME, in the order of the manifest."""
        for at in range(0, len(self.clip_N), WINDOW):
            yield self._rows(self.clip_N[at : at + WINDOW])

    def labels(self) -> Iterator[pa.Table]:
        """The same without the clips that have no label; none of the tables is empty."""
        for batch in self.batches():
            if len(some := batch.filter(pc.is_valid(batch["label"]))):
                yield some

    def _rows(self, clip_N: np.ndarray) -> pa.Table:
        row_N = rows_of(self._clips[-1], clip_N)
        there = row_N >= 0
        made = tables.take(self._tables[-1], row_N[there])
        found = {name: _spread(made[name], there) for name in made.column_names}
        known = pc.greater_equal(found["knownness"], np.float32(self._bound or 0))
        columns = {
            **self._clip(clip_N),
            **{name: found[name] for name in ("confidence", "accepted", "confidence_E", "confidence_A", "knownness")},
            **{name: self._names.take(found[name]) for name in ("label", "label_E", "label_A")},
            "known": pa.nulls(len(clip_N), pa.bool_()) if self._bound is None else known,
            "top": _lists(found["top"], {"label": self._names.take(found["top"].flatten()), "p": found["top_p"]}),
            "near": _lists(found["near"], {**self._members(found["near"]), "alignability": found["near_S"]}),
            "rounds": self._history(clip_N),
            "reason": self._reasons(clip_N, there),
        }
        return pa.table([columns[item.name].cast(item.type) for item in OUTCOME], schema=OUTCOME)

    def _clip(self, clip_N: np.ndarray) -> dict[str, Any]:
        """Which file, and which part of it."""
        names = ["video_id", "path", "start", "num_frames", "file_frames", "fps"]
        clips = tables.take(self.manifest.clips.select(names), clip_N).combine_chunks()
        first, count = clips["start"], clips["num_frames"]
        part = pc.and_(pc.or_(pc.greater(first, 0), pc.less(count, clips["file_frames"])), pc.is_valid(first))
        rate = pc.if_else(pc.greater(clips["fps"], 0), clips["fps"], None)
        spans = {
            "start_s": pc.divide(pc.cast(first, pa.float64()), rate),
            "end_s": pc.divide(pc.cast(pc.add(first, count), pa.float64()), rate),
            "first_frame": first,
        }
        kept = {name: pc.if_else(pc.fill_null(part, fill_value=False), span, None) for name, span in spans.items()}
        return {"video_id": clips["video_id"], "file": clips["path"], "num_frames": count, **kept}

    def _members(self, near: Any) -> dict[str, Any]:
        """Ids and classes of gallery clips."""
        member_M, place = np.unique(near.flatten().to_numpy(), return_inverse=True)
        ids = self.manifest.ids(member_M)
        label_M = np.array([self._labelled[video_id] for video_id in ids], int)
        column: Any = pa.array(ids, pa.string())
        return {"video_id": column.take(place), "label": self._names.take(label_M[place])}

    def _history(self, clip_N: np.ndarray) -> Any:
        shape = len(clip_N), len(self.rounds)
        there_NR = np.zeros(shape, bool)
        values = {"label": np.zeros(shape, int), "confidence": np.zeros(shape, np.float32)}
        values["accepted"] = np.zeros(shape, bool)
        for number, (table, theirs) in enumerate(zip(self._tables, self._clips, strict=True)):
            row_N = rows_of(theirs, clip_N)
            there_NR[:, number] = row_N >= 0
            made = tables.take(table.select(list(values)), row_N[row_N >= 0])
            for name, value_NR in values.items():
                value_NR[row_N >= 0, number] = made[name].to_numpy()
        flat = {name: pa.array(value_NR[there_NR]) for name, value_NR in values.items()}
        round_NR = np.broadcast_to([round_number(name) for name in self.rounds], shape)
        flat = {"round": pa.array(round_NR[there_NR]), **flat, "label": self._names.take(flat["label"])}
        ends = np.concatenate([[0], np.cumsum(there_NR.sum(1))])
        struct = pa.StructArray.from_arrays(list(flat.values()), names=list(flat))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), struct)

    def _reasons(self, clip_N: np.ndarray, there: np.ndarray) -> Any:
        seen = tables.take(self._seen.select(["reason"]), clip_N)["reason"].combine_chunks()
        later = [undecoded(self._left_out.get(clip)) for clip in clip_N.tolist()]
        said = pc.if_else(pc.equal(seen, ""), pa.array(later, pa.string()), seen)
        return pc.if_else(pa.array(there), None, said)


def undecoded(reason: str | None) -> str:
    """What is said of a clip that a round did not label; labels of an older version lack the reason."""
    return f"{UNDECODED}: {reason}" if reason else UNDECODED


def rows_of(clip_T: np.ndarray, clip_N: np.ndarray) -> np.ndarray:
    """Rows of a table of labels, by the clips that its rows are of, ascending; -1 where it has none of a clip."""
    if not len(clip_T):
        return np.full(len(clip_N), -1)
    place_N = np.minimum(np.searchsorted(clip_T, clip_N), len(clip_T) - 1)
    return np.where(clip_T[place_N] == clip_N, place_N, -1)


def _chosen(run: Run, method: str | None) -> tuple[str, list[str]]:
    """The method and its rounds."""
    found = run.rounds_by_method()
    where = run.store.uri()
    if not found:
        able = ", ".join(name for name, traits in METHODS.items() if traits.labels)
        raise ArtefactError(f"{where} has no labels yet; jobs/run.py makes them, by a method of {able}")
    if method is not None and method not in found:
        raise RecipeError(f"no labels of method {method!r} in {where}, only of {', '.join(found)}; choose by --method")
    finished = run.store.exists(RESULTS)
    stands_by = run.results().prediction.partition("/")[0] if finished else ""
    chosen = method or (stands_by if stands_by in found else run.last_round().partition("/")[0])
    if not finished:
        done, of = len(found[chosen]), run.recipe().rounds.count
        log.warning("%s is not finished: these are the labels of round %d of %d", where, done, of)
    return chosen, found[chosen]


def _spread(column: pa.ChunkedArray, there: np.ndarray) -> Any:
    """Values of the rows that are there, in their places; null in the others."""
    index: Any = pa.array(np.where(there, np.cumsum(there) - 1, 0), mask=~there)
    return column.combine_chunks().take(index)


def _lists(like: Any, fields: dict[str, Any]) -> Any:
    """Lists of structs, as long as those of `like`; fields are flat, or lists of these lengths."""
    lengths = like.value_lengths().fill_null(0).to_numpy()
    flat = [column.flatten() if pa.types.is_list(column.type) else column for column in fields.values()]
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    struct = pa.StructArray.from_arrays(flat, names=list(fields))
    return pa.ListArray.from_arrays(ends, struct, mask=like.is_null())
