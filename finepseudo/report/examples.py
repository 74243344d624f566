"""Pseudo-labels to look at: some accepted and rejected videos, each beside the gallery clip that it aligns with best.

Axes: N videos, T frames, H W pixels, C channels, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from finepseudo.data.manifest import UNKNOWN
from finepseudo.errors import DecodeError
from finepseudo.recipe import METHODS
from finepseudo.report.look import Look, strip
from finepseudo.results import Results
from finepseudo.run import Run
from finepseudo.storage import tables

EACH = 6  # examples of a kind
ROOM = 20_000_000  # characters that all strips may take on the page


@dataclass(frozen=True)
class Example:
    """One unlabelled video, its label, and its nearest labelled clip."""

    kind: str
    video_id: str
    truth: str
    label: str
    confidence: float
    label_A: str
    label_E: str
    neighbour_id: str
    neighbour: str
    distance: float
    seconds: float  # of the video; 0 where it has no rate
    strip: str  # its T frames, as `look.strip` has them
    neighbour_strip: str
    path: list[int]  # of each of its frames, the neighbour's that the hard path aligns with it


def choose_examples(run: Run, results: Results) -> list[Example]:
    """The surest right, the surest wrong and the least sure labels of the first method that makes any.

    As many as a page has room for: of each kind the first, then of each the second, and so on.
    """
    makers = [method for method in reversed(METHODS) if METHODS[method].labels]
    rounds = next((results.rounds[method] for method in makers if results.rounds.get(method)), [])
    if not rounds:
        return []
    manifest, names = run.manifest(), run.class_names()
    table = run.labels(rounds[-1].name)
    truth_N = manifest.truth(table["clip"].to_numpy())
    labels, look = run.labelled(), Look(run)
    examples, room = list[Example](), ROOM
    for kind, place in _in_turn(_chosen(table, truth_N)):
        (row,) = tables.rows_at(table, np.array([place]))
        try:
            emb_1TD, frames_THWC = look.embed(row["clip"]), look.shown(row["clip"])
            near, distance = look.nearest(emb_1TD)
            strips = strip(frames_THWC), strip(look.shown(near))
        except DecodeError:  # it was counted and logged where it mattered
            continue
        room -= sum(map(len, strips))
        if room < 0:
            break
        truth, (neighbour,) = truth_N[place], manifest.ids(np.array([near]))
        (clip,) = tables.rows_at(manifest.clips.select(["num_frames", "fps"]), np.array([row["clip"]]))
        examples.append(
            Example(
                kind=kind,
                video_id=row["video_id"],
                truth=names[truth] if truth != UNKNOWN else "not known",
                label=names[row["label"]],
                confidence=row["confidence"],
                label_A=names[row["label_A"]],
                label_E=names[row["label_E"]],
                neighbour_id=neighbour,
                neighbour=names[labels[neighbour]],
                distance=distance,
                seconds=clip["num_frames"] / clip["fps"] if clip["fps"] else 0.0,
                strip=strips[0],
                neighbour_strip=strips[1],
                path=look.path(emb_1TD, near).tolist(),
            )
        )
    return examples


def _in_turn(chosen: dict[str, np.ndarray]) -> list[tuple[str, int]]:
    """Kinds and places: the first of each kind, then the second of each."""
    return [(kind, int(places[rank])) for rank in range(EACH) for kind, places in chosen.items() if rank < len(places)]


def _chosen(table: pa.Table, truth_N: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the labels to show, by kind."""
    accepted_N, label_N, confidence_N = (table[name].to_numpy() for name in ("accepted", "label", "confidence"))
    order = np.lexsort((table["clip"].to_numpy(), -confidence_N))
    known_N, right_N = truth_N != UNKNOWN, truth_N == label_N
    kinds = {
        "accepted, right": order[(accepted_N & right_N)[order]],
        "accepted, wrong": order[(accepted_N & known_N & ~right_N)[order]],
        "accepted, truth not known": order[(accepted_N & ~known_N)[order]],
        "rejected": order[::-1][~accepted_N[order[::-1]]],
    }
    return {kind: found[:EACH] for kind, found in kinds.items()}
