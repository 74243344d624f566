"""From scores to pseudo-labels: p_A, p_E, their mean, temperatures, known-ness, and the accepted labels.

Axes: N unlabelled videos, G gallery, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finepseudo.align.gallery import Gallery

LOWEST_TAU, HIGHEST_TAU = 1e-4, 1e4


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The labels of one round, one row a video: every field has N rows."""

    video_ids: tuple[str, ...]
    label: NDArray[np.int64]  # argmax of p
    confidence: NDArray[np.float32]  # max of p
    accepted: NDArray[np.bool_]
    label_A: NDArray[np.int64]  # argmax of p_A
    label_E: NDArray[np.int64]  # argmax of p_E
    p_NK: NDArray[np.float32]
    knownness: NDArray[np.float32]  # max_c Sbar_c, before the softmax


def p_align(sbar_NK: Tensor, tau: float) -> Tensor:
    """Class probabilities from alignment, non-parametric; fp32 or wider, rows sum to 1.

        p_A(c) = softmax_c(Sbar_c / τ_A)                                                          [P]

    Args:
        sbar_NK: class means; -inf for classes without a gallery member, which get probability 0.
        tau: τ_A > 0; 0.5 for log-odds, or by `fit_temperature` [C].
    Raises ValueError unless it is (N,K), τ_A is positive, no value is NaN or +inf, and each row has a finite class.
    """
    return _softmax("sbar_NK", sbar_NK, tau)


def p_video(logits_NK: Tensor, tau: float = 1.0) -> Tensor:
    """Class probabilities of the clip-wise net; fp32 or wider, rows sum to 1.

        p_E = softmax(f_E(U) / τ_E),  τ_E = 1                                                     [P]
        another τ_E by `fit_temperature`                                                          [C]

    Args:
        logits_NK: f_E's output, averaged over the clips of a video.
    Raises ValueError as `p_align`.
    """
    return _softmax("logits_NK", logits_NK, tau)


def fuse(p_A_NK: Tensor, p_E_NK: Tensor) -> Tensor:
    """Fused class probabilities p_NK, rows sum to 1. Raises ValueError where the shapes differ.

    p = (p_A + p_E) / 2          the paper sums; the half keeps the threshold in (0, 1)       [P, C]
    """
    a, e = tuple(p_A_NK.shape), tuple(p_E_NK.shape)
    if len(a) != 2 or a != e:
        raise ValueError(f"expected p_A and p_E of one shape (N,K), got {a} and {e}")
    return (p_A_NK + p_E_NK) / 2


def fit_temperature(logits_NK: Tensor, confidence: float) -> float:
    """Temperature τ > 0 at which the mean confidence equals a wanted one, usually an estimate of the accuracy.

        τ such that mean over N of max_c softmax_c(z / τ) = confidence                            [C]

    The mean confidence falls with τ, so log τ is bisected within 1e-4..1e4. A confidence that no τ in there gives
    (below 1/K, or above what ties at the maximum allow) returns the nearer bound: 1e4 for too low, 1e-4 for too high.

    Args:
        logits_NK: logits or class means; -inf columns are allowed, N >= 1.
        confidence: wanted mean of the largest probability, in (0, 1).
    Raises ValueError as `p_align`, where no row is given, or the confidence is not within (0, 1).
    """
    _check_logits("logits_NK", logits_NK)
    if len(logits_NK) == 0 or not 0 < confidence < 1:
        raise ValueError(f"expected N >= 1 rows and confidence in (0, 1), got {len(logits_NK)} rows and {confidence}")
    z_NK = logits_NK.detach().double()
    z_NK = z_NK - z_NK.max(1, keepdim=True).values
    low, high = np.log(LOWEST_TAU), np.log(HIGHEST_TAU)
    for _ in range(60):
        middle = (low + high) / 2
        mean = float((1 / (z_NK / np.exp(middle)).exp().sum(1)).mean())
        low, high = (middle, high) if mean > confidence else (low, middle)
    return float(np.exp((low + high) / 2))


def knownness(sbar_NK: Tensor) -> Tensor:
    """How alignable a video is with the class it is most alignable with, (N,): low for one of an unknown class.

    max_c Sbar_c                                                                              [P]
    """
    return sbar_NK.max(1).values


def leave_one_out_knownness(gallery: Gallery, odds_GG: Tensor) -> Tensor:
    """The known-ness of each gallery member among the others; those of a class of one are left out.           [C]

    Args:
        odds_GG: what a class mean is taken over, of every pair (align.head.alignability); the diagonal is not read.
    Returns float64, one value a member that was asked; none where no class has two.
    Raises ValueError if `odds_GG` does not fit the gallery.
    """
    sbar_GK, asked_G = _among_others(gallery, odds_GG)
    return knownness(sbar_GK[asked_G]) if bool(asked_G.any()) else sbar_GK.new_empty(0)


def _among_others(gallery: Gallery, near_GG: Tensor) -> tuple[Tensor, Tensor]:
    """Class means of each member over the others, -inf for a class without one, and who has another of its class."""
    G = len(gallery)
    if tuple(near_GG.shape) != (G, G):
        raise ValueError(f"expected one value for each of ({G}, {G}) pairs of a gallery, got {tuple(near_GG.shape)}")
    near_GG = near_GG.detach().double().clone().fill_diagonal_(0)
    member_GK = torch.nn.functional.one_hot(gallery.label_G.to(near_GG.device), gallery.num_classes).double()
    count_GK = member_GK.sum(0) - member_GK
    sbar_GK = torch.where(count_GK > 0, near_GG @ member_GK / count_GK.clamp_min(1), -torch.inf)
    return sbar_GK, (count_GK * member_GK).sum(1) > 0


def decide(
    p_NK: Tensor,
    p_A_NK: Tensor,
    p_E_NK: Tensor,
    video_ids: Sequence[str],
    *,
    threshold: float,
    knownness_N: Tensor,
    known: float = -math.inf,
) -> PseudoLabels:
    """The pseudo-labels of a round.

        label = argmax p, accepted if max p >= θ and max_c Sbar_c >= θ_known                      [P]

    Args:
        p_NK: what labels are made of: p_A, p_E, or both fused.
        threshold: θ, in [0, 1].
        knownness_N: max_c Sbar_c.
        known: θ_known; below it a video is taken for one of a class that has no labelled video.
    Raises ValueError where shapes do not fit, names are not distinct, a probability is not finite (rows are named), or
    θ is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"expected threshold in [0, 1], got {threshold}")
    N, names, shape = len(video_ids), len(set(video_ids)), tuple(p_NK.shape)
    if len(shape) != 2 or shape[0] != N or shape[1] == 0 or names != N:
        raise ValueError(f"expected p (N,K) for N = {N} distinct video_ids, got {shape} and {names} names")
    if not tuple(p_A_NK.shape) == tuple(p_E_NK.shape) == shape:
        raise ValueError(f"expected p_A and p_E of p's shape {shape}, got {tuple(p_A_NK.shape)}, {tuple(p_E_NK.shape)}")
    if tuple(knownness_N.shape) != (N,):
        raise ValueError(f"expected knownness ({N},), got {tuple(knownness_N.shape)}")
    p_NK, p_A_NK, p_E_NK, near_N = (of.detach().float().cpu() for of in (p_NK, p_A_NK, p_E_NK, knownness_N))
    bad = (~p_NK.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"expected finite probabilities, got {len(bad)} bad rows: {[video_ids[n] for n in bad[:8]]}")
    confidence_N = p_NK.max(1).values
    return PseudoLabels(
        video_ids=tuple(video_ids),
        label=p_NK.argmax(1).numpy(),
        confidence=confidence_N.numpy(),
        accepted=((confidence_N >= threshold) & (near_N >= known)).numpy(),
        label_A=p_A_NK.argmax(1).numpy(),
        label_E=p_E_NK.argmax(1).numpy(),
        p_NK=p_NK.numpy(),
        knownness=near_N.numpy(),
    )


def _softmax(name: str, logits_NK: Tensor, tau: float) -> Tensor:
    _check_logits(name, logits_NK)
    if not 0 < tau < float("inf"):
        raise ValueError(f"expected tau > 0, got {tau}")
    return (logits_NK.to(torch.promote_types(logits_NK.dtype, torch.float32)) / tau).softmax(1)


def _check_logits(name: str, logits_NK: Tensor) -> None:
    if logits_NK.dim() != 2 or logits_NK.shape[1] == 0:
        raise ValueError(f"expected {name} (N,K) with K >= 1, got {tuple(logits_NK.shape)}")
    broken_N = (logits_NK.isnan() | (logits_NK == torch.inf)).any(1) | (logits_NK == -torch.inf).all(1)
    bad = broken_N.nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"expected {name} without NaN or +inf and with one finite class a row, got {len(bad)} bad rows: {bad[:8]}; "
            "is the gallery empty, or the encoder unstable?"
        )
