"""Which clips to label next: those of D_u whose answers would change most, in order, with what is known of each.

Axes: N unlabelled videos, M nearest gallery clips of each, G gallery, Q clips of the queue.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finepseudo.data.manifest import Manifest
from finepseudo.data.plan import derive
from finepseudo.recipe import digest
from finepseudo.run import NEAR, Run, made_before
from finepseudo.storage import tables
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.tables import pc

By = Literal["influence", "uncertainty", "random"]
Floats = NDArray[np.float64]
PARTS = ("uncertainty", "disagreement", "novelty", "doubt", "reach", "balance")
"""What an influence is made of."""


@dataclass(frozen=True)
class Pick:
    """A clip of the queue: its row of the labels, its score when it was chosen, and what that was made of."""

    row: int
    score: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Queue:
    """Clips to label, the first one first."""

    recipe: str  # name
    digest: str  # of recipe, labels, ranking and clips: answers repeat it
    lineage: dict[str, Any]
    by: str
    class_names: tuple[str, ...]
    clips: tuple[dict[str, Any], ...]

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def influence(table: pa.Table, count: int) -> list[Pick]:
    """The clips of which a label would change most, one after the other.                                      [C]

        u_i = 1 - confidence of p                   d_i = [y_A != y_E] min(confidence of p_A, of p_E)
        n_i = max(0, 2 k_i - 1),  k_i: share of D_u that is more known than i (knownness)
        h_i = (u_i + d_i + n_i) / 3                 doubt: how likely an answer is news
        w_ij = <s_i, s_j> / |s_i| |s_j|             s_i in R^G: S(i, a) at the M nearest gallery clips a of i, else 0
        R_i = sum_j w_ij r_j h_j                    reach: the doubt of all that would align with i in the gallery
        score_i = h_i R_i / sqrt(1 + q_i)           q_i: chosen so far of those that p calls as it calls i

    The largest score is chosen; of what aligns with it half is then explained, r_j <- (1 - w_ij / 2) r_j from r = 1 on,
    and the next one is looked for. So a crowd of doubtful clips with the same neighbours, such as those of a class that
    nobody has labelled, is found by one of them, which takes half of their weight away. R is computed through the
    gallery, R_i = <s_i / |s_i|, sum_j r_j h_j s_j / |s_j|>: N M numbers, not N x N. Of equal scores the smaller row.

    Args:
        table: labels of a round (train.pseudo_labels.label_table), N rows.
    """
    confidence_N, label_N = _floats(table, "confidence"), table["label"].to_numpy()
    sure_N = np.minimum(_floats(table, "confidence_A"), _floats(table, "confidence_E"))
    differ_N = table["label_A"].to_numpy() != table["label_E"].to_numpy()
    uncertain_N, disagree_N, novel_N = 1 - confidence_N, differ_N * sure_N, _novelty(_floats(table, "knownness"))
    doubt_N = (uncertain_N + disagree_N + novel_N) / 3
    near_NM, unit_NM = _profiles(table)
    left_N, chosen_N = np.ones(len(table)), np.zeros(len(table), bool)
    taken_K = np.zeros(int(label_N.max(initial=-1)) + 1)
    picks: list[Pick] = []
    for _ in range(min(count, len(table))):
        weight_NM = unit_NM * (left_N * doubt_N)[:, None]
        field_G = np.bincount(near_NM.ravel(), weights=weight_NM.ravel())
        reach_N, balance_N = (unit_NM * field_G[near_NM]).sum(1), 1 / np.sqrt(1 + taken_K[label_N])
        score_N = np.where(chosen_N, -1.0, doubt_N * reach_N * balance_N)
        row = int(score_N.argmax())
        of_row = (uncertain_N, disagree_N, novel_N, doubt_N, reach_N, balance_N)
        parts = {name: round(float(part[row]), 6) for name, part in zip(PARTS, of_row, strict=True)}
        picks.append(Pick(row, round(float(score_N[row]), 6), parts))
        chosen_N[row] = True
        taken_K[label_N[row]] += 1
        mine_G = np.zeros(len(field_G))
        mine_G[near_NM[row]] = unit_NM[row]
        left_N *= 1 - (unit_NM * mine_G[near_NM]).sum(1) / 2
    return picks


def uncertainty(table: pa.Table, count: int) -> list[Pick]:
    """The least confident labels; equal ones by row."""
    uncertain_N = 1 - _floats(table, "confidence")
    order = np.argsort(-uncertain_N, kind="stable")[:count].tolist()
    return [Pick(row, round(float(uncertain_N[row]), 6), {}) for row in order]


def at_random(table: pa.Table, count: int, seed: int) -> list[Pick]:
    """By a hash of seed and id: one clip more displaces one at most."""
    key_N = np.array([derive("review", seed, name) for name in table["video_id"].to_pylist()], np.int64)
    return [Pick(row, 0.0, {}) for row in np.argsort(key_N, kind="stable")[:count].tolist()]


def make_queue(run: Run, count: int, by: By = "uncertainty", seed: int = 0) -> Queue:
    """Of the last round that the run has labelled, by the method that it would stand by.

    Raises ArtefactError: no round is labelled, or its labels do not name their nearest gallery clips.
    """
    name = run.last_round()
    table, manifest = run.labels(name), run.manifest()
    if "near" not in table.column_names:
        raise made_before(run.store, name, NEAR)
    picks = {
        "influence": lambda: influence(table, count),
        "uncertainty": lambda: uncertainty(table, count),
        "random": lambda: at_random(table, count, seed),
    }[by]()
    lineage = {"recipe": digest(run.recipe()), "labels": name, "labels_sha256": tables.digest(table)}
    lineage |= {"by": by, "count": count, **({"seed": seed} if by == "random" else {})}
    names, labelled = run.class_names(), run.labelled()
    rows = tables.rows_at(table, np.array([pick.row for pick in picks], int))
    clips = tuple(
        _entry(rank, pick, row, manifest, names, labelled)
        for rank, (pick, row) in enumerate(zip(picks, rows, strict=True), start=1)
    )
    return Queue(run.recipe().name, fingerprint([lineage, clips, names]), lineage, by, names, clips)


def _entry(
    rank: int, pick: Pick, row: dict[str, Any], manifest: Manifest, names: tuple[str, ...], labelled: dict[str, int]
) -> dict[str, Any]:
    """A clip of the queue, as queue.json has it; seconds and frames are counted in its file."""
    clip, near = (tables.rows_at(manifest.clips, np.array(rows, int)) for rows in ([row["clip"]], row["near"]))
    part, fps = clip[0], clip[0]["fps"] or 0.0
    span = {"start_frame": part["start"], "frames": part["num_frames"], "file_frames": part["file_frames"]}
    if fps:
        span |= {"start_s": part["start"] / fps, "end_s": (part["start"] + part["num_frames"]) / fps}
    return {
        "rank": rank,
        "clip": row["video_id"],
        "row": row["clip"],
        "file": part["path"],
        "part": span,
        "label": names[row["label"]],
        "confidence": row["confidence"],
        "accepted": row["accepted"],
        "p_A": {"label": names[row["label_A"]], "confidence": row["confidence_A"]},
        "p_E": {"label": names[row["label_E"]], "confidence": row["confidence_E"]},
        "top": [{"label": names[k], "p": p} for k, p in zip(row["top"], row["top_p"], strict=True)],
        "knownness": row["knownness"],
        "near": [
            {"clip": other["video_id"], "row": at, "label": names[labelled[other["video_id"]]], "S": score}
            for other, at, score in zip(near, row["near"], row["near_S"], strict=True)
        ],
        "score": pick.score,
        "parts": pick.parts,
    }


def _profiles(table: pa.Table) -> tuple[np.ndarray, Floats]:
    """Places in the gallery of the M nearest clips of each video, and S there, of unit length over M."""
    near_X, near_S_X = (pc.list_flatten(table[name]).to_numpy() for name in ("near", "near_S"))
    _, place_X = np.unique(near_X, return_inverse=True)
    S_NM = near_S_X.astype(np.float64).reshape(len(table), -1)
    return place_X.reshape(S_NM.shape), S_NM / np.maximum(np.linalg.norm(S_NM, axis=1, keepdims=True), 1e-12)


def _novelty(known_N: Floats) -> Floats:
    """0 for the more known half, then linear in rank up to 1 for the least known; equal ones share their rank."""
    if len(known_N) < 2:
        return np.zeros(len(known_N))
    order_N = np.sort(known_N)
    more_N = len(known_N) - np.searchsorted(order_N, known_N, side="right")
    return np.maximum(0.0, 2 * more_N / (len(known_N) - 1) - 1)


def _floats(table: pa.Table, name: str) -> Floats:
    return table[name].to_numpy().astype(np.float64)
