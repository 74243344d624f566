"""Soft-DTW in the log domain, plain torch: correct for every gamma and every finite cost, on any device.

Axes: P pairs, T U frames of the two sequences. The suffix 2 is (length in T, length in U).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def soft_dtw(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> Tensor:
    """`softdtw.soft_dtw` of checked arguments; cells outside the lengths hold finite costs."""
    return _SoftDTW.apply(cost_PTU, gamma, lengths_P2)


class _SoftDTW(torch.autograd.Function):
    """One anti-diagonal i + j = d at a time, pairs innermost, in units of gamma.

    Storage of a diagonal is [i, p], contiguous, so every operation runs over a solid slab. Backward needs only the
    softmin weights of the three predecessors; without a gradient nothing but three diagonals is kept.
    """

    @staticmethod
    def forward(ctx: Any, cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> Tensor:
        P, T, U = cost_PTU.shape
        # diagonals[d - 2, i - 1, p] = C(i, j) / γ with j = d - i; the skew is a stride, not a gather
        diagonals = cost_PTU.new_empty(T + U - 1, T, P)
        diagonals.as_strided((T, U, P), ((T + 1) * P, T * P, 1)).copy_(cost_PTU.permute(1, 2, 0)).div_(gamma)
        keep = ctx.needs_input_grad[0]
        weights = cost_PTU.new_empty(3, T + U - 1, T, P) if keep else None
        ends = _ends(lengths_P2)
        dist_P = cost_PTU.new_empty(P)
        before, last, now = (cost_PTU.new_full((T + 1, P), torch.inf) for _ in range(3))
        before[0] = 0  # R(0,0), the only finite border
        for d in range(2, T + U + 1):
            lo, hi = max(1, d - U), min(T, d - 1)
            up, left, diag = last[lo - 1 : hi], last[lo : hi + 1], before[lo - 1 : hi]
            least = torch.minimum(torch.minimum(up, left), diag)
            w_up, w_left, w_diag = (torch.sub(least, a).exp_() for a in (up, left, diag))
            total = w_up + w_left
            total += w_diag
            if weights is not None:
                cells = weights[:, d - 2, lo - 1 : hi]
                for k, w in enumerate((w_up, w_left, w_diag)):
                    torch.div(w, total, out=cells[k])
            torch.add(diagonals[d - 2, lo - 1 : hi], least, out=now[lo : hi + 1]).sub_(total.log_())
            now[0] = torch.inf  # R(0,j); R(i,0) lies above hi, where no diagonal has written yet
            if d in ends:
                i_Q, p_Q = ends[d]
                dist_P[p_Q] = now[i_Q, p_Q]
            before, last, now = last, now, before
        if lengths_P2 is None:
            dist_P.copy_(last[T])
        ctx.save_for_backward(*(t for t in (weights, lengths_P2) if t is not None))
        ctx.shape = (P, T, U)
        return dist_P.mul_(gamma)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        P, T, U = ctx.shape
        weights, *rest = ctx.saved_tensors
        # E[d, i, p]: border included, so that what flows out of the matrix (weight 0) needs no special case
        E = weights.new_zeros(T + U + 1, T + 1, P)
        if rest:
            last_i = rest[0][:, 0]
            E[rest[0].sum(1), last_i, torch.arange(P, device=E.device)] = grad_P
        else:
            E[T + U, T] = grad_P
        for d in range(T + U, 1, -1):
            lo, hi = max(1, d - U), min(T, d - 1)
            w_up, w_left, w_diag = weights[:, d - 2, lo - 1 : hi]
            here = E[d, lo : hi + 1]
            E[d - 1, lo - 1 : hi].addcmul_(here, w_up)
            E[d - 1, lo : hi + 1].addcmul_(here, w_left)
            E[d - 2, lo - 1 : hi].addcmul_(here, w_diag)
        row = (T + 1) * P
        cells_TUP = E.as_strided((T, U, P), (row + P, row, 1), storage_offset=2 * row + P)
        return cells_TUP.permute(2, 0, 1).contiguous(), None, None


def _ends(lengths_P2: Tensor | None) -> dict[int, tuple[list[int], list[int]]]:
    """The pairs that end on each anti-diagonal: d -> (their last i, their index p)."""
    ends: dict[int, tuple[list[int], list[int]]] = {}
    for p, (t, u) in enumerate([] if lengths_P2 is None else lengths_P2.tolist()):
        i_Q, p_Q = ends.setdefault(t + u, ([], []))
        i_Q.append(t)
        p_Q.append(p)
    return ends
