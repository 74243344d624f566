"""How class means and logits become p_A, p_E and p: the paper's mean, or a product whose weights are estimated.

No label of D_u, and nothing of a test video, is looked at. Axes: N unlabelled videos, M neighbours they may have, R
feature spaces, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finepseudo.align import collaborate

NEIGHBOURS = 8
LOWEST, HIGHEST = 0.2, 0.95
"""Estimated accuracies are kept within these: a temperature fitted to more would make labels over-confident."""
ITERATIONS = 100  # of L-BFGS, over two numbers


@dataclass(frozen=True)
class Fusion:
    """Of two nets: their temperatures, and how both become one.

        mean:     p = (p_A + p_E) / 2                                                            [P]
        product:  p ∝ exp(a s Sbar + b f_E(U)),   s by `support`                                 [C]

    Where one net cannot tell two classes and the other can, the product can; a mean is led by the more confident one.
    """

    tau_A: float
    tau_E: float
    pool_A: float | None = None  # a; None: the mean
    pool_E: float | None = None  # b
    low: float = -math.inf  # of `support`: the smallest known-ness of D_u, and how far above it half of D_u are
    reach: float = 1.0
    accuracy_A: float | None = None  # estimated; None where nothing is
    accuracy_E: float | None = None
    accuracy: float | None = None  # of p

    def p_A(self, sbar_NK: Tensor) -> Tensor:  # noqa: N802 the paper's symbol
        return collaborate.p_align(sbar_NK, self.tau_A)

    def p_E(self, logits_NK: Tensor) -> Tensor:  # noqa: N802
        return collaborate.p_video(logits_NK, self.tau_E)

    def p(self, sbar_NK: Tensor, logits_NK: Tensor) -> Tensor:
        """Fused class probabilities p_NK."""
        if self.pool_A is None or self.pool_E is None:
            return collaborate.fuse(self.p_A(sbar_NK), self.p_E(logits_NK))
        a_N1 = self.pool_A * support(sbar_NK, self.low, self.reach)[:, None]
        # a class without a gallery member stays without a label, however little f_A has to say
        return collaborate.p_video(torch.where(sbar_NK.isinf(), sbar_NK, a_N1 * sbar_NK + self.pool_E * logits_NK))


PAPER = Fusion(tau_A=0.5, tau_E=1.0)
"""p = (p_A + p_E) / 2, p_E = softmax(f_E(U)) [P]; τ_A = .5 for log-odds [C]."""


def support(sbar_NK: Tensor, low: float, reach: float) -> Tensor:
    """How far what f_A says of a video may be relied on, (N,): 1 for what is as alignable as D_u, towards 0 below it.

    s = exp(-max(0, low - max_c Sbar_c) / reach)                                             [C]
    """
    return (-(low - collaborate.knownness(sbar_NK)).clamp_min(0) / reach).exp()


@dataclass(frozen=True, eq=False)
class Referees:
    """N videos of D_u, and D_l, as feature spaces see them that no label has shaped: f_A and f_E before stage 2.

    They cannot repeat what f_A and f_E have learned by heart from the same few labels.
    """

    dist_RNM: Sequence[Tensor]  # of each space (N, N + G): to the other videos of D_u, then to D_l
    label_G: Tensor

    def among(self, place_N: Sequence[int]) -> Referees:
        """Those of some videos of D_u."""
        count = self.dist_RNM[0].shape[1] - len(self.label_G)
        real = list(range(count, count + len(self.label_G)))
        rows = torch.tensor(place_N, dtype=torch.int64)
        kept = torch.tensor([*place_N, *real], dtype=torch.int64)
        return Referees([dist_NM[rows][:, kept] for dist_NM in self.dist_RNM], self.label_G)

    def votes(self, label_N: Tensor, agreed_N: Tensor, num_classes: int) -> Tensor:
        """votes_RNK: shares of the classes among a video's nearest neighbours: D_l, and what has an agreed label.  [C]

        Args:
            label_N: labels, read where `agreed_N`; a video is never its own neighbour.
        """
        N = len(label_N)
        class_M = torch.cat([label_N, self.label_G])
        open_NM = torch.cat([agreed_N, torch.ones_like(self.label_G, dtype=torch.bool)]).expand(N, -1).clone()
        open_NM[:, :N].fill_diagonal_(0)
        votes_RNK = torch.zeros(len(self.dist_RNM), N, num_classes, dtype=torch.float64)
        for votes_NK, dist_NM in zip(votes_RNK, self.dist_RNM, strict=True):
            near_NM = dist_NM.masked_fill(~open_NM, torch.inf)
            # The fewest that any video has: of a tiny D_l and no agreement there may be less than NEIGHBOURS.
            dist, place = near_NM.topk(min(NEIGHBOURS, near_NM.shape[1]), largest=False)
            votes_NK.scatter_add_(1, class_M[place], dist.isfinite().double())
        return votes_RNK / votes_RNK.sum(2, keepdim=True).clamp_min(1)


def estimate(sbar_NK: Tensor, logits_NK: Tensor, referees: Referees) -> Fusion:
    """Temperatures and pool of two nets, from what they and the referees say of the same N videos of D_u.      [C]

        v_r: votes of a referee (`Referees.votes`);   q_r: its mean vote for a label on which f_A and f_E agree
        w_r = q_r - (1 - q_r) / (K - 1), how much better than chance it is
        a, b >= 0:  maximise sum over n, r, c of w_r v_rn(c) log p_n(c),   p ∝ exp(a Sbar + b f_E(U))

        acc = root of the lesser of P(f_A = f_E) / (P(f_A = p) P(f_E = p)) and max_r q_r
        acc_A = acc P(f_A = p),   acc_E = acc P(f_E = p)

    over their most likely classes: if f_A and f_E erred independently, P(f_A = f_E) would be acc_A acc_E; and where
    neighbours are of one class, both have its label in acc^2 of the cases, so nets that err together are found out.
    Mean confidences are set to these by τ_A, τ_E, and by one scale of a and b: a referee that errs at random draws
    both towards 0, and neither towards one of the nets.
    """
    sbar_NK = _near(sbar_NK.double())
    logits_NK = _near(logits_NK.double())
    label_A, label_E, K = sbar_NK.argmax(1), logits_NK.argmax(1), sbar_NK.shape[1]
    agreed_N = label_A == label_E
    votes_RNK = referees.votes(label_A, agreed_N, K)
    q_R = _trust(votes_RNK, label_A, agreed_N)
    weight_R = (q_R - (1 - q_R) / max(K - 1, 1)).clamp_min(1e-3)
    a, b = _fit_pool(sbar_NK, logits_NK, (weight_R[:, None, None] * votes_RNK).sum(0) / weight_R.sum())
    z_NK = a * sbar_NK + b * logits_NK
    with_A, with_E = (float((z_NK.argmax(1) == label_N).double().mean()) for label_N in (label_A, label_E))
    acc = math.sqrt(min(float(agreed_N.double().mean()) / max(with_A * with_E, 1e-6), float(q_R.max())))
    acc, acc_A, acc_E = (min(max(value, LOWEST), HIGHEST) for value in (acc, acc * with_A, acc * with_E))
    tau = collaborate.fit_temperature(z_NK, acc)
    known_N = collaborate.knownness(sbar_NK)
    low = float(known_N.min())
    return Fusion(
        tau_A=collaborate.fit_temperature(sbar_NK, acc_A),
        tau_E=collaborate.fit_temperature(logits_NK, acc_E),
        pool_A=a / tau,
        pool_E=b / tau,
        accuracy_A=acc_A,
        accuracy_E=acc_E,
        accuracy=acc,
        low=low,
        reach=max(float(known_N.median()) - low, 1e-6),
    )


def _near(z_NK: Tensor) -> Tensor:
    """Without -inf, which has no place in a fit: far enough below the best class for any purpose."""
    best_N1 = z_NK.max(1, keepdim=True).values
    spread = (best_N1 - z_NK).masked_fill(z_NK.isinf(), 0).max()
    return torch.where(z_NK.isinf(), best_N1 - spread - 1, z_NK)


def _trust(votes_RNK: Tensor, label_N: Tensor, agreed_N: Tensor) -> Tensor:
    """q_R: the mean vote of each referee for the label, where it is agreed on; chance where nothing is."""
    if not bool(agreed_N.any()):
        return torch.full((len(votes_RNK),), 1 / votes_RNK.shape[2], dtype=votes_RNK.dtype)
    index_RN1 = label_N[agreed_N].expand(len(votes_RNK), -1)[..., None]
    return votes_RNK[:, agreed_N].gather(2, index_RN1).mean((1, 2))


def _fit_pool(sbar_NK: Tensor, logits_NK: Tensor, vote_NK: Tensor) -> tuple[float, float]:
    """a, b of `estimate`: convex, in two numbers."""
    scales = [max(float((z_NK - z_NK.mean(1, keepdim=True)).std()), 1e-6) for z_NK in (sbar_NK, logits_NK)]
    A_NK, E_NK = sbar_NK / scales[0], logits_NK / scales[1]
    logs_2 = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([logs_2], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        a, b = logs_2.clamp(-7, 7).exp()
        value = -(vote_NK * (a * A_NK + b * E_NK).log_softmax(1)).sum(1).mean()
        value.backward()  # pyright: ignore[reportUnknownMemberType]
        return value

    solver.step(loss)  # pyright: ignore[reportUnknownMemberType, reportArgumentType]
    a, b = logs_2.detach().clamp(-7, 7).exp().tolist()
    return a / scales[0], b / scales[1]
