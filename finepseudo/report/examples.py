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
from finepseudo.report.look import Look
from finepseudo.results import Results
from finepseudo.run import Run
from finepseudo.storage import tables

SHOWN, EACH = 8, 4
"""Frames shown of a clip; examples of a kind."""


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
    frames_THWC: np.ndarray
    aligned_THWC: np.ndarray  # the neighbour's frames that the hard path aligns with those shown


def choose_examples(run: Run, results: Results) -> list[Example]:
    """The surest right, the surest wrong and the least sure labels of the first method that makes any."""
    makers = [method for method in reversed(METHODS) if METHODS[method].labels]
    rounds = next((results.rounds[method] for method in makers if results.rounds.get(method)), [])
    if not rounds:
        return []
    manifest, names = run.manifest(), run.class_names()
    table = run.labels(rounds[-1].name)
    truth_N = manifest.truth(table["clip"].to_numpy())
    labels, look = run.labelled(), Look(run)
    examples: list[Example] = []
    for kind, places in _chosen(table, truth_N).items():
        for place, row in zip(places, tables.rows_at(table, places), strict=True):
            try:
                emb_1TD, frames_THWC = look.embed(row["clip"]), look.shown(row["clip"])
                near, distance = look.nearest(emb_1TD)
                aligned_THWC = look.shown(near)[look.path(emb_1TD, near)]
            except DecodeError:  # it was counted and logged where it mattered
                continue
            truth, (neighbour,) = truth_N[place], manifest.ids(np.array([near]))
            shown = np.linspace(0, len(frames_THWC) - 1, SHOWN).round().astype(int)
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
                    frames_THWC=frames_THWC[shown],
                    aligned_THWC=aligned_THWC[shown],
                )
            )
    return examples


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
