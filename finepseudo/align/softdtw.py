"""Cosine cost, soft-DTW with its explicit gradient, the alignment distance, and the hard path for display.

Axes: B batch, P pairs, T U frames of the two sequences, D embedding. The suffix 2 is (length in T, length in U).

What computes it is chosen by device and type (align/kernels), and said in the log.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finepseudo.align import kernels
from finepseudo.align.kernels import cpu


def cosine_cost(u_BTD: Tensor, v_BUD: Tensor) -> Tensor:
    """Cosine cost_BTU of every frame of u with every frame of v.

        C(i,j) = 1 - <u_i, v_j>                                                                   [P]

    Args:
        u_BTD, v_BUD: frame embeddings, L2-normalised over D (not checked here).
    Returns values in [0, 2] up to rounding, fp32 or the inputs' wider type, also under autocast.
    Raises ValueError where the ranks, B or D differ, or a sequence is empty.
    """
    u, v = tuple(u_BTD.shape), tuple(v_BUD.shape)
    if len(u) != 3 or len(v) != 3 or u[::2] != v[::2] or 0 in u[1:] + v[1:]:
        raise ValueError(f"expected u (B,T,D) and v (B,U,D) with equal B and D and no empty sequence, got {u} and {v}")
    dtype = torch.promote_types(torch.promote_types(u_BTD.dtype, v_BUD.dtype), torch.float32)
    with torch.autocast(u_BTD.device.type, enabled=False):  # autocast would take the product in half precision
        return 1 - u_BTD.to(dtype) @ v_BUD.to(dtype).transpose(1, 2)


def soft_dtw(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None = None) -> Tensor:
    """Soft-DTW value of each cost matrix, not divided by its lengths.

        R(i,j) = C(i,j) + smin(R(i-1,j), R(i,j-1), R(i-1,j-1)),   smin(a) = -γ log Σ exp(-a/γ)    [P]
        R(0,0) = 0, other borders +inf;   result R(T_p, U_p)                                      [A]
        dR/dC = E, the expected alignment matrix, by the backward recursion                       [A]

    Args:
        cost_PTU: finite costs; computed in fp32 or better.
        gamma: γ > 0, in units of the cost.
        lengths_P2: int64, lengths (T_p, U_p) of each pair in the padded batch; None: all are (T, U). Cells outside
            are neither read nor given a gradient, whatever they hold. The result equals that of each pair alone.
    Returns dist_P, fp32 or the cost's wider type; may be negative. Differentiable once. NaN gives NaN; an
    infinite cost forbids its cell (on a GPU it gives NaN).
    Raises ValueError unless the rank is 3, no sequence is empty, γ is a positive number, and the lengths fit.
    """
    shape = tuple(cost_PTU.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        raise ValueError(f"expected cost (P,T,U) with T and U of at least 1, got {shape}")
    check_gamma(gamma)
    cost = cost_PTU.to(torch.promote_types(cost_PTU.dtype, torch.float32))
    if lengths_P2 is not None:
        inside = _inside(lengths_P2, shape)
        lengths_P2 = lengths_P2.to(cost.device)
        cost = cost.masked_fill(~inside.to(cost.device), 0)  # padding may hold anything, NaN included
    return kernels.choose(cost).soft_dtw(cost, float(gamma), lengths_P2)


def alignment_distance(u_BTD: Tensor, v_BUD: Tensor, *, gamma: float = 0.1, lengths_B2: Tensor | None = None) -> Tensor:
    """Alignment distance D(u, v) of paired sequences.

        D(u,v) = R(T,U) / (T+U),   R the soft-DTW of the cosine cost                              [C]

    The division makes margin, gamma and score independent of the clip length; the recursion is the paper's.

    Args:
        u_BTD, v_BUD: frame embeddings, L2-normalised over D.
        gamma: γ > 0, in units of the undivided cost [A].
        lengths_B2: int64, lengths (T_b, U_b) where the batch is padded.
    Returns dist_B, fp32 or the inputs' wider type. May be negative, and D(u,u) is not 0: never clamp it.
    Raises ValueError as `cosine_cost` and `soft_dtw`.
    """
    dist_B = soft_dtw(cosine_cost(u_BTD, v_BUD), gamma, lengths_B2)
    if lengths_B2 is None:
        return dist_B / (u_BTD.shape[1] + v_BUD.shape[1])
    return dist_B / lengths_B2.sum(1).to(dist_B)


def block_distances(emb_BTD: Tensor, *, gamma: float) -> Tensor:
    """Alignment distances of all pairs of a training block; only the pairs i <= j are computed.

        D(i,j) = D(j,i) = R(T,T) / 2T                                                             [C]

    Args:
        emb_BTD: frame embeddings of one block, L2-normalised over D.
        gamma: γ > 0, in units of the undivided cost.
    Returns dist_BB, exactly symmetric, diagonal included, fp32 or wider; differentiable.
    Raises ValueError where the rank is not 3, the block is empty, or γ is not a positive number.
    """
    if emb_BTD.dim() != 3 or 0 in emb_BTD.shape:
        raise ValueError(f"expected a non-empty emb (B,T,D), got {tuple(emb_BTD.shape)}")
    check_gamma(gamma)
    B, T, _ = emb_BTD.shape
    emb_BTD = emb_BTD.to(torch.promote_types(emb_BTD.dtype, torch.float32))
    if kernels.choose(emb_BTD) is cpu:
        return cpu.block_distances(emb_BTD, float(gamma))
    flat = emb_BTD.flatten(0, 1)
    gram = cosine_cost(flat[None], flat[None]).view(B, T, B, T).transpose(1, 2).reshape(B * B, T, T)
    first_P, second_P = torch.triu_indices(B, B, device=emb_BTD.device).unbind()
    dist_P = soft_dtw(gram.index_select(0, first_P * B + second_P), gamma) / (2 * T)
    where_BB = torch.empty(B, B, dtype=torch.long, device=emb_BTD.device)
    where_BB[first_P, second_P] = where_BB[second_P, first_P] = torch.arange(len(first_P), device=emb_BTD.device)
    return dist_P.index_select(0, where_BB.flatten()).view(B, B)


def dtw_path(cost_TU: Tensor) -> list[tuple[int, int]]:
    """Hard warping path of least cost, for display only; of equal ways the diagonal one is taken.

    Returns frame pairs (i, j), counted from 0, from (0, 0) to (T-1, U-1); each step moves one or both by one.
    Raises ValueError where the rank is not 2, a sequence is empty, or a cost is not finite.
    """
    cost = cost_TU.detach().double().cpu().numpy()
    if cost.ndim != 2 or 0 in cost.shape or not np.isfinite(cost).all():
        raise ValueError(f"expected finite, non-empty cost (T,U), got {tuple(cost.shape)}")
    T, U = cost.shape
    total = np.full((T + 1, U + 1), np.inf)
    total[0, 0] = 0
    for i in range(T):
        for j in range(U):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    path, i, j = [(T - 1, U - 1)], T, U
    while (i, j) != (1, 1):
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda cell: total[cell])
        path.append((i - 1, j - 1))
    return path[::-1]


def aligned(cost_TU: Tensor) -> list[int]:
    """Of each frame t the first frame u that the hard path aligns with it. Raises as `dtw_path`."""
    return [u for _, u in sorted(dict(reversed(dtw_path(cost_TU))).items())]


def _inside(lengths_P2: Tensor, shape: tuple[int, ...]) -> Tensor:
    P, T, U = shape
    if tuple(lengths_P2.shape) != (P, 2) or lengths_P2.dtype != torch.int64:
        got = f"{lengths_P2.dtype} {tuple(lengths_P2.shape)}"
        raise ValueError(f"expected lengths as int64 ({P}, 2) for cost {shape}, got {got}")
    lengths = lengths_P2.cpu()
    bad = ((lengths < 1) | (lengths > torch.tensor([T, U]))).any(1).nonzero().flatten().tolist()
    if bad:
        got = f"{lengths[bad[0]].tolist()} in row {bad[0]} (rows {bad[:8]})"
        raise ValueError(f"expected lengths within 1..{T} and 1..{U}, got {got}")
    return (torch.arange(T)[:, None] < lengths[:, :1, None]) & (torch.arange(U) < lengths[:, 1:, None])


def check_gamma(gamma: float) -> None:
    if not 0 < gamma < float("inf"):
        raise ValueError(f"expected gamma > 0, got {gamma}; for the hard path call dtw_path")
