"""The alignability head f_S: from alignment distances to scores. Axis H: hidden units of the head."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    def standardise(self, mean: float, std: float) -> None:
        """Set, once, mean and deviation of D over the labelled pairs; both finite, std > 0."""
        if float(self.std) > 0:
            raise ValueError("this head is standardised already; make a new ScoreHead for another set of pairs")
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(f"expected a finite mean and a positive deviation of D, got {mean} and {std}")
        self.mean.fill_(mean)
        self.std.fill_(std)

    def forward(self, dist: Tensor) -> Tensor:
        """Log-odds f_S(D) of distances of any shape, in fp32 or the distances' wider type. Raises as `check_ready`."""
        self.check_ready()
        dtype = torch.promote_types(dist.dtype, torch.float32)
        x = (dist.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype)
        slope_H, height_H = F.softplus(self.slope_H.to(dtype)), F.softplus(self.height_H.to(dtype))
        hidden = torch.tanh(x[..., None] * slope_H + self.centre_H.to(dtype))
        return self.bias_1.to(dtype).squeeze(0) - (hidden * height_H).sum(-1)

    def scaling(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """slope_H, centre_H, height_H, bias with f_S(D) = bias - Σ_h height_h tanh(slope_h D + centre_h), in double."""
        self.check_ready()
        slope_H, height_H = (F.softplus(x.detach().double()) for x in (self.slope_H, self.height_H))
        slope_H = slope_H / self.std.double()
        centre_H = self.centre_H.detach().double() - slope_H * self.mean.double()
        return slope_H, centre_H, height_H, self.bias_1.detach().double().squeeze(0)

    def check_ready(self) -> None:
        if not self._ready and not float(self.std) > 0:  # asked until it holds once: each question waits for a GPU
            raise ValueError("expected a standardised head; call standardise(mean, std) of its pairs' D first")
        self._ready = True


def alignability(dist: Tensor, head: ScoreHead, mean: Mean) -> Tensor:
    """What a class mean is taken over: the log-odds f_S(D), or the score S = sigmoid(f_S(D))."""
    check_mean(mean)
    return head(dist).sigmoid() if mean == "score" else head(dist)


def check_mean(mean: str) -> None:
    if mean not in ("log_odds", "score"):
        raise ValueError(f'expected mean "log_odds" or "score", got {mean!r}')
