"""One autograd function for every kernel that computes values and their gradient together.

Axes: P pairs, T U frames of the two sequences.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Solved = tuple[Tensor, Tensor | None]


class Solve(Protocol):
    """A kernel: R of each pair, and E where the gradient is wanted."""

    def __call__(self, cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None, *, gradient: bool) -> Solved: ...


class Pairs(torch.autograd.Function):
    """R of each pair; dR/dC = E is computed with the values, while they are in the cache, and kept for backward."""

    @staticmethod
    def forward(ctx: Any, cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None, solve: Solve) -> Tensor:
        dist_P, shares_PTU = solve(cost_PTU, gamma, lengths_P2, gradient=ctx.needs_input_grad[0])
        if shares_PTU is not None:
            ctx.save_for_backward(shares_PTU)
        return dist_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (shares_PTU,) = ctx.saved_tensors
        return shares_PTU * grad_P[:, None, None], None, None, None
