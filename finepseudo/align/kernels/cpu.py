"""The C++ kernel: pairs, the training block and gallery scoring on the CPU.

Axes: B block, P pairs (of a block: i <= j, its upper triangle row by row), N videos, G gallery, T U frames of the two
sequences, D embedding, K classes.
"""

from __future__ import annotations

import json
import math
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finepseudo.align.head import Mean, ScoreHead
from finepseudo.align.kernels.gradient import Pairs, Solved
from finepseudo.align.kernels.sources import source_digest

HERE = Path(__file__).parent
EXT_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
BUILD = (
    "with a C++ compiler and torch installed, run "
    "pip install --no-build-isolation --no-deps --force-reinstall -e . in the source tree"
)
LANES = 16
PANEL_COLUMNS = 1024  # of a matrix product: its result stays in the second-level cache until it is used


def available() -> bool:
    """Whether the extension was built from the sources beside this module; loads it when first asked."""
    return not missing()


@cache
def missing() -> str:
    """Why the kernel cannot run, and what to do; empty if it can. Loads it."""
    digest = source_digest(HERE, torch.__version__).encode()
    stale = ""
    for folder in _folders():
        library = folder / f"_cpu{EXT_SUFFIX}"
        if not library.is_file():
            continue
        if digest in library.read_bytes():  # before it is loaded: two of them in one process would clash
            torch.ops.load_library(str(library))
            return ""
        stale = stale or f"slower: {library} was built from other sources or for another torch; {BUILD}"
    return stale or f"slower: the C++ kernel was not built; {BUILD}"


def _folders() -> Iterator[Path]:
    """Where the extension may lie: here, or where the package is installed, if this is a copy without it (the working
    directory of a job, whose upload leaves out what git ignores).
    """
    yield HERE
    try:
        installed = distribution("finepseudo")
    except PackageNotFoundError:
        return
    yield Path(str(installed.locate_file(""))) / "finepseudo/align/kernels"
    url = json.loads(installed.read_text("direct_url.json") or "{}").get("url", "")
    if url.startswith("file://"):
        yield Path(url2pathname(url.removeprefix("file://"))) / "finepseudo/align/kernels"


def describe() -> str:
    """What the kernel runs on, for the log."""
    return f"C++, {torch.ops.finepseudo.instructions()}, {torch.get_num_threads()} threads"


def solved() -> tuple[int, int, int]:
    """Pairs of this process so far: proven by one comparison, proven by the two-sided run, in the log domain."""
    if not available():
        return 0, 0, 0
    first, second, third = torch.ops.finepseudo.solved()
    return first, second, third


@contextmanager
def limited(instructions: str) -> Iterator[None]:
    """Within it, use no more than "baseline", "avx2" or "avx512": for tests and benchmarks."""
    before = torch.ops.finepseudo.instructions()
    torch.ops.finepseudo.limit(instructions)
    try:
        yield
    finally:
        torch.ops.finepseudo.limit(before)


def soft_dtw(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> Tensor:
    """`softdtw.soft_dtw` of checked arguments."""
    return Pairs.apply(cost_PTU, gamma, lengths_P2, _solve)


def _solve(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None, *, gradient: bool) -> Solved:
    lengths = torch.empty(0, 2, dtype=torch.int64) if lengths_P2 is None else lengths_P2
    dist_P, shares_PTU = torch.ops.finepseudo.soft_dtw(cost_PTU, gamma, lengths, gradient)
    return dist_P, shares_PTU if gradient else None


def block_distances(emb_BTD: Tensor, gamma: float) -> Tensor:
    """`softdtw.block_distances` of checked arguments, fp32 or double."""
    return _Block.apply(emb_BTD, gamma)


class _Block(torch.autograd.Function):
    """The costs live only in the cache; E of the pairs is kept, and becomes one matrix product in backward."""

    @staticmethod
    def forward(ctx: Any, emb_BTD: Tensor, gamma: float) -> Tensor:
        gradient = ctx.needs_input_grad[0]
        dist_BB, shares_PTT = torch.ops.finepseudo.block(emb_BTD, gamma, gradient)
        if gradient:
            ctx.save_for_backward(shares_PTT, emb_BTD)
        return dist_BB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BB: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shares_PTT, emb_BTD = ctx.saved_tensors
        return torch.ops.finepseudo.block_gradient(shares_PTT, grad_BB, emb_BTD), None


class Rows:
    """A gallery laid out for the matrix product: [block][D][panel, U, 16 videos].

    The product of a query's frames with a block is then the cost tile [T][U][16] of each of its panels as it stands.
    """

    def __init__(self, gallery_GUD: Tensor) -> None:
        """`gallery_GUD` in fp32."""
        self.G, self.U, _ = gallery_GUD.shape
        count = -(-self.G // LANES)
        self.panels = torch.ops.finepseudo.panels(gallery_GUD, max(1, min(count, PANEL_COLUMNS // (LANES * self.U))))
        self.norm = _largest_norm(gallery_GUD)

    def distances(self, emb_NTD: Tensor, gamma: float) -> Tensor:
        """`score.distances` of checked arguments, fp32."""
        nothing = torch.empty(0, dtype=torch.int64)
        return self._run(emb_NTD, gamma, nothing, 0, torch.empty(3, 0, dtype=torch.float64), 0.0, score=False)

    def class_sums(
        self, emb_NTD: Tensor, gamma: float, label_G: Tensor, num_classes: int, head: ScoreHead, *, mean: Mean
    ) -> Tensor:
        """Sums over each class's members of f_S(D), or of its sigmoid; [N, K] in double."""
        slope_H, centre_H, height_H, bias = head.scaling()
        head_3H = torch.stack([slope_H, centre_H, height_H])
        return self._run(emb_NTD, gamma, label_G, num_classes, head_3H, float(bias), score=mean == "score")

    def _run(
        self, emb_NTD: Tensor, gamma: float, label_G: Tensor, K: int, head_3H: Tensor, bias: float, *, score: bool
    ) -> Tensor:
        # costs go below 0 by what norms exceed 1, or by rounding of the product
        product = _largest_norm(emb_NTD) * self.norm * (1 + 1e-6)
        below = math.inf if math.isnan(product) else max(0.0, product - 1)
        slack = (emb_NTD.shape[1] + self.U) * below / gamma
        return torch.ops.finepseudo.gallery(
            emb_NTD, self.panels, self.U, self.G, gamma, slack, label_G, K, head_3H, bias, score
        )


def _largest_norm(emb: Tensor) -> float:
    return float(torch.linalg.vector_norm(emb, dim=-1).max()) if len(emb) else 0.0
