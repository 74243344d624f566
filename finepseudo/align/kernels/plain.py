"""Soft-DTW in the exponential domain with torch alone: any device, no compiler.

With K = exp(-C/γ) the recursion is a(i,j) = K(i,j) (a(i-1,j) + a(i,j-1) + a(i-1,j-1)), R = -γ log a(T,U): one
exponential a cell, off the critical path, and sums of positive numbers. A pair whose a(T,U) passes the comparison of
docs/alignment.md is proven right; the others are computed in the log domain.

Axes: P pairs, N videos, G gallery, T U frames of the two sequences, D embedding, K classes. A diagonal is [i, p].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finepseudo.align.kernels import reference
from finepseudo.align.kernels.gradient import Pairs
from finepseudo.align.kernels.memory import free_bytes

if TYPE_CHECKING:
    from finepseudo.align.score import ScoreHead

LOG_SMALLEST = math.log(2.0**-1021)
TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-13}
TILE_PAIRS = 2048  # more pairs at a time are no faster on a CPU: their diagonals leave the cache


def soft_dtw(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> Tensor:
    """`softdtw.soft_dtw` of checked arguments; cells outside the lengths hold finite costs."""
    return Pairs.apply(cost_PTU, gamma, lengths_P2, _solve)


def log_bound(T: int, U: int, slack: float, tolerance: float) -> float:
    """What log a(T,U) must exceed for one comparison to prove it.

        log(2^-1021) - log tolerance + log 3TU + (T + U - 2) log(1 + √2) + slack                  [A]

    Args:
        T: frames of the one sequence.
        U: frames of the other.
        slack: (T + U)/γ times how far costs go below 0.
        tolerance: relative error of a(T,U) that is proven.
    """
    paths = (T + U - 2) * math.log(1 + math.sqrt(2))
    return LOG_SMALLEST - math.log(tolerance) + math.log(3 * T * U) + paths + slack


def _solve(
    cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    P, T, U = cost_PTU.shape
    if P == 0:
        return cost_PTU.new_empty(0), torch.zeros_like(cost_PTU) if gradient else None
    ends_2P = lengths_P2.T if lengths_P2 is not None else torch.tensor([[T], [U]], device=cost_PTU.device).expand(2, P)
    K = _kernel(cost_PTU, gamma, lengths_P2)
    a = _forward(K, T, U, ends_2P if lengths_P2 is not None else None, keep=gradient)
    z_P = a.end_P
    slack_P = (-cost_PTU.flatten(1).min(1).values).clamp_min(0).double() * ((T + U) / gamma)
    bound = log_bound(T, U, 0, TOLERANCE[cost_PTU.dtype])
    proven_P = z_P.isfinite() & (z_P.log() > bound + slack_P)  # NaN and an infinite cost's NaN are not
    dist_P = (-gamma * z_P.log()).to(cost_PTU.dtype)
    shares_PTU = _shares(K, a, z_P, ends_2P, T, U).to(cost_PTU.dtype) if gradient else None
    rest = (~proven_P).nonzero().flatten()
    if len(rest):
        with torch.enable_grad():
            cost = cost_PTU.detach()[rest].double().requires_grad_(gradient)  # R/γ may need more than 24 bits
            dist = reference.soft_dtw(cost, gamma, None if lengths_P2 is None else lengths_P2[rest])
            if shares_PTU is not None:
                shares_PTU[rest] = torch.autograd.grad(dist.sum(), cost)[0].to(shares_PTU.dtype)
        dist_P[rest] = dist.detach().to(dist_P.dtype)
    return dist_P, shares_PTU


@dataclass(frozen=True)
class _Forward:
    diagonals: Tensor | None  # [T + U + 1, T + 1, P]: a(i, d - i), borders included
    end_P: Tensor


def _kernel(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> Tensor:
    """exp(-C/γ) in double by anti-diagonals: K[d - 2, i - 1, p] for cell (i, d - i), 0 outside the lengths."""
    P, T, U = cost_PTU.shape
    K_PTU = torch.exp(cost_PTU / -gamma).double()
    # single precision ends at e^-87: what is below needs a wider exponential
    if cost_PTU.dtype == torch.float32 and float(cost_PTU.max()) > 80 * gamma:
        K_PTU = torch.exp(cost_PTU.double() / -gamma)
    if lengths_P2 is not None:
        t, u = torch.arange(T, device=K_PTU.device), torch.arange(U, device=K_PTU.device)
        K_PTU = K_PTU * ((t[:, None] < lengths_P2[:, :1, None]) & (u < lengths_P2[:, 1:, None]))
    K = K_PTU.new_zeros(T + U - 1, T, P)
    K.as_strided((T, U, P), ((T + 1) * P, T * P, 1)).copy_(K_PTU.permute(1, 2, 0))
    return K


def _forward(K: Tensor, T: int, U: int, ends_2P: Tensor | None, *, keep: bool) -> _Forward:
    P = K.shape[2]
    a = K.new_zeros(T + U + 1 if keep else 3, T + 1, P)
    a[0, 0] = 1
    end_P = K.new_zeros(P)
    for d in range(2, T + U + 1):
        lo, hi = max(1, d - U), min(T, d - 1)
        now, last, before = (a[k if keep else k % 3] for k in (d, d - 1, d - 2))
        torch.add(last[lo - 1 : hi], last[lo : hi + 1], out=now[lo : hi + 1])
        now[lo : hi + 1].add_(before[lo - 1 : hi]).mul_(K[d - 2, lo - 1 : hi])
        now[:lo] = 0
        now[hi + 1 :] = 0
        if ends_2P is not None:
            here = (ends_2P.sum(0) == d).nonzero().flatten()
            end_P[here] = now[ends_2P[0, here], here]
    if ends_2P is None:
        end_P = a[T + U if keep else (T + U) % 3, T].clone()
    return _Forward(a if keep else None, end_P)


def _shares(K: Tensor, forward: _Forward, z_P: Tensor, ends_2P: Tensor, T: int, U: int) -> Tensor:
    """E(i,j) = a(i,j) b(i,j) / a(T,U), b the same recursion from the other end; dense, [P, T, U]."""
    P = K.shape[2]
    assert forward.diagonals is not None
    kb = K.new_zeros(T + U + 3, T + 2, P)  # K b of every cell; two borders after the last row and column
    shares = K.new_zeros(T + U + 1, T + 1, P)
    for d in range(T + U, 1, -1):
        lo, hi = max(1, d - U), min(T, d - 1)
        b = kb[d + 1, lo + 1 : hi + 2] + kb[d + 1, lo : hi + 1]
        b += kb[d + 2, lo + 1 : hi + 2]
        here = (ends_2P.sum(0) == d).nonzero().flatten()
        b[ends_2P[0, here] - lo, here] += 1
        torch.mul(b, K[d - 2, lo - 1 : hi], out=kb[d, lo : hi + 1])
        torch.mul(b, forward.diagonals[d, lo : hi + 1], out=shares[d, lo : hi + 1])
    shares /= z_P
    row = (T + 1) * P
    cells_TUP = shares.as_strided((T, U, P), (row + P, row, 1), storage_offset=2 * row + P)
    return cells_TUP.permute(2, 0, 1).contiguous()


class Rows:
    """A gallery as it is, scored in tiles of pairs that fit the free memory."""

    def __init__(self, gallery_GUD: Tensor) -> None:
        self.gallery_GUD = gallery_GUD

    def distances(self, emb_NTD: Tensor, gamma: float) -> Tensor:
        """`score.distances` of checked arguments."""
        dist_NG = emb_NTD.new_empty(len(emb_NTD), len(self.gallery_GUD))
        for rows, cols, tile in self._tiles(emb_NTD, gamma):
            dist_NG[rows, cols] = tile
        return dist_NG

    def class_sums(
        self, emb_NTD: Tensor, gamma: float, label_G: Tensor, num_classes: int, head: ScoreHead, *, score: bool
    ) -> Tensor:
        """Sums over each class's members of f_S(D), or of its sigmoid; [N, K] in double."""
        total_NK = torch.zeros(len(emb_NTD), num_classes, dtype=torch.float64, device=emb_NTD.device)
        for rows, cols, tile in self._tiles(emb_NTD, gamma):
            values = head(tile).sigmoid() if score else head(tile)
            total_NK[rows] = total_NK[rows].index_add(1, label_G[cols], values.double())
        return total_NK

    def _tiles(self, emb_NTD: Tensor, gamma: float) -> Iterator[tuple[slice, slice, Tensor]]:
        N, T, D = emb_NTD.shape
        G, U, _ = self.gallery_GUD.shape
        pairs = tile_pairs(T, U, emb_NTD.device)
        width = max(1, min(G, pairs))
        height = max(1, pairs // width)
        for row in range(0, N, height):
            query = emb_NTD[row : row + height]
            for col in range(0, G, width):
                part = self.gallery_GUD[col : col + width]
                with torch.autocast(query.device.type, enabled=False):  # it would take the product in half precision
                    cost = 1 - query.reshape(-1, D) @ part.reshape(-1, D).T
                cost_PTU = cost.view(len(query), T, len(part), U).transpose(1, 2).reshape(-1, T, U)
                dist = soft_dtw(cost_PTU, gamma, None) / (T + U)
                yield slice(row, row + len(query)), slice(col, col + len(part)), dist.view(len(query), len(part))


def tile_pairs(T: int, U: int, device: torch.device) -> int:
    """Pairs of a tile: a sixteenth of the free memory at 32 bytes a cell, and no more than are of use."""
    most = TILE_PAIRS if device.type == "cpu" else 16 * TILE_PAIRS
    return max(1, min(most, free_bytes(device) // 16 // (32 * T * U)))
