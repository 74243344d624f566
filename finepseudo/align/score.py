"""Distances and class scores of many videos against a gallery, of whose costs no more than a tile is ever held.

Axes: N videos, G gallery, M nearest members, T U frames of the two sequences, D embedding, K classes.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from finepseudo.align import kernels
from finepseudo.align.gallery import Gallery
from finepseudo.align.head import Mean, ScoreHead, check_mean
from finepseudo.align.kernels.memory import free_bytes
from finepseudo.align.softdtw import check_gamma

log = logging.getLogger("finepseudo")

SLICE_NUMBERS = 2**20  # of a gallery, laid out at a time by `distances`: 4 MiB
WHOLE = 128  # members of which a slice is a multiple: fewer than a kernel's block would cost as much as a whole one


@torch.no_grad()
def distances(emb_NTD: Tensor, gallery_GUD: Tensor, gamma: float) -> Tensor:
    """Alignment distances dist_NG of every video with every gallery member, without a gradient.

    Args:
        emb_NTD: frame embeddings, finite, L2-normalised over D (not checked: the cost is 1 - <u,v>).
        gallery_GUD: frame embeddings of the gallery, same D and device.
        gamma: γ > 0, in units of the undivided cost.
    Returns fp32 or the inputs' wider type; nothing else of size N x G is held.
    Raises ValueError where shapes do not fit, γ is not positive, or a row is not finite (its numbers are named).
    """
    check_gamma(gamma)
    _check_emb(emb_NTD, tuple(gallery_GUD.shape))
    _check_finite(gallery_GUD, "gallery_GUD")
    dtype = torch.promote_types(torch.promote_types(gallery_GUD.dtype, emb_NTD.dtype), torch.float32)
    emb_NTD = emb_NTD.to(dtype)
    dist_NG = emb_NTD.new_empty(len(emb_NTD), len(gallery_GUD))
    members = max(1, SLICE_NUMBERS // gallery_GUD[0].numel() // WHOLE) * WHOLE
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
    ) -> None:
        """
        Args:
            gallery: the labelled videos, on any device.
            head: the standardised score head, on `device`.
            gamma: γ > 0, in units of the undivided cost.
            mean: what is averaged; the score itself saturates and loses accuracy.
            device: where videos are scored.
        Raises ValueError where γ is not positive, the head is not standardised, or `mean` is neither of the two.
        """
        check_gamma(gamma)
        head.check_ready()
        check_mean(mean)
        self.head, self.gamma, self.device = head, gamma, torch.device(device)
        self.mean: Mean = mean
        order = torch.argsort(gallery.label_G, stable=True).tolist()  # by class: what a GPU kernel walks along
        slices = gallery.take(order).slices(-(-len(gallery) // _slice_rows(gallery.emb_GTD, self.device)))
        self._shape = tuple(gallery.emb_GTD.shape)
        self._row_G = torch.tensor(order, device=self.device)
        self._count_K = torch.tensor(gallery.counts(), device=self.device)
        self._resident = [self._lay_out(slices[0])] if len(slices) == 1 else []
        self._slices = () if self._resident else slices
        if self._slices:
            log.info("gallery of %d is scored in %d slices: memory of %s", len(gallery), len(slices), self.device)

    def _lay_out(self, part: Gallery) -> tuple[kernels.Rows, Tensor]:
        rows = kernels.rows(part.emb_GTD.detach().to(self.device, torch.float32))
        return rows, part.label_G.to(self.device)

    @torch.no_grad()
    def __call__(self, emb_NTD: Tensor) -> Tensor:
        """Class means sbar_NK, fp32; -inf for classes without a gallery member.

        Args:
            emb_NTD: frame embeddings on the device, L2-normalised over D, finite.
        Raises ValueError where shapes do not fit, or a row is not finite (its numbers are named).
        """
        _check_emb(emb_NTD, self._shape)
        N, K = len(emb_NTD), len(self._count_K)
        total_NK = torch.zeros(N, K, dtype=torch.float64, device=self.device)
        for rows, label_G in self._resident or map(self._lay_out, self._slices):
            total_NK += rows.class_sums(emb_NTD.float(), self.gamma, label_G, K, self.head, mean=self.mean)
        sbar_NK = total_NK / self._count_K.clamp_min(1)
        return torch.where(self._count_K > 0, sbar_NK, -torch.inf).float()

    @torch.no_grad()
    def nearest(self, emb_NTD: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The members that align best with each video: member_NM, their rows in the gallery, and S(U, a), best first.

        Args:
            emb_NTD: as of a call.
            count: M, or all of a smaller gallery.
        Raises as a call.
        """
        _check_emb(emb_NTD, self._shape)
        dist_NM, member_NM = emb_NTD.new_empty(len(emb_NTD), 0).float(), self._row_G.new_empty(len(emb_NTD), 0)
        first = 0
        for rows, label_G in self._resident or map(self._lay_out, self._slices):
            here_G = self._row_G[first : first + len(label_G)]
            first += len(label_G)
            dist_NM = torch.cat([dist_NM, rows.distances(emb_NTD.float(), self.gamma)], 1)
            member_NM = torch.cat([member_NM, here_G.expand(len(emb_NTD), -1)], 1)
            dist_NM, place_NM = dist_NM.topk(min(count, dist_NM.shape[1]), largest=False)
            member_NM = member_NM.gather(1, place_NM)
        return member_NM, self.head(dist_NM).sigmoid()


def class_scores(
    emb_NTD: Tensor, gallery: Gallery, head: ScoreHead, *, gamma: float, mean: Mean = "log_odds"
) -> Tensor:
    """`ClassScorer` for one call, on the device of `emb_NTD`."""
    return ClassScorer(gallery, head, gamma=gamma, mean=mean, device=emb_NTD.device)(emb_NTD)


def _check_finite(emb_NTD: Tensor, name: str) -> None:
    if not emb_NTD.is_floating_point():
        raise ValueError(f"expected floating-point {name} {tuple(emb_NTD.shape)}, got {emb_NTD.dtype}")
    # the norm is not finite if a number is not: one pass and no copy; it may also overflow, hence the second look
    if bool(torch.linalg.vector_norm(emb_NTD, dtype=torch.promote_types(emb_NTD.dtype, torch.float32)).isfinite()):
        return
    bad = (~emb_NTD.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"expected finite {name} {tuple(emb_NTD.shape)}, got {len(bad)} non-finite rows: {bad[:8]}; "
            "was the encoder's training stable?"
        )


def _slice_rows(gallery_GTD: Tensor, device: torch.device) -> int:
    """Members that fit a quarter of the free memory twice: as they come, and as they are laid out."""
    each = 2 * 4 * gallery_GTD[0].numel()
    return max(WHOLE, min(len(gallery_GTD), free_bytes(device) // 4 // each))


def _check_emb(emb_NTD: Tensor, g: tuple[int, ...]) -> None:
    n = tuple(emb_NTD.shape)
    if len(n) != 3 or len(g) != 3 or n[2] != g[2] or 0 in n[1:] + g:
        raise ValueError(
            f"expected emb_NTD (N,T,D) and gallery_GUD (G,U,D) with equal D, T and a gallery that is not empty, "
            f"got {n} and {g}"
        )
    _check_finite(emb_NTD, "emb_NTD")
