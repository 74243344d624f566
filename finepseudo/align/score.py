"""The alignability head f_S, and scores of many videos against a gallery in tiles of bounded memory.

Axes: N videos, G gallery, T U frames of the two sequences, D embedding, K classes, H hidden units of the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finepseudo.align.gallery import Gallery
from finepseudo.align.softdtw import cosine_cost, soft_dtw

Mean = Literal["log_odds", "score"]


class ScoreHead(nn.Module):
    """Alignability S(u, v) = sigmoid(f_S(D(u, v))), a learnable non-linear scaling of the distance.

        S = sigmoid(f_S(D))                                                                       [P]
        f_S(D) = b - Σ_h softplus(a_h) tanh(softplus(w_h) x + c_h),   x = (D - mean) / std        [C]

    Every slope is positive, so f_S strictly decreases: a better alignment never scores lower. `mean` and `std` are
    those of the labelled pairs, set once by `standardise` and then frozen: running ones would depend on the number
    of workers. The start is the same for every seed: about -x near the mean, log-odds in (-2, 2).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"expected hidden >= 1, got {hidden}")
        unit_slope = math.log(math.e - 1)  # softplus of it is 1
        self.slope_H = nn.Parameter(torch.full((hidden,), unit_slope))
        self.centre_H = nn.Parameter(torch.linspace(-2, 2, hidden) if hidden > 1 else torch.zeros(1))
        self.height_H = nn.Parameter(torch.full((hidden,), math.log(math.expm1(2 / hidden))))
        self.bias_1 = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.zeros(()))  # 0 says: not yet standardised
        self._ready = False

    @torch.no_grad()
    def standardise(self, dist: Tensor) -> None:
        """Set mean and deviation, once, from the distances of the labelled pairs (any shape, no self-pairs).

        Raises:
            ValueError: they are set already, or `dist` has fewer than two values, a non-finite or no varying one.
        """
        if float(self.std) > 0:
            raise ValueError("this head is standardised already; make a new ScoreHead for another set of pairs")
        values = dist.double().flatten()
        if values.numel() < 2 or not bool(values.isfinite().all()):
            raise ValueError(
                f"expected at least two finite distances, got {tuple(dist.shape)} with "
                f"{int((~values.isfinite()).sum())} non-finite"
            )
        std = float(values.std())
        if std < 1e-6:
            raise ValueError(f"expected distances that vary, got deviation {std:.1e}; are the embeddings constant?")
        self.mean.fill_(float(values.mean()))
        self.std.fill_(std)

    def forward(self, dist: Tensor) -> Tensor:
        """Log-odds f_S(D) of distances of any shape, in fp32 or the distances' wider type.

        Raises:
            ValueError: the head is not standardised.
        """
        if not self._ready and not float(self.std) > 0:  # asked until it holds once: each question waits for a GPU
            raise ValueError("expected a standardised head; call standardise(dist of the labelled pairs) first")
        self._ready = True
        dtype = torch.promote_types(dist.dtype, torch.float32)
        x = (dist.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype)
        slope_H, height_H = F.softplus(self.slope_H.to(dtype)), F.softplus(self.height_H.to(dtype))
        hidden = torch.tanh(x[..., None] * slope_H + self.centre_H.to(dtype))
        return self.bias_1.to(dtype).squeeze(0) - (hidden * height_H).sum(-1)


@torch.no_grad()
def distances(emb_NTD: Tensor, gallery_GUD: Tensor, *, gamma: float, tile_pairs: int = 4096) -> Tensor:
    """Alignment distances of every video with every gallery member, without a gradient.

    Args:
        emb_NTD: frame embeddings, L2-normalised over D, finite.
        gallery_GUD: frame embeddings of the gallery, same D.
        gamma: γ > 0, in units of the undivided cost.
        tile_pairs: pairs computed at a time; memory is about 2 x tile_pairs x T x U numbers beside the result.
    Returns:
        dist_NG, fp32 or the inputs' wider type.
    Raises:
        ValueError: shapes do not fit, a row is not finite (its numbers are named), or `tile_pairs` < 1.
    """
    dtype = torch.promote_types(torch.promote_types(emb_NTD.dtype, gallery_GUD.dtype), torch.float32)
    dist_NG = torch.empty(len(emb_NTD), len(gallery_GUD), dtype=dtype, device=emb_NTD.device)
    for rows, cols, tile in _tiles(emb_NTD, gallery_GUD, gamma, tile_pairs):
        dist_NG[rows, cols] = tile
    return dist_NG


def class_means(values_NG: Tensor, label_G: Tensor, num_classes: int) -> Tensor:
    """Mean of the values over the gallery members of each class.

        Sbar_c = mean over gallery members a of class c of value(U, a)                            [P]

    Args:
        values_NG: scores or log-odds.
        label_G: int64 classes of the gallery, 0..num_classes-1.
        num_classes: K.
    Returns:
        sbar_NK; -inf for classes without a gallery member.
    Raises:
        ValueError: G differs, or a label is out of range.
    """
    values, label = tuple(values_NG.shape), tuple(label_G.shape)
    if len(values) != 2 or label != values[1:]:
        raise ValueError(f"expected values (N,G) and label (G,), got {values} and {label}")
    member_GK = _members(label_G.to(values_NG.device), num_classes, values_NG.dtype)
    return _divide(_sums(values_NG, member_GK), member_GK)


@torch.no_grad()
def class_scores(
    emb_NTD: Tensor,
    gallery: Gallery,
    head: ScoreHead,
    *,
    gamma: float,
    mean: Mean = "log_odds",
    tile_pairs: int = 4096,
) -> Tensor:
    """Class means of the alignability of every video with the gallery; never holds N x G numbers.

        log_odds:  Sbar_c = mean of f_S(D(U, a)),  a of class c                                   [C]
        score:     Sbar_c = mean of S(U, a),       a of class c                                   [P]

    Args:
        emb_NTD: frame embeddings, L2-normalised over D, finite.
        gallery: the labelled videos; best on the device of `emb_NTD` already.
        head: the standardised score head.
        gamma: γ > 0, in units of the undivided cost.
        mean: what is averaged; the score itself saturates and loses accuracy.
        tile_pairs: pairs computed at a time.
    Returns:
        sbar_NK, fp32 or wider; -inf for classes without a gallery member.
    Raises:
        ValueError: as `distances`, or `mean` is neither of the two.
    """
    gallery_GUD = gallery.emb_GTD.to(emb_NTD.device)
    dtype = torch.promote_types(torch.promote_types(emb_NTD.dtype, gallery_GUD.dtype), torch.float32)
    member_GK = _members(gallery.label_G.to(emb_NTD.device), gallery.num_classes, dtype)
    total_NK = torch.zeros(len(emb_NTD), gallery.num_classes, dtype=dtype, device=emb_NTD.device)
    for rows, cols, tile in _tiles(emb_NTD, gallery_GUD, gamma, tile_pairs):
        total_NK[rows] += _sums(alignability(tile, head, mean), member_GK[cols])
    return _divide(total_NK, member_GK)


def alignability(dist: Tensor, head: ScoreHead, mean: Mean) -> Tensor:
    """What a class mean is taken over: the log-odds f_S(D), or the score S = sigmoid(f_S(D)).

    Raises:
        ValueError: `mean` is neither "log_odds" nor "score".
    """
    if mean == "log_odds":
        return head(dist)
    if mean == "score":
        return head(dist).sigmoid()
    raise ValueError(f'expected mean "log_odds" or "score", got {mean!r}')


def check_finite(emb_NTD: Tensor, name: str) -> None:
    """Raise a ValueError that names the rows of an embedding which hold NaN or infinity."""
    bad = (~emb_NTD.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"expected finite {name} {tuple(emb_NTD.shape)}, got {len(bad)} non-finite rows: {bad[:8]}; "
            "was the encoder's training stable?"
        )


def _tiles(
    emb_NTD: Tensor, gallery_GUD: Tensor, gamma: float, tile_pairs: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    n, g = tuple(emb_NTD.shape), tuple(gallery_GUD.shape)
    if len(n) != 3 or len(g) != 3 or n[2] != g[2] or 0 in n[1:] + g[1:]:
        raise ValueError(f"expected emb (N,T,D) and gallery (G,U,D) with equal D, none empty, got {n} and {g}")
    if tile_pairs < 1:
        raise ValueError(f"expected tile_pairs >= 1, got {tile_pairs}")
    check_finite(emb_NTD, "emb_NTD")
    check_finite(gallery_GUD, "gallery_GUD")
    N, T, _ = n
    G, U, _ = g
    width = min(G, tile_pairs)
    height = max(1, tile_pairs // max(width, 1))
    for row in range(0, N, height):
        query = emb_NTD[row : row + height]
        for col in range(0, G, max(width, 1)):
            part = gallery_GUD[col : col + width]
            flat = cosine_cost(query.flatten(0, 1)[None], part.flatten(0, 1)[None])
            cost = flat.view(len(query), T, len(part), U).transpose(1, 2).reshape(-1, T, U)
            dist = soft_dtw(cost, gamma) / (T + U)
            yield slice(row, row + len(query)), slice(col, col + len(part)), dist.view(len(query), len(part))


def _members(label_G: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    bad = ((label_G < 0) | (label_G >= num_classes)).nonzero().flatten().tolist()
    if bad:
        got = label_G[bad[0]].item()
        raise ValueError(f"expected labels within 0..{num_classes - 1}, got {got} in row {bad[0]} ({len(bad)} bad)")
    return F.one_hot(label_G.long(), num_classes).to(dtype)


def _sums(values_NG: Tensor, member_GK: Tensor) -> Tensor:
    with torch.autocast(values_NG.device.type, enabled=False):
        return values_NG @ member_GK


def _divide(total_NK: Tensor, member_GK: Tensor) -> Tensor:
    count_K = member_GK.sum(0)
    return torch.where(count_K > 0, total_NK / count_K.clamp_min(1), -torch.inf)
