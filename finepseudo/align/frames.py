"""What frame embeddings know of the course of an action: the three tasks that the alignment literature measures.

Kendall's tau, phase progression, phase classification: Dwibedi et al., Temporal Cycle-Consistency Learning, CVPR 2019
(TCC), sections 4.1 and 5; marked [A]. The last two need the truth of frames, and are fitted on labelled videos alone.

Axes: N videos, T frames, D embedding, X targets. Frames whose truth is unknown have no place here.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-2
"""λ: small beside the unit variance of the standardised features; they may outnumber the frames.  [C]"""


def kendall_tau(emb_NTD: Tensor, label_N: Tensor) -> Tensor:
    """tau_NN of the nearest frames of two videos of one class: do they come in the same order?

        q(i) = argmax_j <u_i, v_j>                                       nearest frame of v, for unit u, v       [A]
        tau(u,v) = (C - I) / sqrt(P (P - E)),  P = T (T-1) / 2                                                   [A]

    C, I and E count the pairs i < j with q(i) < q(j), q(i) > q(j) and q(i) = q(j): tau-b, as the released code of TCC
    takes it. 1: the same order throughout; 0: none. Where all frames of u have one nearest frame, tau is 0: the code
    leaves such pairs out, but a video that collapses into one frame is not aligned.                             [C]

    Args:
        emb_NTD: frame embeddings in the order of time, L2-normalised over D; T >= 2.
        label_N: classes.
    Returns tau_NN, float64: row u, column v, which differ since nearest frames do. NaN for videos of two classes, and
    on the diagonal.
    Raises ValueError where shapes do not fit.
    """
    N, T = _check(emb_NTD, label_N)
    above_P2 = torch.triu_indices(T, T, offset=1)
    tau_NN = torch.full((N, N), torch.nan, dtype=torch.float64)
    for label in label_N.unique():
        rows = (label_N == label).nonzero().flatten()
        for row in rows:
            nearest_MT = (emb_NTD[row] @ emb_NTD[rows].transpose(1, 2)).argmax(2)
            order_MP = (nearest_MT[:, above_P2[1]] - nearest_MT[:, above_P2[0]]).sign().double()
            pairs, untied_M = above_P2.shape[1], order_MP.abs().sum(1)
            tau_NN[row, rows] = order_MP.sum(1) / (pairs * untied_M).sqrt().clamp(min=1)
    return tau_NN.fill_diagonal_(torch.nan)


def fit_ridge(emb_NTD: Tensor, target_NTX: Tensor, test_MTD: Tensor) -> Tensor:
    """Targets of the frames of other videos, (M,T,X), by ridge regression over all frames of N videos.

        z = (u - mean u) / std u,   W = (Zᵀ Z / n + λ I)⁻¹ Zᵀ (y - mean y) / n,   ŷ = mean y + Wᵀ z

    TCC fits a linear regressor without a penalty [A]; few labelled videos have fewer frames than an embedding has
    numbers, hence λ = RIDGE [C]. One fit for all classes, not one a class [C].
    """
    z, y = emb_NTD.double().flatten(0, 1), target_NTX.double().flatten(0, 1)
    mean_D, std_D = z.mean(0), z.std(0, correction=0).clamp(min=1e-6)
    z, mean_X = (z - mean_D) / std_D, y.mean(0)
    gram_DD = z.T @ z / len(z) + RIDGE * torch.eye(z.shape[1], dtype=z.dtype)
    weight_DX = torch.linalg.solve(gram_DD, z.T @ (y - mean_X) / len(z))
    return mean_X + ((test_MTD.double() - mean_D) / std_D) @ weight_DX


def phase_progression(emb_NTD: Tensor, progress_NT: Tensor, test_MTD: Tensor) -> Tensor:
    """Progress of the frames of test videos, (M,T), by a regression on the labelled ones; see `r_squared`."""
    return fit_ridge(emb_NTD, progress_NT[..., None], test_MTD)[..., 0]


def r_squared(found_MT: Tensor, truth_MT: Tensor, count_M: Tensor) -> float:
    """R² = 1 - Σ (y - ŷ)² / Σ (y - mean y)² over all frames, a video counted `count_M` times.                    [A]

    1: exact; 0: no better than the mean of the test frames; may be far below 0. NaN where the truth does not vary.
    """
    weight_MT = count_M.double()[:, None].expand_as(truth_MT)
    mean = (weight_MT * truth_MT).sum() / weight_MT.sum()
    left, whole = ((weight_MT * (truth_MT - other) ** 2).sum() for other in (found_MT, mean))
    return float(1 - left / whole) if whole > 0 else float("nan")


def phase_classification(emb_NTD: Tensor, phase_NT: Tensor, test_MTD: Tensor) -> Tensor:
    """Phases of the frames of test videos, (M,T): the largest of the regressions onto indicators of each phase.

    A linear classifier as TCC's [A], by least squares where it takes an SVM [C]. A phase that no labelled frame has is
    never found.
    """
    phases, place_NT = phase_NT.unique(return_inverse=True)
    return phases[fit_ridge(emb_NTD, torch.nn.functional.one_hot(place_NT, len(phases)), test_MTD).argmax(-1)]


def _check(emb_NTD: Tensor, label_N: Tensor) -> tuple[int, int]:
    if emb_NTD.dim() != 3 or emb_NTD.shape[1] < 2 or label_N.shape != emb_NTD.shape[:1]:
        got = f"{tuple(emb_NTD.shape)} and {tuple(label_N.shape)}"
        raise ValueError(f"expected emb (N,T,D) with T >= 2 and label (N,), got {got}")
    return emb_NTD.shape[0], emb_NTD.shape[1]
