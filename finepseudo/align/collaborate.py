"""From scores to pseudo-labels: p_A, p_E, their fusion, temperatures, and the accepted labels.

Axes: N unlabelled videos, G gallery, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finepseudo.align.gallery import Gallery
from finepseudo.align.head import Mean, ScoreHead, alignability

LOWEST_TAU, HIGHEST_TAU = 1e-4, 1e4


@dataclass(frozen=True)
class Temperatures:
    """Of p_A and p_E, and the estimated accuracies that they were fitted to."""

    tau_A: float
    tau_E: float
    accuracy_A: float
    accuracy_E: float


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The labels of one round, one row a video: every field has N rows."""

    video_ids: tuple[str, ...]
    label: NDArray[np.int64]  # argmax of p
    confidence: NDArray[np.float32]  # max of p
    accepted: NDArray[np.bool_]
    label_A: NDArray[np.int64]  # argmax of p_A, -1 where f_A was not asked
    label_E: NDArray[np.int64]  # argmax of p_E, -1 where f_E was not asked
    known: NDArray[np.bool_]  # False: taken for a class the gallery lacks
    p_NK: NDArray[np.float32]

    @property
    def coverage(self) -> float:
        """Share of the videos whose label is accepted; 0 without videos."""
        return float(self.accepted.mean()) if len(self.accepted) else 0.0


def p_align(sbar_NK: Tensor, tau: float) -> Tensor:
    """Class probabilities from alignment, non-parametric.

        p_A(c) = softmax_c(Sbar_c / τ_A)                                                          [P]

    Args:
        sbar_NK: class means; -inf for classes without a gallery member, which get probability 0.
        tau: τ_A > 0; 0.5 for log-odds, or by `fit_temperature` [C].
    Returns:
        p_A_NK, fp32 or wider, rows sum to 1.
    Raises:
        ValueError: the shape is not (N,K), τ_A is not positive, a value is NaN or +inf, or a row has no finite class.
    """
    _check_logits("sbar_NK", sbar_NK)
    return _softmax(sbar_NK, tau)


def p_video(logits_NK: Tensor, tau: float = 1.0) -> Tensor:
    """Class probabilities of the clip-wise net.

        p_E = softmax(f_E(U) / τ_E),  τ_E = 1                                                     [P]
        another τ_E by `fit_temperature`                                                          [C]

    Args:
        logits_NK: f_E's output, averaged over the clips of a video.
        tau: τ_E > 0.
    Returns:
        p_E_NK, fp32 or wider, rows sum to 1.
    Raises:
        ValueError: as `p_align`.
    """
    _check_logits("logits_NK", logits_NK)
    return _softmax(logits_NK, tau)


def fuse(p_A_NK: Tensor, p_E_NK: Tensor) -> Tensor:
    """Fused class probabilities.

        p = (p_A + p_E) / 2          the paper sums; the half keeps the threshold in (0, 1)       [P, C]

    Returns:
        p_NK, rows sum to 1.
    Raises:
        ValueError: the shapes differ.
    """
    a, e = tuple(p_A_NK.shape), tuple(p_E_NK.shape)
    if len(a) != 2 or a != e:
        raise ValueError(f"expected p_A and p_E of one shape (N,K), got {a} and {e}")
    return (p_A_NK + p_E_NK) / 2


def fit_temperature(logits_NK: Tensor, confidence: float) -> float:
    """Temperature at which the mean confidence equals a wanted one, usually an estimate of the accuracy.

        τ such that mean over N of max_c softmax_c(z / τ) = confidence                            [C]

    The mean confidence falls with τ, so log τ is bisected within 1e-4..1e4. A confidence that no τ in there gives
    (below 1/K, or above what ties at the maximum allow) returns the nearer bound: 1e4 for too low, 1e-4 for too high.

    Args:
        logits_NK: logits or class means; -inf columns are allowed, N >= 1.
        confidence: wanted mean of the largest probability, in (0, 1).
    Returns:
        τ > 0.
    Raises:
        ValueError: as `p_align`, no row is given, or the confidence is not within (0, 1).
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


def leave_one_out_scores(
    gallery: Gallery, dist_GG: Tensor, head: ScoreHead | None = None, *, mean: Mean = "log_odds"
) -> Tensor:
    """Class means of every gallery member against the others.

        Sbar_c(g) = mean over members a != g of class c of f_S(D(g, a)); of -D without a head     [C]

    Args:
        gallery: the labelled videos.
        dist_GG: their alignment distances; the diagonal is not read. For a large gallery take `balanced` first.
        head: the score head; None while f_A is only pre-trained.
        mean: what is averaged, with a head.
    Returns:
        sbar_GK; -inf for a class without another member.
    Raises:
        ValueError: `dist_GG` does not fit the gallery.
    """
    G = len(gallery)
    if tuple(dist_GG.shape) != (G, G):
        raise ValueError(f"expected dist ({G}, {G}) for a gallery of {G}, got {tuple(dist_GG.shape)}")
    with torch.no_grad():
        values_GG = -dist_GG if head is None else alignability(dist_GG, head, mean)
        values_GG = values_GG.double().masked_fill(torch.eye(G, dtype=torch.bool, device=dist_GG.device), 0)
        member_GK = torch.nn.functional.one_hot(gallery.label_G.to(dist_GG.device), gallery.num_classes).double()
        count_GK = member_GK.sum(0) - member_GK
        return torch.where(count_GK > 0, values_GG @ member_GK / count_GK.clamp_min(1), -torch.inf)


def leave_one_out_accuracy(
    gallery: Gallery, dist_GG: Tensor, head: ScoreHead | None = None, *, mean: Mean = "log_odds"
) -> float | None:
    """Share of the gallery that its other members would label rightly: an estimate of p_A's accuracy.    [C]

    Optimistic where f_A was trained on the gallery's labels. Members of a class of one are not asked (they could
    never be right), but stand as candidates for the others.

    Returns:
        accuracy in [0, 1]; None if no class has two members.
    Raises:
        ValueError: as `leave_one_out_scores`.
    """
    sbar_GK = leave_one_out_scores(gallery, dist_GG, head, mean=mean).cpu()
    asked_G = _has_other(gallery)
    if not bool(asked_G.any()):
        return None
    right_G = sbar_GK.argmax(1) == gallery.label_G.cpu()
    return float(right_G[asked_G].double().mean())


def decide(
    p_A_NK: Tensor | None,
    p_E_NK: Tensor | None,
    video_ids: Sequence[str],
    *,
    threshold: float,
    uses_p_A: bool = True,
    uses_p_E: bool = True,
    known_N: Tensor | None = None,
) -> PseudoLabels:
    """The pseudo-labels of a round.

        p = (p_A + p_E) / 2  where both are used, otherwise the one that is                       [P]
        label = argmax p, accepted if max p >= θ and the video is known                           [P]

    Args:
        p_A_NK: probabilities from alignment; may be None where it is not used.
        p_E_NK: probabilities of the clip-wise net; may be None where it is not used.
        video_ids: N distinct names.
        threshold: θ in [0, 1].
        uses_p_A: labels are made of p_A.
        uses_p_E: labels are made of p_E.
        known_N: bool, False for videos never to be labelled (open world); None: all are known.
    Raises:
        ValueError: shapes or names do not fit, a probability is not finite (rows are named), θ is out of range, or
            neither p_A nor p_E is used, or one that is used is None.
    """
    used = {name: p for name, p, use in (("p_A", p_A_NK, uses_p_A), ("p_E", p_E_NK, uses_p_E)) if use}
    if not used:
        raise ValueError("expected labels made of p_A, p_E or both, got neither")
    parts = [p for p in used.values() if p is not None]
    if len(parts) < len(used):
        missing = " and ".join(name for name, p in used.items() if p is None)
        raise ValueError(f"expected {' and '.join(used)} to make labels of, got no {missing}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"expected threshold in [0, 1], got {threshold}")
    p_NK = (fuse(*parts) if len(parts) == 2 else parts[0]).detach().float().cpu().numpy()
    N, names = len(video_ids), len(set(video_ids))
    if p_NK.ndim != 2 or len(p_NK) != N or p_NK.shape[1] == 0 or names != N:
        raise ValueError(f"expected p (N,K) for N = {N} distinct video_ids, got {p_NK.shape} and {names} names")
    bad = np.flatnonzero(~np.isfinite(p_NK).all(1)).tolist()
    if bad:
        raise ValueError(f"expected finite probabilities, got {len(bad)} bad rows: {[video_ids[n] for n in bad[:8]]}")
    known = np.ones(N, bool) if known_N is None else known_N.cpu().numpy().astype(bool)
    if known.shape != (N,):
        raise ValueError(f"expected known_N ({N},), got {known.shape}")
    confidence = p_NK.max(1)
    return PseudoLabels(
        video_ids=tuple(video_ids),
        label=p_NK.argmax(1).astype(np.int64),
        confidence=confidence,
        accepted=(confidence >= threshold) & known,
        label_A=_labels(p_A_NK, N),
        label_E=_labels(p_E_NK, N),
        known=known,
        p_NK=p_NK,
    )


def _labels(p_NK: Tensor | None, N: int) -> NDArray[np.int64]:
    if p_NK is None:
        return np.full(N, -1, np.int64)
    return p_NK.detach().float().cpu().numpy().argmax(1).astype(np.int64)


def _has_other(gallery: Gallery) -> Tensor:
    return torch.tensor(gallery.counts())[gallery.label_G.cpu()] > 1


def _softmax(logits_NK: Tensor, tau: float) -> Tensor:
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
