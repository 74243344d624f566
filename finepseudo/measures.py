"""Measures of classification, pseudo-labels, alignment and open world, thin over numpy and scikit-learn.

Axes: N videos, K classes, P pairs. A measure that is undefined (no such class, nothing accepted) is NaN, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PrecisionCoverage:
    """The curve over thresholds, from the strictest: keeping confidence >= threshold gives precision at coverage."""

    threshold: Floats
    precision: Floats
    coverage: Floats


def top_k_accuracy(score_NK: ArrayLike, truth_N: ArrayLike, k: int = 1) -> float:
    """Share of videos whose true class is among the k best scores; of equal scores the lower class comes first.

    Raises ValueError where shapes do not fit, N is 0, k < 1, a score is NaN, or a true class is not within 0..K-1.
    """
    score, truth = np.asarray(score_NK, float), np.asarray(truth_N, int)
    if score.ndim != 2 or truth.shape != score.shape[:1] or not len(truth) or k < 1:
        raise ValueError(f"expected score (N,K), truth (N,), N and k >= 1, got {score.shape}, {truth.shape}, k = {k}")
    if np.isnan(score).any():
        raise ValueError(f"expected scores without NaN, got rows {np.flatnonzero(np.isnan(score).any(1))[:8].tolist()}")
    _check_classes("truth", truth, score.shape[1])
    best = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return float((best == truth[:, None]).any(1).mean())


def per_class_accuracy(label_N: ArrayLike, truth_N: ArrayLike, num_classes: int) -> Floats:
    """Share of right labels within each true class; NaN for classes without a video."""
    label, truth = _same_length(label=label_N, truth=truth_N)
    _check_classes("truth", truth, num_classes)
    total = np.bincount(truth, minlength=num_classes)
    right = np.bincount(truth[label == truth], minlength=num_classes)
    return np.where(total > 0, right / np.maximum(total, 1), np.nan)


def most_confused(label_N: ArrayLike, truth_N: ArrayLike, num_classes: int, most: int) -> list[tuple[int, int, int]]:
    """The pairs of classes that are confused most often: (true class, label, videos), the largest count first.

    A pair is ordered: c taken for d is not d taken for c. Of equal counts, the lower true class and label come first.
    """
    label, truth = _same_length(label=label_N, truth=truth_N)
    _check_classes("label", label, num_classes)
    _check_classes("truth", truth, num_classes)
    pair, count = np.unique((truth * num_classes + label)[truth != label], return_counts=True)
    order = np.argsort(-count, kind="stable")[:most]
    return [(int(pair[at]) // num_classes, int(pair[at]) % num_classes, int(count[at])) for at in order]


def calibration_error(confidence_N: ArrayLike, right_N: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error over equal bins of (0, 1]; NaN without videos.

        ECE = Σ over bins of (n_b / N) |accuracy_b - mean confidence_b|

    Raises ValueError where shapes differ, bins < 1, or a confidence is not within 0..1.
    """
    confidence, right = np.asarray(confidence_N, float), np.asarray(right_N, float)
    if confidence.shape != right.shape or confidence.ndim != 1 or bins < 1:
        raise ValueError(
            f"expected confidence (N,), right (N,), bins >= 1, got {confidence.shape}, {right.shape}, {bins}"
        )
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():  # NaN is refused too
        raise ValueError(f"expected confidences within 0..1, got {confidence.min()} to {confidence.max()}")
    if not len(confidence):
        return math.nan
    bin_N = _bins(confidence, bins)
    gap = np.bincount(bin_N, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def reliability(
    confidence_N: NDArray[np.floating[Any]], right_N: NDArray[np.bool_], bins: int = 10
) -> list[tuple[float, float, int]]:
    """Mean confidence, share of right ones and number, of each of the equal bins of (0, 1] that has any."""
    bin_N = _bins(confidence_N, bins)
    return [
        (float(confidence_N[here_N].mean()), float(right_N[here_N].mean()), int(here_N.sum()))
        for number in range(bins)
        if (here_N := bin_N == number).any()
    ]


def _bins(confidence_N: NDArray[np.floating[Any]], bins: int) -> NDArray[np.int64]:
    return np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)


def precision_coverage_curve(confidence_N: ArrayLike, label_N: ArrayLike, truth_N: ArrayLike) -> PrecisionCoverage:
    """Precision against coverage for every threshold that tells videos apart; empty without videos."""
    label, truth = _same_length(label=label_N, truth=truth_N)
    confidence = np.asarray(confidence_N, float)
    if confidence.shape != label.shape or np.isnan(confidence).any():
        raise ValueError(f"expected confidence {label.shape} without NaN, got {confidence.shape}")
    order = np.argsort(-confidence, kind="stable")
    sorted_N = confidence[order]
    right = np.cumsum((label == truth)[order])
    last_of_tie = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], len(sorted_N) > 0))
    kept = last_of_tie + 1
    return PrecisionCoverage(sorted_N[last_of_tie], right[last_of_tie] / kept, kept / max(len(sorted_N), 1))


def pair_average_precision(score_P: ArrayLike, same_P: ArrayLike) -> float:
    """Average precision of same-class pairs, positives and negatives weighted to equal mass; chance is 0.5.

    Weights in place of a drawn subset: every pair counts and nothing is random. NaN where one kind is missing.

    Args:
        score_P: higher for pairs that align better (so minus a distance), finite.
        same_P: bool, True for pairs of one class.
    """
    score, same = _pairs(score_P, same_P)
    return _weighted_ap(score, same, np.ones(len(score)))


def pair_ap_standard_error(
    score_P: ArrayLike, same_P: ArrayLike, video_P2: ArrayLike, *, resamples: int = 200, seed: int = 0
) -> float:
    """Bootstrap standard error of `pair_average_precision`, over videos (two a pair: video_P2) and not over pairs.

    Pairs that share a video are not independent, so videos are drawn with replacement and a pair counts as often as
    both of its videos together: the product of their draws. Draws that lack one kind are left out; NaN where fewer
    than two remain.
    """
    score, same = _pairs(score_P, same_P)
    video = np.asarray(video_P2)
    if video.shape != (len(score), 2):
        raise ValueError(f"expected video ({len(score)}, 2), got {video.shape}")
    names, index = np.unique(video, return_inverse=True)
    index = index.reshape(video.shape)
    if not len(names):
        return math.nan
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    found = np.array([_weighted_ap(score, same, draw[index[:, 0]] * draw[index[:, 1]]) for draw in draws])
    found = found[~np.isnan(found)]
    return float(found.std(ddof=1)) if len(found) > 1 else math.nan


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float], count: int, *, resamples: int = 200, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % percentile interval of a figure, when `count` videos are drawn anew with replacement.

    Args:
        statistic: the figure where each video is there as often as the draw (count,) says.
    Returns the 2.5 % and the 97.5 % quantile; draws that give NaN are left out, None where fewer than two remain.
    """
    if not count:
        return None
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    found = np.array([statistic(draw) for draw in draws], float)
    found = found[~np.isnan(found)]
    if len(found) < 2:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def auroc(score_N: ArrayLike, positive_N: ArrayLike) -> tuple[float, float]:
    """Area under the ROC curve, the share of (positive, negative) pairs that the score orders rightly, ties half.

    With its standard error by Hanley and McNeil's formula. NaN where one of the two kinds is missing.
    """
    score, positive = np.asarray(score_N, float), np.asarray(positive_N, bool)
    if score.shape != positive.shape or score.ndim != 1:
        raise ValueError(f"expected score and positive of one length, got {score.shape} and {positive.shape}")
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return math.nan, math.nan
    from sklearn.metrics import roc_auc_score  # as slow to import as what _weighted_ap needs

    area = float(roc_auc_score(positive, score))
    pairs_of_positives, pairs_of_negatives = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n - 1) * (pairs_of_positives - area**2) + (m - 1) * (pairs_of_negatives - area**2)
    return area, math.sqrt(max(0.0, variance) / (n * m))


def proportion_standard_error(share: float, count: int) -> float:
    """Standard error sqrt(p (1 - p) / n) of a share of `count` independent cases; NaN without a case."""
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share within 0..1, got {share}")
    return math.sqrt(share * (1 - share) / count) if count > 0 else math.nan


def class_counts(label_N: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Videos of each of the K classes, 0 included."""
    label = np.asarray(label_N, int)
    _check_classes("label", label, num_classes)
    return np.bincount(label, minlength=num_classes).astype(np.int64)


def agreement(label_a_N: ArrayLike, label_b_N: ArrayLike) -> float:
    """Share of videos on which two labellings agree; NaN without videos."""
    a, b = _same_length(label_a=label_a_N, label_b=label_b_N)
    return float((a == b).mean()) if len(a) else math.nan


def _weighted_ap(score: Floats, same: NDArray[np.bool_], weight: NDArray[Any]) -> float:
    from sklearn.metrics import average_precision_score  # a second or more, which no training worker should wait for

    positive, negative = weight[same].sum(), weight[~same].sum()
    if not (positive > 0 and negative > 0):
        return math.nan
    return float(average_precision_score(same, score, sample_weight=weight / np.where(same, positive, negative)))


def _pairs(score_P: ArrayLike, same_P: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    score, same = np.asarray(score_P, float), np.asarray(same_P, bool)
    if score.ndim != 1 or score.shape != same.shape or not np.isfinite(score).all():
        got = f"{score.shape} with {int((~np.isfinite(score)).sum())} non-finite and {same.shape}"
        raise ValueError(f"expected finite values and flags of one shape (P,), got {got}")
    return score, same


def _same_length(**named: ArrayLike) -> list[NDArray[np.int64]]:
    arrays = [np.asarray(value).astype(np.int64) for value in named.values()]
    if arrays[0].ndim != 1 or any(a.shape != arrays[0].shape for a in arrays):
        got = ", ".join(f"{name} {a.shape}" for name, a in zip(named, arrays, strict=True))
        raise ValueError(f"expected vectors of one length, got {got}")
    return arrays


def _check_classes(name: str, label_N: NDArray[np.int_], num_classes: int) -> None:
    bad = np.flatnonzero((label_N < 0) | (label_N >= num_classes))
    if len(bad):
        raise ValueError(f"expected {name} within 0..{num_classes - 1}, got {label_N[bad[0]]} in row {bad[0]}")
