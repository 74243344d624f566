"""Contrastive losses of clips: two views of one thing are to be alike, and unlike the views of others.

Axes: X sets, N things of a set, B videos, L local clips of a video, D embedding. All vectors are of unit length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TclrOutput:
    loss: Tensor
    instance: Tensor
    local_local: Tensor
    global_local: Tensor


def nt_xent(a_XND: Tensor, b_XND: Tensor, *, tau: float) -> Tensor:
    """NT-Xent (SimCLR, Chen et al., ICML 2020) inside each set: of thing n, a and b are the two views.

        loss_X = mean over the 2N views z_i of -log exp(<z_i, z_j>/τ) / Σ over k != i of exp(<z_i, z_k>/τ)

    with z_j the other view of i's thing. A set of one thing gives 0.
    """
    N = a_XND.shape[1]
    z_XMD = torch.cat([a_XND, b_XND], 1)
    logits_XMM = z_XMD @ z_XMD.transpose(1, 2) / tau
    itself_MM = torch.eye(2 * N, dtype=torch.bool, device=z_XMD.device)
    logits_XMM = logits_XMM.masked_fill(itself_MM, -torch.inf)
    other_M = torch.arange(2 * N, device=z_XMD.device).roll(N)
    return _cross_entropy(logits_XMM, other_M)


def global_local(time_XLD: Tensor, clip_XLD: Tensor, *, tau: float) -> Tensor:
    """L_GL of TCLR: part l of the global clip is local clip l, and no other one of the same video; and the reverse.

    loss_X = ½ mean over l of [CE(softmax_k(<g_l, v_k>/τ), l) + CE(softmax_k(<v_l, g_k>/τ), l)]
    """
    logits_XLL = time_XLD @ clip_XLD.transpose(1, 2) / tau
    same_L = torch.arange(logits_XLL.shape[1], device=logits_XLL.device)
    return (_cross_entropy(logits_XLL, same_L) + _cross_entropy(logits_XLL.transpose(1, 2), same_L)) / 2


def tclr_loss(
    whole_BD: Tensor,
    time_BLD: Tensor,
    first_BLD: Tensor,
    second_BLD: Tensor,
    *,
    tau: float,
    weight_B: Tensor | None = None,
) -> TclrOutput:
    """Temporal contrast of videos: L = L_IC + L_LL + L_GL, each a mean (TCLR, Dave et al., CVIU 2022).

        L_IC  instances: NT-Xent over the videos of the block, of the global clip and a local one [C]; mean over these
        L_LL  local-local: NT-Xent over the L local clips of a video, of their two views
        L_GL  global-local: `global_local` of the parts of the global clip and the local clips of either view

    TCLR sums over videos and clips, and pairs instances by every two clips of one kind: means keep the terms in
    proportion whatever B and L [C].

    Args:
        whole_BD: global clip.
        time_BLD: parts of the global clip, in the times of the local clips.
        first_BLD, second_BLD: local clips by two augmentations.
        weight_B: rows of 0 take no part, whatever they hold; None: all do.
    Returns fp32 or wider; differentiable zeros where no video takes part.
    Raises ValueError where shapes do not fit or τ is not positive.
    """
    B, L, D = time_BLD.shape
    shapes = [tuple(x.shape) for x in (whole_BD, time_BLD, first_BLD, second_BLD)]
    if shapes != [(B, D), *[(B, L, D)] * 3] or not tau > 0:
        raise ValueError(f"expected (B,D), three times (B,L,D), and tau > 0, got {shapes} and {tau}")
    if weight_B is not None:
        kept = weight_B > 0
        whole_BD, time_BLD, first_BLD, second_BLD = (x[kept] for x in (whole_BD, time_BLD, first_BLD, second_BLD))
    if not len(whole_BD):
        nothing = sum(x.float().sum() for x in (whole_BD, time_BLD, first_BLD, second_BLD)) + whole_BD.new_zeros(())
        return TclrOutput(nothing, nothing, nothing, nothing)
    with torch.autocast(whole_BD.device.type, enabled=False):
        views_XBD = torch.cat([first_BLD, second_BLD], 1).transpose(0, 1)
        instance = nt_xent(whole_BD.expand_as(views_XBD), views_XBD, tau=tau).mean()
        local_local = nt_xent(first_BLD, second_BLD, tau=tau).mean()
        both = [global_local(time_BLD, clip_BLD, tau=tau).mean() for clip_BLD in (first_BLD, second_BLD)]
    across = (both[0] + both[1]) / 2
    return TclrOutput(instance + local_local + across, instance, local_local, across)


def temporal_similarity(feat_NMF: Tensor) -> Tensor:
    """How alike the moments of a video are: the mean cosine of two of its features, not below 0.

        s = max(0, mean over i != j of cos(h_i, h_j)) = max(0, (|Σ z_i|² - M) / (M (M - 1))),  z_i = h_i / |h_i|

    Args:
        feat_NMF: M features of each video, of different times.
    Returns s_N; 1 where M = 1.
    """
    M = feat_NMF.shape[1]
    if M == 1:
        return feat_NMF.new_ones(len(feat_NMF))
    z_NMF = F.normalize(feat_NMF, dim=-1)
    return ((z_NMF.sum(1).square().sum(-1) - M) / (M * (M - 1))).clamp_min(0)


def balanced(p_I_NK: Tensor, p_D_NK: Tensor, similarity_N: Tensor) -> Tensor:
    """TimeBalance's targets (Dave et al., CVPR 2023): p = s p_I + (1 - s) p_D.

    A video whose moments are alike is the invariant teacher's affair, another one the distinctive teacher's.
    """
    return torch.lerp(p_D_NK, p_I_NK, similarity_N[:, None])


def _cross_entropy(logits_XMN: Tensor, target_M: Tensor) -> Tensor:
    """Of every row with its target; means over the rows of a set."""
    target_XM = target_M.expand(len(logits_XMN), -1)
    return F.cross_entropy(logits_XMN.transpose(1, 2), target_XM, reduction="none").mean(1)
