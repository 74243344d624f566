"""Soft-DTW, alignment distances and class sums on an NVIDIA GPU, in Triton. No device has run it yet: its numbers are
checked in Triton's interpreter, its code compiled for sm_80 and sm_90; benchmarks/gpu.py is what to run on a device.

Axes: P pairs, N videos, G gallery, T U frames of the two sequences, D embedding, K classes, H hidden units of the
head. The suffix 2 is (length in T, length in U), C is K + 1 offsets of classes.

All work is in the log domain, in units of gamma ln 2 so that the card's own exp2 and log2 serve:

    x(i,j) = c(i,j) + min(x) - log2 Σ 2^(min(x) - x),   c = C / (γ ln 2),   R(T,U) = γ ln 2 x(T,U)

over the predecessors (i-1,j), (i,j-1), (i-1,j-1). It holds for every gamma and cost, so nothing has to be proven per
pair and nothing falls back. Three special functions a cell cost no more than the matrix product that fp32 embeddings
need, and no double arithmetic is asked of the scoring, which consumer cards do at 1/64 of the speed.

Borders hold a large finite number, not infinity: inf - inf would be NaN, and NaN is what marks a non-finite cost.
"""

# Triton's functions are a language of their own: pyright knows neither its loops nor tuples that grow in them.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false, reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from finepseudo.align.head import Mean, ScoreHead

ROWS = tl.constexpr(32)  # frames of u whose state a thread keeps in registers; longer videos are worked in stripes
LEVELS = tl.constexpr(5)  # log2 of it
FAR = tl.constexpr(1e30)  # stands for +inf in fp32: far above any finite x, and adding a cost does not change it
MOST = tl.constexpr(1e25)  # a cost beyond this, in units of gamma ln 2, counts as non-finite
FAR_DOUBLE = tl.constexpr(1e300)  # the same in double
MOST_FLOAT = tl.constexpr(3.4028234663852886e38)  # the largest finite fp32
MAX_LANES = 2048  # frames of the shorter sequence that `soft_dtw` takes: one lane each, in one block
MAX_GRID = 2**31 - 1


def fits(T: int, U: int, D: int) -> bool:
    """Whether these kernels take sequences of T and U frames of D numbers; the caller goes elsewhere if not.

    `soft_dtw` holds one lane per frame of the shorter sequence; scoring has no limit but 32-bit offsets in a video.
    """
    return min(T, U) <= MAX_LANES and max(T, U) * D < MAX_GRID


def soft_dtw(cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> Tensor:
    """`softdtw.soft_dtw` of checked fp32 arguments: one block per pair, one anti-diagonal at a time.

    The state is in double, the special functions in fp32: at T = 64 and gamma .1 an fp32 state would leave errors of
    1e-4 in the gradient's weights. A training block is too small for the speed of double to matter.

    Args:
        cost_PTU: fp32, with any strides.
        gamma: γ > 0.
        lengths_P2: int64 or None; cells outside them are not read.
    Returns:
        dist_P, fp32, not divided by the lengths; differentiable once. A non-finite cost inside gives NaN.
    Raises:
        ValueError: the shorter sequence has more than MAX_LANES frames.
    """
    P, T, U = cost_PTU.shape
    if min(T, U) > MAX_LANES:
        raise ValueError(f"expected at most {MAX_LANES} frames in the shorter sequence, got {T} and {U}; sample fewer")
    if P == 0:
        return cost_PTU.sum((1, 2))
    if T > U:  # the lanes go along the shorter sequence: soft-DTW is symmetric
        cost_PTU = cost_PTU.transpose(1, 2)
        lengths_P2 = None if lengths_P2 is None else lengths_P2.flip(1)
    if lengths_P2 is not None:
        lengths_P2 = lengths_P2.contiguous()
    return _SoftDTW.apply(cost_PTU, gamma, lengths_P2)


class _SoftDTW(torch.autograd.Function):
    """R of each pair; where a gradient is wanted x of every cell is kept, diagonal by diagonal, and E follows from it.

    E(i,j) = Σ over successors E(succ) 2^-x(i,j) / Σ over the successor's predecessors 2^-x,   E(T,U) = 1
    """

    @staticmethod
    def forward(ctx: Any, cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> Tensor:
        P, T, U = cost_PTU.shape
        keep = ctx.needs_input_grad[0]
        cells = cost_PTU.new_empty((P, T + U - 1, T) if keep else (1,), dtype=torch.float64)
        dist_P = cost_PTU.new_empty(P)
        lanes, warps = _lanes(T)
        shape = (lengths_P2 if lengths_P2 is not None else dist_P, cells, T, U, *cost_PTU.stride(), *_units(gamma))
        with torch.cuda.device_of(cost_PTU):
            run: Any = _values[(P,)]
            run(
                *(cost_PTU, dist_P, *shape),
                RAGGED=lengths_P2 is not None,
                KEEP=keep,
                LANES=lanes,
                DEVICE=cost_PTU.is_cuda,
                num_warps=warps,
            )
        if keep:
            ctx.save_for_backward(cells, *(() if lengths_P2 is None else (lengths_P2,)))
            ctx.shape = (P, T, U)
        return dist_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cells, *rest = ctx.saved_tensors
        P, T, U = ctx.shape
        grad_PTU = (grad_P.new_zeros if rest else grad_P.new_empty)(P, T, U)  # cells outside keep their 0
        lanes, warps = _lanes(T)
        with torch.cuda.device_of(cells):
            run: Any = _shares[(P,)]
            run(
                *(grad_P.contiguous(), grad_PTU, rest[0] if rest else grad_P, cells, T, U),
                RAGGED=bool(rest),
                LANES=lanes,
                num_warps=warps,
            )
        return grad_PTU, None, None


class Rows:
    """A gallery as it is, contiguous, for the two scoring kernels."""

    def __init__(self, gallery_GUD: Tensor) -> None:
        self.gallery_GUD = gallery_GUD.contiguous()

    def distances(self, emb_NTD: Tensor, gamma: float) -> Tensor:
        """`score.distances` of checked arguments."""
        return distances(emb_NTD, self.gallery_GUD, gamma)

    def class_sums(
        self, emb_NTD: Tensor, gamma: float, label_G: Tensor, num_classes: int, head: ScoreHead, *, mean: Mean
    ) -> Tensor:
        """Sums over each class's members of f_S(D), or of its sigmoid; [N, K] in double. The labels are sorted."""
        head(emb_NTD.new_zeros(0))  # raises if it is not standardised; asks the device once only
        start_C = torch.searchsorted(label_G, torch.arange(num_classes + 1, device=label_G.device))
        softplus = torch.nn.functional.softplus
        return class_sums(
            *(emb_NTD, self.gallery_GUD, start_C, softplus(head.slope_H), head.centre_H, softplus(head.height_H)),
            *(head.bias_1, head.mean, head.std, gamma),
            as_score=mean == "score",
        )


def distances(emb_NTD: Tensor, gallery_GUD: Tensor, gamma: float) -> Tensor:
    """Alignment distances D = R(T,U) / (T+U) of every video with every gallery member, without a gradient.

    Args:
        emb_NTD: fp32, fp16 or bf16 frame embeddings, L2-normalised over D. fp32 products are three tf32 products on
            the tensor cores (error about 2^-22; plain tf32 would err by 2^-11, IEEE fp32 has no tensor core); the
            products of 16-bit numbers are exact, summed in fp32. Two different types meet in the wider one.
        gallery_GUD: the same of the gallery.
        gamma: γ > 0.
    Returns:
        dist_NG, fp32. A non-finite frame gives NaN.
    Raises:
        ValueError: a video does not fit (`fits`).
    """
    emb, gallery = _alike(emb_NTD, gallery_GUD)
    N, G = len(emb), len(gallery)
    dist_NG = torch.empty(N, G, dtype=torch.float32, device=emb.device)
    if N and G:
        lanes = _gallery_lanes(G)
        across = triton.cdiv(G, lanes)
        _launch(emb, gallery, gamma, across, lanes, lambda n: (_distances, (dist_NG[n:], G), {}))
    return dist_NG


def class_sums(
    emb_NTD: Tensor,
    gallery_GUD: Tensor,
    start_C: Tensor,
    slope_H: Tensor,
    centre_H: Tensor,
    height_H: Tensor,
    bias: float | Tensor,
    mean: float | Tensor,
    std: float | Tensor,
    gamma: float,
    *,
    as_score: bool,
) -> Tensor:
    """Sums over each class's gallery members of the alignability with every video; nothing of size N x G is kept.

        f_S(D) = bias - Σ_h height_h tanh(slope_h (D - mean) / std + centre_h),   total_c = Σ over a of class c

    One block owns some videos and one class at a time and walks along its members, so no two blocks add to one
    number: the same input gives the same bits.

    Args:
        emb_NTD: as `distances`.
        gallery_GUD: as `distances`, sorted by class.
        start_C: int64, K + 1 offsets; class c is rows start_C[c] to start_C[c+1].
        slope_H: after the softplus.
        centre_H: as it is.
        height_H: after the softplus.
        bias: number or tensor of one number; one on the device costs no wait for it. So are `mean` and `std`.
        mean: of the labelled pairs' distances.
        std: their deviation.
        gamma: γ > 0.
        as_score: sum sigmoid(f_S) instead of f_S.
    Returns:
        total_NK in double, summed in fp32 along a lane and in double across lanes; 0 for empty classes.
    Raises:
        ValueError: a video does not fit (`fits`).
    """
    emb, gallery = _alike(emb_NTD, gallery_GUD)
    N, K = len(emb), len(start_C) - 1
    total_NK = torch.zeros(N, K, dtype=torch.float64, device=emb.device)
    if N and K and len(gallery):
        lanes = _gallery_lanes(-(-len(gallery) // K))
        hidden_3H = torch.stack([slope_H, centre_H, height_H]).detach().to(emb.device, torch.float32).contiguous()
        scalars = [torch.as_tensor(x, dtype=torch.float32, device=emb.device).detach() for x in (bias, mean, std)]
        about_3 = torch.cat([x.reshape(1) for x in scalars])
        fixed = (start_C.to(emb.device).contiguous(), hidden_3H, about_3, hidden_3H.shape[1], K)
        rest = {"AS_SCORE": as_score}
        _launch(emb, gallery, gamma, K, lanes, lambda n: (_class_sums, (total_NK[n:], *fixed), rest))
    return total_NK


def _launch(
    emb: Tensor, gallery: Tensor, gamma: float, across: int, lanes: int, call: Callable[[int], tuple[Any, tuple, dict]]
) -> None:
    """Run a scoring kernel over tiles of (some videos) x (one of `across`), a fixed number of blocks taking turns.

    The blocks are as many as the card can hold at a time, so that the border rows of long videos, one set a block,
    stay a few MB whatever N and G are.
    """
    N, T, D = emb.shape
    U = gallery.shape[1]
    if not fits(T, U, D):
        raise ValueError(f"expected videos that `fits` admits, got T {T}, U {U}, D {D}")
    short = min(max(8, triton.next_power_of_2(T)), ROWS.value)  # 8: with more videos a tile, registers spill
    videos = ROWS.value // short  # of a tile
    processors = torch.cuda.get_device_properties(emb.device).multi_processor_count if emb.is_cuda else 1
    most = processors * 512 // lanes
    is_long = short * videos < T
    step = max(1, (MAX_GRID // 2) // across) * videos  # the tiles of a launch are counted in 32 bits
    with torch.cuda.device_of(emb):
        for n in range(0, N, step):
            part = emb[n : n + step]
            down = triton.cdiv(len(part), videos)
            blocks = min(down * across, most)
            edge = torch.empty(blocks * 2 * U * lanes if is_long else 1, dtype=torch.float32, device=emb.device)
            kernel, own, rest = call(n)
            scale, unit = _units(gamma)
            kernel[(blocks,)](
                *(part, gallery, edge, *own, len(part), T, U, D, down, down * across, scale, unit / (T + U)),
                **rest,
                **_shape(short, lanes),
                LONG=is_long,
                DEVICE=emb.is_cuda,
            )


def _shape(short: int, lanes: int) -> dict[str, int]:
    """Block sizes with which no register is spilled on sm_80 and sm_90 (tests/unit/test_kernel_cuda.py)."""
    return {"SHORT": short, "LANES": lanes, "DEPTH": 16, "num_warps": lanes // 32, "num_stages": 3}


def _gallery_lanes(members: int) -> int:
    """Gallery members side by side in a block; one thread has one."""
    return min(128, max(32, triton.next_power_of_2(members)))


def _lanes(T: int) -> tuple[int, int]:
    """Lanes and warps of a block of `soft_dtw`: two lanes a thread as long as a block of 8 warps has enough."""
    lanes = max(32, triton.next_power_of_2(T))
    return lanes, min(8, max(1, lanes // 64))


def _units(gamma: float) -> tuple[float, float]:
    """What turns a cost into c, and x into R."""
    return 1 / (gamma * math.log(2)), gamma * math.log(2)


def _alike(emb_NTD: Tensor, gallery_GUD: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(emb_NTD.dtype, gallery_GUD.dtype)
    return emb_NTD.detach().to(dtype).contiguous(), gallery_GUD.detach().to(dtype).contiguous()


@triton.jit
def _log2(x: tl.tensor, DEVICE: tl.constexpr) -> tl.tensor:
    """The card's own log2: tl.log2 is twenty instructions of software. The interpreter has no assembly.

    Its error, 2^-22 between 1 and 3, is as small as fp32's own rounding of the x it is subtracted from.
    """
    if DEVICE:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:  # noqa: RET505  Triton compiles one branch only where both are spelt out
        return tl.log2(x)


@triton.jit
def _unstack(x: tl.tensor, LANES: tl.constexpr) -> tl.tuple:
    """The ROWS columns of [LANES, ROWS] as ROWS vectors, in order: halves by the lowest bit first."""
    parts = (x,)
    for level in tl.static_range(LEVELS):
        even = ()
        odd = ()
        for k in tl.static_range(2**level):
            e, o = tl.split(tl.reshape(parts[k], (LANES, ROWS // 2 ** (level + 1), 2)))
            even = even + (e,)  # noqa: RUF005  Triton has no starred tuples
            odd = odd + (o,)  # noqa: RUF005
        parts = even + odd
    rows = ()
    for k in tl.static_range(ROWS):
        rows = rows + (tl.reshape(parts[k], (LANES,)),)  # noqa: RUF005
    return rows


@triton.jit
def _costs(
    u_ptr: tl.tensor,
    v_ptr: tl.tensor,
    is_u: tl.tensor,
    is_v: tl.tensor,
    D: tl.tensor,
    scale: tl.tensor,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
    DEVICE: tl.constexpr,
) -> tl.tensor:
    """c of one frame of every lane's gallery member with ROWS frames of the videos, [LANES, ROWS]."""
    depth = tl.arange(0, DEPTH)
    product = tl.zeros((LANES, ROWS), tl.float32)
    for d in range(0, D, DEPTH):
        inside = d + depth < D
        v = tl.load(v_ptr[:, None] + d + depth[None, :], mask=is_v[:, None] & inside[None, :], other=0.0)
        u = tl.load(u_ptr[None, :] + d + depth[:, None], mask=is_u[None, :] & inside[:, None], other=0.0)
        if not DEVICE:  # the interpreter takes the bits of bf16 for integers; the products are exact either way
            v = v.to(tl.float32)
            u = u.to(tl.float32)
        product = tl.dot(v, u, product, input_precision="tf32x3")
    c = (1 - product) * scale
    return tl.where(tl.abs(c) < MOST, c, float("nan"))


@triton.jit
def _column(
    state: tl.tuple, costs: tl.tuple, top: tl.tensor, corner: tl.tensor, SHORT: tl.constexpr, DEVICE: tl.constexpr
) -> tl.tuple:
    """The states x(i, j) of a column from those of the column before, ROWS // SHORT videos below one another.

    `top` is x(-1, j) and `corner` x(-1, j-1). What does not wait for the cell above comes first, the rest is the chain.
    NaN passes the minimum unseen, but not the absolute differences.
    """
    above = top
    diagonal = corner
    after = ()
    for k in tl.static_range(ROWS):
        if k % SHORT == 0:
            above = top
            diagonal = corner
        left = state[k]
        least = tl.minimum(left, diagonal)
        both = 1 + tl.exp2(-tl.abs(left - diagonal))  # 2^-left + 2^-diagonal, over the larger
        other = tl.exp2(-tl.abs(above - least))
        total = tl.where(above < least, 1 + both * other, both + other)
        above = costs[k] + (tl.minimum(above, least) - _log2(total, DEVICE))
        diagonal = left
        after = after + (above,)  # noqa: RUF005
    return after


@triton.jit
def _align(
    u_ptr: tl.tensor,
    v_ptr: tl.tensor,
    edge_ptr: tl.tensor,
    first: tl.tensor,
    N: tl.tensor,
    g: tl.tensor,
    end: tl.tensor,
    T: tl.tensor,
    U: tl.tensor,
    D: tl.tensor,
    scale: tl.tensor,
    SHORT: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
    LONG: tl.constexpr,
    DEVICE: tl.constexpr,
) -> tl.tuple:
    """x(T, U) of the videos from `first` on with the gallery members `g` (those before `end`): a vector per video.

    Column by column: a matrix product gives c of all rows of a column, and a thread runs down its own lane's. A video
    of more than ROWS frames is worked in stripes; the last row of a stripe is handed to the next through two rows of
    U x LANES numbers of this block's own, written and read in turn, with a barrier between the stripes.
    """
    r = tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    n = first + r // SHORT
    is_v = g < end
    v_row = v_ptr + g.to(tl.int64) * U * D
    edges = edge_ptr + tl.program_id(0).to(tl.int64) * 2 * U * LANES + lane
    ends = ()
    for _ in tl.static_range(ROWS // SHORT):
        ends = ends + (tl.zeros((LANES,), tl.float32),)  # noqa: RUF005
    for start in range(0, T, ROWS):
        i = start + r % SHORT
        u_row = u_ptr + (n.to(tl.int64) * T + i) * D
        is_u = (n < N) & (i < T)
        turn = (start // ROWS) % 2
        state = ()
        for _ in tl.static_range(ROWS):
            state = state + (tl.full((LANES,), FAR, tl.float32),)  # noqa: RUF005
        corner = tl.full((LANES,), 0.0, tl.float32) + tl.where(start == 0, 0.0, FAR)  # R(0, 0) = 0
        for j in range(U):
            costs = _unstack(_costs(u_row, v_row + j * D, is_u, is_v, D, scale, LANES, DEPTH, DEVICE), LANES)
            top = tl.full((LANES,), FAR, tl.float32)
            if LONG:
                top = tl.load(
                    edges + tl.cast(turn * U + j, tl.int64) * LANES,
                    mask=lane < tl.where(start > 0, LANES, 0),
                    other=FAR,
                )
            state = _column(state, costs, top, corner, SHORT, DEVICE)
            if LONG:
                tl.store(edges + tl.cast((1 - turn) * U + j, tl.int64) * LANES, state[ROWS - 1])
            corner = top
        last = T - 1 - start
        found = ()
        for b in tl.static_range(ROWS // SHORT):
            x = ends[b]
            for k in tl.static_range(SHORT):
                x = tl.where(last == k, state[b * SHORT + k], x)
            found = found + (x,)  # noqa: RUF005
        ends = found
        if LONG:
            tl.debug_barrier()
    return ends


@triton.jit(do_not_specialize=["G", "N", "T", "U", "down", "tiles"])
def _distances(
    u_ptr: tl.tensor,
    v_ptr: tl.tensor,
    edge_ptr: tl.tensor,
    dist_ptr: tl.tensor,
    G: tl.tensor,
    N: tl.tensor,
    T: tl.tensor,
    U: tl.tensor,
    D: tl.tensor,
    down: tl.tensor,
    tiles: tl.tensor,
    scale: tl.tensor,
    unit: tl.tensor,
    SHORT: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
    LONG: tl.constexpr,
    DEVICE: tl.constexpr,
) -> None:
    """Tiles of ROWS // SHORT videos x LANES gallery members; neighbours share the members."""
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = (tile % down) * (ROWS // SHORT)
        g = (tile // down) * LANES + tl.arange(0, LANES)
        ends = _align(u_ptr, v_ptr, edge_ptr, first, N, g, G, T, U, D, scale, SHORT, LANES, DEPTH, LONG, DEVICE)
        for b in tl.static_range(ROWS // SHORT):
            cell = dist_ptr + (first + b).to(tl.int64) * G + g
            tl.store(cell, ends[b] * unit, mask=g < tl.where(first + b < N, G, 0))


@triton.jit(do_not_specialize=["H", "K", "N", "T", "U", "down", "tiles"])
def _class_sums(
    u_ptr: tl.tensor,
    v_ptr: tl.tensor,
    edge_ptr: tl.tensor,
    total_ptr: tl.tensor,
    start_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    about_ptr: tl.tensor,
    H: tl.tensor,
    K: tl.tensor,
    N: tl.tensor,
    T: tl.tensor,
    U: tl.tensor,
    D: tl.tensor,
    down: tl.tensor,
    tiles: tl.tensor,
    scale: tl.tensor,
    unit: tl.tensor,
    AS_SCORE: tl.constexpr,
    SHORT: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
    LONG: tl.constexpr,
    DEVICE: tl.constexpr,
) -> None:
    """Tiles of ROWS // SHORT videos x one class; neighbours share the class, whose members then stay in the cache."""
    bias = tl.load(about_ptr)
    mean = tl.load(about_ptr + 1)
    std = tl.load(about_ptr + 2)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = (tile % down) * (ROWS // SHORT)
        c = tile // down
        begin = tl.load(start_ptr + c).to(tl.int32)
        end = tl.load(start_ptr + c + 1).to(tl.int32)
        sums = ()
        for _ in tl.static_range(ROWS // SHORT):
            sums = sums + (tl.zeros((LANES,), tl.float32),)  # noqa: RUF005
        for member in range(begin, end, LANES):
            g = member + tl.arange(0, LANES)
            ends = _align(u_ptr, v_ptr, edge_ptr, first, N, g, end, T, U, D, scale, SHORT, LANES, DEPTH, LONG, DEVICE)
            values = ()
            for _ in tl.static_range(ROWS // SHORT):
                values = values + (tl.zeros((LANES,), tl.float32) + bias,)  # noqa: RUF005
            for h in range(H):
                slope = tl.load(hidden_ptr + h)
                centre = tl.load(hidden_ptr + H + h)
                height = tl.load(hidden_ptr + 2 * H + h)
                lower = ()
                for b in tl.static_range(ROWS // SHORT):
                    z = slope * ((ends[b] * unit - mean) / std) + centre
                    tanh = 1 - 2 / (1 + tl.exp(2 * z))  # exp may reach infinity or 0: then it is 1 or -1
                    lower = lower + (values[b] - height * tanh,)  # noqa: RUF005
                values = lower
            more = ()
            for b in tl.static_range(ROWS // SHORT):
                value = values[b]
                if AS_SCORE:
                    value = 1 / (1 + tl.exp(-value))
                more = more + (sums[b] + tl.where(g < end, value, 0.0),)  # noqa: RUF005
            sums = more
        for b in tl.static_range(ROWS // SHORT):
            total = tl.sum(tl.cast(sums[b], tl.float64), 0)
            tl.store(total_ptr + (first + b).to(tl.int64) * K + c, total, mask=first + b < N)


@triton.jit
def _shift(x: tl.tensor, by: tl.tensor, is_inside: tl.tensor, outside: tl.tensor) -> tl.tensor:
    """x of the lane `by`; `outside` where there is none."""
    return tl.where(is_inside, tl.gather(x, by, 0), outside)


@triton.jit
def _cells(
    cost_ptr: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    stride_T: tl.tensor,
    stride_U: tl.tensor,
    scale: tl.tensor,
    is_inside: tl.tensor,
) -> tl.tensor:
    """c of the cells of an anti-diagonal, in double; NaN for a non-finite cost."""
    cost = tl.load(cost_ptr + i.to(tl.int64) * stride_T + j.to(tl.int64) * stride_U, mask=is_inside, other=0.0)
    return tl.where(tl.abs(cost) <= MOST_FLOAT, cost, float("nan")).to(tl.float64) * scale


@triton.jit(do_not_specialize=["T", "U", "stride_P", "stride_T", "stride_U"])
def _values(
    cost_ptr: tl.tensor,
    dist_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    cells_ptr: tl.tensor,
    T: tl.tensor,
    U: tl.tensor,
    stride_P: tl.tensor,
    stride_T: tl.tensor,
    stride_U: tl.tensor,
    scale: tl.tensor,
    unit: tl.tensor,
    RAGGED: tl.constexpr,
    KEEP: tl.constexpr,
    LANES: tl.constexpr,
    DEVICE: tl.constexpr,
) -> None:
    """R of one pair. Lane i holds x(i, j) of the anti-diagonals i + j = d - 1 and d - 2, counted from 0."""
    p = tl.program_id(0).to(tl.int64)
    t = T
    u = U
    if RAGGED:
        t = tl.load(lengths_ptr + 2 * p).to(tl.int32)
        u = tl.load(lengths_ptr + 2 * p + 1).to(tl.int32)
    i = tl.arange(0, LANES)
    above = tl.maximum(i - 1, 0)
    far = tl.full((LANES,), FAR_DOUBLE, tl.float64)
    last = far
    before = far
    for d in range(t + u - 1):
        j = d - i
        is_inside = (i < t) & (j >= 0) & (j < u)
        c = _cells(cost_ptr + p * stride_P, i, j, stride_T, stride_U, scale, is_inside)
        up = _shift(last, above, i > 0, far)
        diagonal = _shift(before, above, i > 0, far)
        diagonal = tl.where((i == 0) & (d == 0), 0.0, diagonal)  # R(0, 0), the only finite border
        least = tl.minimum(tl.minimum(up, last), diagonal)
        total = tl.exp2((least - up).to(tl.float32)) + tl.exp2((least - last).to(tl.float32))
        total += tl.exp2((least - diagonal).to(tl.float32))
        x = tl.where(is_inside, c + least - _log2(total, DEVICE).to(tl.float64), far)
        if KEEP:
            tl.store(cells_ptr + (p * (T + U - 1) + d) * T + i, x, mask=is_inside)
        before = last
        last = x
    tl.store(dist_ptr + p + i * 0, (last * unit).to(tl.float32), mask=i == t - 1)


@triton.jit(do_not_specialize=["T", "U"])
def _shares(
    dist_grad_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    cells_ptr: tl.tensor,
    T: tl.tensor,
    U: tl.tensor,
    RAGGED: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """E of one pair times the gradient of its R, from the last anti-diagonal to the first.

    A cell hands its E on to its predecessors, by their weights in its softmin; what goes up waits one diagonal and
    what goes up and left waits two. What the first cell hands on leaves the matrix.
    """
    p = tl.program_id(0).to(tl.int64)
    t = T
    u = U
    if RAGGED:
        t = tl.load(lengths_ptr + 2 * p).to(tl.int32)
        u = tl.load(lengths_ptr + 2 * p + 1).to(tl.int32)
    i = tl.arange(0, LANES)
    below = tl.minimum(i + 1, LANES - 1)
    nothing = tl.zeros((LANES,), tl.float32)
    seed = tl.load(dist_grad_ptr + p)
    up, left, diagonal, waiting = nothing, nothing, nothing, nothing
    for step in range(t + u - 1):
        d = t + u - 2 - step
        j = d - i
        is_inside = (i < t) & (j >= 0) & (j < u)
        share = _shift(up, below, i < LANES - 1, nothing) + left + _shift(waiting, below, i < LANES - 1, nothing)
        share = tl.where((step == 0) & (i == t - 1), seed, share)
        share = tl.where(is_inside, share, 0.0)
        waiting = diagonal
        tl.store(grad_ptr + (p * T + i) * U + j, share, mask=is_inside)
        at = cells_ptr + (p * (T + U - 1) + d) * T + i
        x_up = tl.load(at - T - 1, mask=is_inside & (i > 0), other=FAR_DOUBLE)
        x_left = tl.load(at - T, mask=is_inside & (j > 0), other=FAR_DOUBLE)
        x_diagonal = tl.load(at - 2 * T - 1, mask=is_inside & (i > 0) & (j > 0), other=FAR_DOUBLE)
        least = tl.minimum(tl.minimum(x_up, x_left), x_diagonal)
        up = tl.exp2((least - x_up).to(tl.float32))
        left = tl.exp2((least - x_left).to(tl.float32))
        diagonal = tl.exp2((least - x_diagonal).to(tl.float32))
        share = share / (up + left + diagonal)
        up, left, diagonal = up * share, left * share, diagonal * share
