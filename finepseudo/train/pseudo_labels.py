"""From decided labels to what may be trained on: known-ness, guard, table, samples.

Axes: N videos, G gallery, M nearest members of it, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from finepseudo.align import collaborate
from finepseudo.align.gallery import Gallery
from finepseudo.align.head import ScoreHead, alignability
from finepseudo.align.score import distances
from finepseudo.data.plan import samples
from finepseudo.errors import TrainingError
from finepseudo.recipe import Recipe
from finepseudo.sizes import COMPARED

TOP = 5  # classes whose probability a committed label keeps; the rest of the mass is spread over the others
SMALLEST_STD = 1e-3  # of D over the labelled pairs, where these (almost) coincide


@dataclass(frozen=True)
class Compared:
    """What the labelled videos say of a pre-trained f_A when they are compared with each other."""

    mean: float
    std: float  # of D over the pairs: what a new score head standardises by


def compare_labelled(gallery: Gallery, gamma: float, seed: int) -> Compared:
    """Compare the labelled videos with each other; of more than COMPARED a balanced sample.                 [C]

    The driver holds their G x G distances while all workers wait, hence the bound. A single pair has no deviation: a
    small one stands in, so that the head stays finite.
    """
    gallery = _comparable(gallery, seed)
    dist_GG = distances(gallery.emb_GTD, gallery.emb_GTD, gamma).double()
    above = torch.triu_indices(len(dist_GG), len(dist_GG), offset=1)
    values = dist_GG[above[0], above[1]]
    std = float(values.std()) if len(values) > 1 else 0.0
    return Compared(float(values.mean()), max(std, SMALLEST_STD))


def known_from(gallery: Gallery, head: ScoreHead, recipe: Recipe, seed: int) -> float:
    """θ_known: a quantile of the labelled videos' own known-ness, each among the others; of many a sample.       [C]

    They are what f_A was trained on, so the bound is a strict one.
    Raises TrainingError: no class has two labelled videos.
    """
    gallery = _comparable(gallery, seed)
    dist_GG = distances(gallery.emb_GTD, gallery.emb_GTD, recipe.align.gamma)
    with torch.no_grad():
        found = collaborate.leave_one_out_knownness(gallery, alignability(dist_GG, head, recipe.label.mean))
    if not len(found):
        raise TrainingError(
            f"label.known = {recipe.label.known:g} compares labelled videos of one class with each other, and no class "
            "has two of them; raise split.label_fraction, or set label.known to 0"
        )
    return float(found.quantile(recipe.label.known))


def _comparable(gallery: Gallery, seed: int) -> Gallery:
    """Of more than COMPARED members a balanced sample."""
    if len(gallery) <= COMPARED:
        return gallery
    return gallery.balanced(max(2, COMPARED // gallery.num_classes), seed)


@dataclass(frozen=True)
class LabelState:
    """What the guard looks at."""

    coverage: float  # share of the unlabelled videos that is accepted
    agreement: float  # share of them where p_E and p_A name the same class
    largest: int  # the class that most accepted labels name
    largest_share: float  # of the accepted labels

    @staticmethod
    def of(table: pa.Table) -> LabelState:
        """Of the labels of a round."""
        accepted, agreed, classes = (table.column(key).to_numpy() for key in ("accepted", "agree", "label"))
        counts = np.bincount(classes[accepted], minlength=1)
        share = float(counts.max() / max(1, accepted.sum()))
        return LabelState(float(accepted.mean()), float(agreed.mean()), int(counts.argmax()), share)


def guard(table: pa.Table, recipe: Recipe, name: str, class_names: Sequence[str]) -> None:
    """Stop before training on labels that have collapsed.

    Raises TrainingError, with advice, where coverage, class shares or agreement are beyond the recipe's bounds.
    """
    label, found = recipe.label, LabelState.of(table)
    state = (
        f"coverage {found.coverage:.3f}, agreement {found.agreement:.3f}, largest class share {found.largest_share:.3f}"
    )
    if found.coverage < label.min_coverage:
        raise TrainingError(
            f"{name}: almost nothing is accepted ({state}; label.min_coverage = {label.min_coverage:g}). Lower "
            f"label.threshold (now {label.threshold:g}), or train longer before the rounds"
        )
    if found.largest_share > label.max_class_share:
        raise TrainingError(
            f"{name}: one class, {class_names[found.largest]}, takes most accepted labels ({state}; "
            f"label.max_class_share = {label.max_class_share:g}). Train f_E longer first, or raise the bound"
        )
    if found.agreement < label.min_agreement:
        raise TrainingError(
            f"{name}: p_E and p_A hardly ever agree ({state}; label.min_agreement = {label.min_agreement:g}). One of "
            "the encoders has not learned: look at the curves of stage 2"
        )


def label_table(
    made: collaborate.PseudoLabels,
    clip_N: np.ndarray,
    p_A_NK: Tensor,
    p_E_NK: Tensor,
    near_NM: np.ndarray,
    near_S_NM: np.ndarray,
) -> pa.Table:
    """About 250 bytes a video; clips are known by their rows of the manifest.

    Args:
        near_NM: the gallery clips that align best with each video.
        near_S_NM: S(U, a) of these.
    """
    top, top_p = most_likely(made.p_NK)
    columns: dict[str, Any] = {
        "video_id": pa.array(made.video_ids, pa.string()),
        "clip": clip_N.astype(np.int32),
        "label": made.label.astype(np.int32),
        "confidence": made.confidence,
        "accepted": made.accepted,
        "knownness": made.knownness,
        "label_A": made.label_A.astype(np.int32),
        "label_E": made.label_E.astype(np.int32),
        "confidence_A": p_A_NK.max(1).values.numpy(),
        "confidence_E": p_E_NK.max(1).values.numpy(),
        "agree": made.label_A == made.label_E,
        "top": pa.array(list(top), pa.list_(pa.int32())),
        "top_p": pa.array(list(top_p), pa.list_(pa.float32())),
        "near": pa.array(list(near_NM), pa.list_(pa.int32())),
        "near_S": pa.array(list(near_S_NM), pa.list_(pa.float32())),
    }
    return pa.table(columns)


def most_likely(p_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of p: the TOP classes of each video, the likeliest first, and their probabilities."""
    kept = min(TOP, p_NK.shape[1])
    some = np.sort(np.argpartition(-p_NK, kept - 1, axis=1)[:, :kept], axis=1)  # to sort all of K takes far longer
    order = np.argsort(-np.take_along_axis(p_NK, some, 1), axis=1, kind="stable")
    top = np.take_along_axis(some, order, 1)
    return top, np.take_along_axis(p_NK, top, 1)


def pseudo_samples(table: pa.Table, *, soft: bool) -> pa.Table:
    """The accepted videos as samples, each weighted by its confidence; with their kept classes, where asked for."""
    targets = ["top", "top_p"] if soft else []
    kept = table.select(["clip", "label", "confidence", *targets]).filter(table["accepted"]).combine_chunks()
    return samples(kept["clip"], kept["label"], kept["confidence"], **{name: kept[name] for name in targets})
