"""The losses of f_A: GITDL without labels, and L_AV = L_AT + w L_Score with them. All are averages inside one block.

Axes: B videos of a block, n m frames of the global and local clip, D embedding. Weights of a row: 1 labelled, the
confidence of a pseudo-label, 0 undecodable (takes no part).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TripletOutput:
    """L_AT of a block; the count is a 0-dim int64 tensor (reading it waits for a GPU)."""

    loss: Tensor
    skipped: Tensor  # rows that take part and lack a positive or a negative


@dataclass(frozen=True)
class AvOutput:
    loss: Tensor
    triplet: TripletOutput
    score: Tensor


def gitdl_loss(
    g_BnD: Tensor,
    l_BmD: Tensor,
    s_Bn: Tensor,
    t_Bm: Tensor,
    *,
    sigma2: float,
    tau: float,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Temporally distinctive pre-training loss of a global and a local clip of the same videos.

        w_ij = softmax_i(-(s_i - t_j)² / 2σ²),   p_ij = softmax_i(<g_i, l_j> / τ)                 [A]
        L = ½ [mean over j of CE(w_j, p_j) + the same with the roles of g and l exchanged]        [A]

    Args:
        g_BnD, l_BmD: features of the global and the local clip, L2-normalised over D by the caller.
        s_Bn, t_Bm: their frame times, in frames of the video.
        sigma2: σ² > 0, in frames².
        tau: τ > 0.
        weight_B: weight of each video, >= 0; None: all 1. Rows of weight 0 take no part, whatever they hold.
    Returns the weighted mean over videos, fp32 or wider; a differentiable 0 where no video takes part.
    Raises ValueError where shapes do not fit, or σ² or τ is not positive.
    """
    shapes = [tuple(x.shape) for x in (g_BnD, l_BmD, s_Bn, t_Bm)]
    g, ll, s, t = shapes
    if len(g) != 3 or len(ll) != 3 or g[::2] != ll[::2] or s != g[:2] or t != ll[:2] or 0 in g[1:] + ll[1:]:
        raise ValueError(f"expected g (B,n,D), l (B,m,D), s (B,n), t (B,m), got {', '.join(map(str, shapes))}")
    if not (sigma2 > 0 and tau > 0):
        raise ValueError(f"expected sigma2 > 0 and tau > 0, got {sigma2} and {tau}")
    dtype = torch.promote_types(torch.promote_types(g_BnD.dtype, l_BmD.dtype), torch.float32)
    if weight_B is not None:
        _check_vector("weight_B", weight_B, g[0])
        kept = weight_B > 0
        g_BnD, l_BmD, s_Bn, t_Bm, weight_B = g_BnD[kept], l_BmD[kept], s_Bn[kept], t_Bm[kept], weight_B[kept]
    if len(g_BnD) == 0:
        return g_BnD.to(dtype).sum() + l_BmD.to(dtype).sum()
    with torch.autocast(g_BnD.device.type, enabled=False):
        logits_Bnm = g_BnD.to(dtype) @ l_BmD.to(dtype).transpose(1, 2) / tau
    target_Bnm = -(s_Bn.to(dtype)[:, :, None] - t_Bm.to(dtype)[:, None, :]).square() / (2 * sigma2)
    loss_B = (_cross_entropy(target_Bnm, logits_Bnm, dim=1) + _cross_entropy(target_Bnm, logits_Bnm, dim=2)) / 2
    if weight_B is None:
        return loss_B.mean()
    return (loss_B * weight_B.to(dtype)).sum() / weight_B.to(dtype).sum()


def triplet_loss(
    dist_BB: Tensor, label_B: Tensor, video_B: Tensor, weight_B: Tensor, *, margin: float = 0.1
) -> TripletOutput:
    """Alignability triplet loss with hard negatives.

        L_AT = mean over anchors i and positives j of max(0, D(i,j) - D(i,k*) + m)                [P]
        k* = argmin over k of another class in the block of D(i,k)                                [P]
        the mean is weighted by w_i w_j                                                           [C]

    A positive is another row of the class; a row of the same video only where the class has no other video in the
    block [C]. Two rows of one video are never a negative. Anchors that lack either kind are skipped and counted;
    the loss is a differentiable 0 where no anchor is valid.

    Args:
        dist_BB: alignment distances of the block, symmetric.
        label_B: int64 classes; for soft pseudo-labels the most likely one.
        video_B: int64, equal for rows of the same video.
        weight_B: weight of each row, >= 0; rows of 0 take no part.
        margin: m, in units of the divided distance [C].
    Raises ValueError where shapes do not fit.
    """
    positive_BB, negative_BB, weight_BB = _pairs(dist_BB, label_B, video_B, weight_B)
    has_negative_B = negative_BB.any(1)
    pair_BB = positive_BB & has_negative_B[:, None]
    hardest_B = dist_BB.masked_fill(~negative_BB, torch.inf).min(1).values
    gap_BB = torch.where(pair_BB, dist_BB - hardest_B.masked_fill(~has_negative_B, 0)[:, None] + margin, 0)
    skipped = ((weight_B > 0) & ~pair_BB.any(1)).sum()
    return TripletOutput(_weighted_mean(F.relu(gap_BB), weight_BB * pair_BB), skipped)


def score_loss(log_odds_BB: Tensor, label_B: Tensor, video_B: Tensor, weight_B: Tensor) -> Tensor:
    """Binary cross-entropy of the alignability score over the pairs i < j of a block, whose log-odds are f_S(D).

        L_Score = - mean [y log S + (1 - y) log(1 - S)],  y = 1 for the same class                [P]
        positives and negatives carry half of the mass each; a pair weighs w_i w_j                [C]

    The pairs and the other arguments are those of `triplet_loss`. Where a block has only one kind, the other half is 0.
    """
    positive_BB, negative_BB, weight_BB = _pairs(log_odds_BB, label_B, video_B, weight_B)
    once_BB = weight_BB.triu(1)
    x_BB = torch.where(positive_BB | negative_BB, log_odds_BB, 0)
    positive = _weighted_mean(F.softplus(-x_BB), once_BB * positive_BB)
    negative = _weighted_mean(F.softplus(x_BB), once_BB * negative_BB)
    return (positive + negative) / 2


def av_loss(
    dist_BB: Tensor,
    log_odds_BB: Tensor,
    label_B: Tensor,
    video_B: Tensor,
    weight_B: Tensor,
    *,
    margin: float = 0.1,
    triplet_weight: float = 1.0,
    score_weight: float = 1.0,
) -> AvOutput:
    """Alignability-verification loss of a block; arguments as `triplet_loss`, and log_odds_BB = f_S(dist_BB).

    L_AV = L_AT + w L_Score,   w = score_weight [C]                                           [P]
    a weight of L_AT other than 1 is for ablations                                            [C]
    """
    triplet = triplet_loss(dist_BB, label_B, video_B, weight_B, margin=margin)
    score = score_loss(log_odds_BB, label_B, video_B, weight_B)
    return AvOutput(loss=triplet_weight * triplet.loss + score_weight * score, triplet=triplet, score=score)


def _pairs(values_BB: Tensor, label_B: Tensor, video_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs are positives, which negatives, and what each weighs; all three symmetric."""
    if values_BB.dim() != 2 or values_BB.shape[0] != values_BB.shape[1]:
        raise ValueError(f"expected a square (B,B) of a block, got {tuple(values_BB.shape)}")
    for name, vector in (("label_B", label_B), ("video_B", video_B), ("weight_B", weight_B)):
        _check_vector(name, vector, len(values_BB))
    alive_B = weight_B > 0
    alive_BB = alive_B[:, None] & alive_B
    same_class = label_B[:, None] == label_B
    same_video = video_B[:, None] == video_B
    has_other_B = (alive_BB & same_class & ~same_video).any(1)
    other_row = ~torch.eye(len(values_BB), dtype=torch.bool, device=values_BB.device)
    positive_BB = alive_BB & same_class & other_row & (~same_video | ~has_other_B[:, None])
    weight = weight_B.to(values_BB.dtype)
    return positive_BB, alive_BB & ~same_class & ~same_video, weight[:, None] * weight


def _weighted_mean(values_BB: Tensor, weight_BB: Tensor) -> Tensor:
    mass = weight_BB.sum()
    return torch.where(weight_BB > 0, values_BB * weight_BB, 0).sum() / torch.where(mass > 0, mass, 1)


def _cross_entropy(target_Bnm: Tensor, logits_Bnm: Tensor, *, dim: int) -> Tensor:
    return -(target_Bnm.softmax(dim) * logits_Bnm.log_softmax(dim)).sum(dim).mean(1)


def _check_vector(name: str, vector: Tensor, length: int) -> None:
    if tuple(vector.shape) != (length,):
        raise ValueError(f"expected {name} ({length},), one value a row of the block, got {tuple(vector.shape)}")
