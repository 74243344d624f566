"""The alignability head f_S, and scores of many videos against a gallery, of which no more than a tile is ever held.

Axes: N videos, G gallery, T U frames of the two sequences, D embedding, K classes, H hidden units of the head.
"""

from __future__ import annotations

import logging
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finepseudo.align import kernels
from finepseudo.align.gallery import Gallery
from finepseudo.align.kernels.memory import free_bytes
from finepseudo.align.softdtw import check_gamma

log = logging.getLogger("finepseudo")

SLICE_NUMBERS = 2**22
"""Of a gallery, laid out at a time by `distances`: 16 MiB."""

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
        self._check_ready()
        dtype = torch.promote_types(dist.dtype, torch.float32)
        x = (dist.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype)
        slope_H, height_H = F.softplus(self.slope_H.to(dtype)), F.softplus(self.height_H.to(dtype))
        hidden = torch.tanh(x[..., None] * slope_H + self.centre_H.to(dtype))
        return self.bias_1.to(dtype).squeeze(0) - (hidden * height_H).sum(-1)

    def scaling(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """slope_H, centre_H, height_H, bias with f_S(D) = bias - Σ_h height_h tanh(slope_h D + centre_h), in double.

        Raises:
            ValueError: the head is not standardised.
        """
        self._check_ready()
        slope_H, height_H = (F.softplus(x.detach().double()) for x in (self.slope_H, self.height_H))
        slope_H = slope_H / self.std.double()
        centre_H = self.centre_H.detach().double() - slope_H * self.mean.double()
        return slope_H, centre_H, height_H, self.bias_1.detach().double().squeeze(0)

    def _check_ready(self) -> None:
        if not self._ready and not float(self.std) > 0:  # asked until it holds once: each question waits for a GPU
            raise ValueError("expected a standardised head; call standardise(dist of the labelled pairs) first")
        self._ready = True


@torch.no_grad()
def distances(emb_NTD: Tensor, gallery_GUD: Tensor, gamma: float) -> Tensor:
    """Alignment distances of every video with every gallery member, without a gradient.

    Args:
        emb_NTD: frame embeddings, L2-normalised over D, finite.
        gallery_GUD: frame embeddings of the gallery, same D and device.
        gamma: γ > 0, in units of the undivided cost.
    Returns:
        dist_NG, fp32 or the inputs' wider type; nothing else of size N x G is held.
    Raises:
        ValueError: shapes do not fit, γ is not positive, or a row is not finite (its numbers are named).
    """
    check_gamma(gamma)
    _check_emb(emb_NTD, tuple(gallery_GUD.shape))
    check_finite(gallery_GUD, "gallery_GUD")
    dtype = torch.promote_types(torch.promote_types(gallery_GUD.dtype, emb_NTD.dtype), torch.float32)
    emb_NTD = emb_NTD.to(dtype)
    dist_NG = emb_NTD.new_empty(len(emb_NTD), len(gallery_GUD))
    members = max(1, SLICE_NUMBERS // gallery_GUD[0].numel())
    for first in range(0, len(gallery_GUD), members):  # each slice is laid out for the kernel, and forgotten
        part = kernels.rows(gallery_GUD[first : first + members].to(dtype))
        dist_NG[:, first : first + members] = part.distances(emb_NTD, float(gamma))
    return dist_NG


class ClassScorer:
    """Class means of the alignability of videos with one gallery, which is prepared once: what a scoring actor holds.

        log_odds:  Sbar_c = mean of f_S(D(U, a)),  a of class c                                   [C]
        score:     Sbar_c = mean of S(U, a),       a of class c                                   [P]

    A gallery that does not fit a quarter of the device's free memory stays where it is and is brought over in slices,
    one after the other, at every call; sums are kept in double, so the result is the same within rounding.
    """

    def __init__(
        self,
        gallery: Gallery,
        head: ScoreHead,
        *,
        gamma: float,
        mean: Mean = "log_odds",
        device: torch.device | str = "cpu",
        slice_rows: int | None = None,
    ) -> None:
        """
        Args:
            gallery: the labelled videos, on any device.
            head: the standardised score head, on `device`.
            gamma: γ > 0, in units of the undivided cost.
            mean: what is averaged; the score itself saturates and loses accuracy.
            device: where videos are scored.
            slice_rows: gallery members at a time; None: by free memory.
        Raises:
            ValueError: γ is not positive, `mean` is neither of the two, or `slice_rows` < 1.
        """
        check_gamma(gamma)
        if mean not in ("log_odds", "score"):
            raise ValueError(f'expected mean "log_odds" or "score", got {mean!r}')
        self.head, self.gamma, self.mean, self.device = head, gamma, mean, torch.device(device)
        if slice_rows is None:
            slice_rows = _slice_rows(gallery.emb_GTD, self.device)
        elif slice_rows < 1:
            raise ValueError(f"expected slice_rows >= 1, got {slice_rows}")
        order = torch.argsort(gallery.label_G, stable=True).tolist()  # by class: what a GPU kernel walks along
        self._slices = gallery.take(order).slices(-(-len(gallery) // slice_rows))
        self._count_K = torch.tensor(gallery.counts(), device=self.device)
        self._resident = None
        if len(self._slices) == 1:
            self._resident = self._prepare(self._slices[0])
        else:
            log.info("gallery of %d is scored in %d slices: memory of %s", len(gallery), len(self._slices), self.device)

    def _prepare(self, part: Gallery) -> kernels.Rows:
        return kernels.rows(part.emb_GTD.detach().to(self.device, torch.float32))

    @torch.no_grad()
    def __call__(self, emb_NTD: Tensor) -> Tensor:
        """Class means of N videos.

        Args:
            emb_NTD: frame embeddings on the device, L2-normalised over D, finite.
        Returns:
            sbar_NK, fp32; -inf for classes without a gallery member.
        Raises:
            ValueError: shapes do not fit, or a row is not finite (its numbers are named).
        """
        _check_emb(emb_NTD, tuple(self._slices[0].emb_GTD.shape))
        K = len(self._count_K)
        total_NK = torch.zeros(len(emb_NTD), K, dtype=torch.float64, device=self.device)
        for part in self._slices:
            rows = self._resident or self._prepare(part)
            label_G = part.label_G.to(self.device)
            total_NK += rows.class_sums(emb_NTD.float(), self.gamma, label_G, K, self.head, score=self.mean == "score")
        sbar_NK = total_NK / self._count_K.clamp_min(1)
        return torch.where(self._count_K > 0, sbar_NK, -torch.inf).float()


def class_scores(
    emb_NTD: Tensor, gallery: Gallery, head: ScoreHead, *, gamma: float, mean: Mean = "log_odds"
) -> Tensor:
    """`ClassScorer` for one call, on the device of `emb_NTD`."""
    return ClassScorer(gallery, head, gamma=gamma, mean=mean, device=emb_NTD.device)(emb_NTD)


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
    if not len(emb_NTD):
        return
    low_N, high_N = emb_NTD.flatten(1).aminmax(dim=1)  # NaN passes through both; no copy of the embeddings is made
    bad = (~(low_N.isfinite() & high_N.isfinite())).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"expected finite {name} {tuple(emb_NTD.shape)}, got {len(bad)} non-finite rows: {bad[:8]}; "
            "was the encoder's training stable?"
        )


def _slice_rows(gallery_GTD: Tensor, device: torch.device) -> int:
    """Members that fit a quarter of the free memory twice: as they come, and as they are laid out."""
    each = 2 * 4 * gallery_GTD[0].numel()
    return max(1, min(len(gallery_GTD), free_bytes(device) // 4 // each))


def _check_emb(emb_NTD: Tensor, g: tuple[int, ...]) -> None:
    n = tuple(emb_NTD.shape)
    if len(n) != 3 or len(g) != 3 or n[2] != g[2] or 0 in n[1:] + g:
        raise ValueError(
            f"expected emb_NTD (N,T,D) and gallery_GUD (G,U,D) with equal D, T and a gallery that is not empty, "
            f"got {n} and {g}"
        )
    check_finite(emb_NTD, "emb_NTD")
