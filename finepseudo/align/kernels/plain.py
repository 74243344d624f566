"""Soft-DTW in the exponential domain with torch alone: any device, no compiler.

With K = exp(-C/γ) the recursion is a(i,j) = K(i,j) (a(i-1,j) + a(i,j-1) + a(i-1,j-1)), R = -γ log a(T,U): one
exponential a cell, off the critical path, and sums of positive numbers. A pair whose a(T,U) passes the comparison of
docs/alignment.md is proven right; the others are computed in the log domain.

Axes: P pairs, N videos, G gallery, T U frames of the two sequences, D embedding, K classes. A diagonal is [i, p].
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from finepseudo.align.head import Mean, ScoreHead, alignability
from finepseudo.align.kernels import reference
from finepseudo.align.kernels.gradient import Pairs, Solved
from finepseudo.align.kernels.memory import free_bytes

LOG_SMALLEST, LOG_LARGEST = math.log(2.0**-1021), math.log(2.0**1023)
LOG_PATHS = math.log(1 + math.sqrt(2))  # Delannoy(m, n) <= (1 + √2)^(m + n)
TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-13}
WIDEST = 4096  # R/γ up to which single precision keeps the weights of the log domain to 1e-3
TILE_PAIRS = 2048  # more pairs at a time are no faster on a CPU: their diagonals leave the cache


def soft_dtw(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> Tensor:
    """`softdtw.soft_dtw` of checked arguments; cells outside the lengths hold finite costs."""
    return Pairs.apply(cost_PTU, gamma, lengths_P2, _solve)


def log_bound(T: int, U: int, slack: float, tolerance: float) -> float:
    """What log a(T,U) must exceed for one comparison to prove it.

        log(2^-1021) - log tolerance + log 3TU + (T + U - 2) log(1 + √2) + slack                  [C]

    Args:
        T: frames of the one sequence.
        U: frames of the other.
        slack: (T + U)/γ times how far costs go below 0.
        tolerance: relative error of a(T,U) that is proven.
    """
    return LOG_SMALLEST - math.log(tolerance) + math.log(3 * T * U) + LOG_PATHS * (T + U - 2) + slack


def _solve(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None, *, gradient: bool) -> Solved:
    P, T, U = cost_PTU.shape
    dist_P = cost_PTU.new_empty(P)
    shares_PTU = torch.zeros_like(cost_PTU) if gradient else None
    if P == 0:
        return dist_P, shares_PTU
    slack_P = (-cost_PTU.flatten(1).amin(1)).clamp_min(0).double() * ((T + U) / gamma)
    bound_P = log_bound(T, U, 0, TOLERANCE[cost_PTU.dtype]) + slack_P
    # the straight path alone, and a little for all others: a guess, it decides who is tried, not who is right
    guess_P = (T + U) / 8 - _straight(cost_PTU, lengths_P2).double() / gamma
    tried_P = (guess_P > bound_P) & (slack_P <= 1)
    if gradient and LOG_PATHS * (T + U - 2) + 1 > LOG_LARGEST:  # b could leave the range where a does not
        tried_P = torch.zeros_like(tried_P)
    tried = tried_P.nonzero().flatten()
    proven_P = torch.zeros(P, dtype=torch.bool, device=cost_PTU.device)
    if len(tried):
        one, proven_P[tried] = _step_one(*_take(cost_PTU, lengths_P2, tried), gamma, bound_P[tried], gradient=gradient)
        _put(one, tried, dist_P, shares_PTU)
    rest = (~proven_P).nonzero().flatten()
    if len(rest):
        _put(_log_domain(*_take(cost_PTU, lengths_P2, rest), gamma, gradient=gradient), rest, dist_P, shares_PTU)
    return dist_P, shares_PTU


def _take(cost_PTU: Tensor, lengths_P2: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    if len(rows) == len(cost_PTU):
        return cost_PTU.detach(), lengths_P2
    return cost_PTU.detach()[rows], None if lengths_P2 is None else lengths_P2[rows]


def _put(solved: Solved, rows: Tensor, dist_P: Tensor, shares_PTU: Tensor | None) -> None:
    dist_P[rows] = solved[0].to(dist_P.dtype)
    if shares_PTU is not None and solved[1] is not None:
        shares_PTU[rows] = solved[1].to(shares_PTU.dtype)


def _straight(cost_PTU: Tensor, lengths_P2: Tensor | None) -> Tensor:
    """Cost of the path nearest to the diagonal."""
    P, T, U = cost_PTU.shape
    steps = torch.linspace(0, 1, max(T, U), device=cost_PTU.device)
    if lengths_P2 is None:
        return cost_PTU[:, (steps * (T - 1)).round().long(), (steps * (U - 1)).round().long()].sum(1)
    i_PL, j_PL = ((steps * (lengths_P2[:, k, None] - 1)).round().long() for k in (0, 1))
    return cost_PTU[torch.arange(P, device=cost_PTU.device)[:, None], i_PL, j_PL].sum(1)


def _step_one(
    cost_PTU: Tensor, lengths_P2: Tensor | None, gamma: float, bound_P: Tensor, *, gradient: bool
) -> tuple[Solved, Tensor]:
    """R, E, and which pairs are proven."""
    P, T, U = cost_PTU.shape
    K = _kernel(cost_PTU, gamma, lengths_P2)
    diagonals, end_P = _forward(K, T, U, None if lengths_P2 is None else lengths_P2.T, keep=gradient)
    log_P = end_P.log()
    proven_P = log_P.isfinite() & (log_P > bound_P)  # NaN is not, nor what an infinite cost makes of the bound
    if diagonals is None:
        return (-gamma * log_P, None), proven_P
    ends_2P = torch.tensor([[T], [U]], device=K.device).expand(2, P) if lengths_P2 is None else lengths_P2.T
    return (-gamma * log_P, _shares(K, diagonals, end_P, ends_2P, T, U)), proven_P


def _log_domain(cost_PTU: Tensor, lengths_P2: Tensor | None, gamma: float, *, gradient: bool) -> Solved:
    """The reference; in double where R/γ leaves single precision too few digits for the weights."""
    _, T, U = cost_PTU.shape
    if not float(cost_PTU.abs().amax()) * (T + U) < WIDEST * gamma:
        cost_PTU = cost_PTU.double()
    with torch.enable_grad():
        cost = cost_PTU.detach().requires_grad_(gradient)
        dist = reference.soft_dtw(cost, gamma, lengths_P2)
        return dist.detach(), torch.autograd.grad(dist.sum(), cost)[0] if gradient else None


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


def _forward(K: Tensor, T: int, U: int, ends_2P: Tensor | None, *, keep: bool) -> tuple[Tensor | None, Tensor]:
    """a of every cell by anti-diagonals, [T + U + 1, T + 1, P] with borders, if kept; and a at the end of each pair."""
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
    return a if keep else None, end_P


def _shares(K: Tensor, diagonals: Tensor, z_P: Tensor, ends_2P: Tensor, T: int, U: int) -> Tensor:
    """E(i,j) = a(i,j) b(i,j) / a(T,U), b the same recursion from the other end; dense, [P, T, U]."""
    P = K.shape[2]
    kb = K.new_zeros(T + U + 3, T + 2, P)  # K b of every cell; two borders after the last row and column
    shares = K.new_zeros(T + U + 1, T + 1, P)
    for d in range(T + U, 1, -1):
        lo, hi = max(1, d - U), min(T, d - 1)
        b = kb[d + 1, lo + 1 : hi + 2] + kb[d + 1, lo : hi + 1]
        b += kb[d + 2, lo + 1 : hi + 2]
        here = (ends_2P.sum(0) == d).nonzero().flatten()
        b[ends_2P[0, here] - lo, here] += 1
        torch.mul(b, K[d - 2, lo - 1 : hi], out=kb[d, lo : hi + 1])
        torch.mul(b, diagonals[d, lo : hi + 1], out=shares[d, lo : hi + 1])
    shares /= z_P
    row = (T + 1) * P
    cells_TUP = shares.as_strided((T, U, P), (row + P, row, 1), storage_offset=2 * row + P)
    return cells_TUP.permute(2, 0, 1).contiguous()


class Rows:
    """A gallery as it is, scored in tiles of pairs that fit the free memory."""

    solve = staticmethod(soft_dtw)

    def __init__(self, gallery_GUD: Tensor) -> None:
        self.gallery_GUD = gallery_GUD

    def distances(self, emb_NTD: Tensor, gamma: float) -> Tensor:
        """`score.distances` of checked arguments."""
        dist_NG = emb_NTD.new_empty(len(emb_NTD), len(self.gallery_GUD))
        for rows, cols, tile in self._tiles(emb_NTD, gamma):
            dist_NG[rows, cols] = tile
        return dist_NG

    def class_sums(
        self, emb_NTD: Tensor, gamma: float, label_G: Tensor, num_classes: int, head: ScoreHead, *, mean: Mean
    ) -> Tensor:
        """Sums over each class's members of f_S(D), or of its sigmoid; [N, K] in double."""
        total_NK = torch.zeros(len(emb_NTD), num_classes, dtype=torch.float64, device=emb_NTD.device)
        for rows, cols, tile in self._tiles(emb_NTD, gamma):
            values = alignability(tile, head, mean).double()
            total_NK[rows] = total_NK[rows].index_add(1, label_G[cols], values)
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
                dist = self.solve(cost_PTU, gamma, None) / (T + U)
                yield slice(row, row + len(query)), slice(col, col + len(part)), dist.view(len(query), len(part))


def tile_pairs(T: int, U: int, device: torch.device) -> int:
    """Pairs of a tile: a sixteenth of the free memory at 32 bytes a cell, and no more than are of use."""
    most = TILE_PAIRS if device.type == "cpu" else 16 * TILE_PAIRS
    return max(1, min(most, free_bytes(device) // 16 // (32 * T * U)))
