"""What align.py measures: the works, this package's and the peers' ways of doing them, and the bare matrix products.

An `Entry` says how one implementation does each work, or why it does not. Each work is a function of embeddings that
returns distances and, except for scoring, gradients; a batched kernel of costs gets all three from `works_with`.

Axes: P pairs, B clips of a block, N videos, G gallery, T U frames, D embedding.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finepseudo.align.kernels import plain, reference
from finepseudo.align.score import distances
from finepseudo.align.softdtw import alignment_distance, block_distances

GAMMA = 0.1
D = 128
CLIPS = 32
# Pairs fall with T so that one call of the slowest peers stays below a second or two.
PAIRS = {8: 512, 16: 256, 32: 128, 64: 64, 128: 32}
VIDEOS_AND_GALLERY = {8: (64, 2048), 16: (64, 1024), 32: (64, 512), 64: (32, 256), 128: (16, 128)}
WORKS = {
    "paired": "forward and gradient of P pairs, embeddings to embedding gradients",
    "block": f"forward and gradient of all pairs i <= j of {CLIPS} clips, embeddings to embedding gradients",
    "scoring": "N x G distances from embeddings, no gradient",
}
OURS, BARE = "finepseudo", "bare products"
HALF = (CLIPS + 1) / (2 * CLIPS)  # the share of all B x B pairs that i <= j are

Inputs = tuple[Tensor, ...]
Work = Callable[..., tuple[Tensor, ...]]  # inputs -> (distances, gradient of each input where the work has one)
Kernel = Callable[[Tensor], Tensor]  # cost_PTU -> undivided soft-DTW values, differentiable


@dataclass(frozen=True)
class Entry:
    """One implementation: how it does each work, or why it does not."""

    name: str
    works: dict[str, Work] = field(default_factory=dict)
    without: str = ""  # why the other works are missing
    notes: dict[str, str] = field(default_factory=dict)
    truth: dict[str, Work] = field(default_factory=dict)  # where it solves another problem than ours


# The works -----------------------------------------------------------------------------------------------------------


def unit_vectors(*counts: int, T: int) -> Inputs:
    """Unrelated unit vectors: every cost is near 1, the far end of the range an exponential has to cover."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.nn.functional.normalize(torch.randn(count, T, D, generator=generator), dim=-1) for count in counts
    )


def inputs_of(work: str, T: int) -> Inputs:
    """The clips of one work and length."""
    if work == "block":
        return unit_vectors(CLIPS, T=T)
    first, second = (PAIRS[T], PAIRS[T]) if work == "paired" else VIDEOS_AND_GALLERY[T]
    return unit_vectors(first, second, T=T)


def portion(work: str, inputs: Inputs, share: float) -> Inputs:
    """The first of the inputs, about `share` of their pairs."""
    if work == "paired":
        return tuple(x[: max(1, int(len(x) * share))] for x in inputs)
    if work == "block":
        return (inputs[0][: max(2, round(len(inputs[0]) * share**0.5))],)
    emb_NTD, gallery_GUD = inputs
    rows = len(emb_NTD) * share
    return emb_NTD[: max(1, int(rows))], gallery_GUD[: max(16, int(len(gallery_GUD) * min(1, rows)))]


def pairs_of(work: str, inputs: Inputs) -> int:
    """Pairs in the inputs; a block counts i <= j."""
    if work == "block":
        return len(inputs[0]) * (len(inputs[0]) + 1) // 2
    return len(inputs[0]) * (len(inputs[1]) if work == "scoring" else 1)


def gram_costs(u_NTD: Tensor, v_GUD: Tensor) -> Tensor:
    """Cosine costs of all pairs (n, g) by one matrix product, cost_PTU with g fastest."""
    (N, T, _), (G, U, _) = u_NTD.shape, v_GUD.shape
    product = u_NTD.flatten(0, 1) @ v_GUD.flatten(0, 1).T
    return (1 - product).view(N, T, G, U).transpose(1, 2).reshape(N * G, T, U)


def paired_with(kernel: Kernel) -> Work:
    """The paired work of a batched kernel."""

    def run(u_PTD: Tensor, v_PTD: Tensor) -> tuple[Tensor, ...]:
        u, v = u_PTD.detach().requires_grad_(), v_PTD.detach().requires_grad_()
        dist = kernel(1 - torch.bmm(u, v.mT)) / (u.shape[1] + v.shape[1])
        return dist.detach(), *torch.autograd.grad(dist.sum(), (u, v))

    return run


def block_with(kernel: Kernel) -> Work:
    """The block work of a batched kernel: one product, then the pairs i <= j."""

    def run(emb_BTD: Tensor) -> tuple[Tensor, ...]:
        emb = emb_BTD.detach().requires_grad_()
        B, T, _ = emb.shape
        row_P, col_P = torch.triu_indices(B, B).unbind()
        dist = kernel(gram_costs(emb, emb).index_select(0, row_P * B + col_P)) / (2 * T)
        return dist.detach(), *torch.autograd.grad(dist.sum(), emb)

    return run


def scoring_with(kernel: Kernel, tile_pairs: int | None = None) -> Work:
    """The scoring work of a batched kernel, in tiles: by default those that suit the torch loops."""

    @torch.no_grad()
    def run(emb_NTD: Tensor, gallery_GUD: Tensor) -> tuple[Tensor, ...]:
        (N, T, _), (G, U, _) = emb_NTD.shape, gallery_GUD.shape
        tile = tile_pairs or min(2048, max(256, 2**20 // (T * U)))
        width = min(G, tile)
        height = max(1, tile // width)
        dist_NG = emb_NTD.new_empty(N, G)
        for n in range(0, N, height):
            for g in range(0, G, width):
                query, part = emb_NTD[n : n + height], gallery_GUD[g : g + width]
                tile_P = kernel(gram_costs(query, part)) / (T + U)
                dist_NG[n : n + height, g : g + width] = tile_P.view(len(query), len(part))
        return (dist_NG,)

    return run


def works_with(kernel: Kernel, tile_pairs: int | None = None) -> dict[str, Work]:
    """All three works of a batched differentiable kernel."""
    return {"paired": paired_with(kernel), "block": block_with(kernel), "scoring": scoring_with(kernel, tile_pairs)}


# The implementations -------------------------------------------------------------------------------------------------


def ours() -> Entry:
    """This package by its public face."""

    def paired(u_PTD: Tensor, v_PTD: Tensor) -> tuple[Tensor, ...]:
        u, v = u_PTD.detach().requires_grad_(), v_PTD.detach().requires_grad_()
        dist_P = alignment_distance(u, v, gamma=GAMMA)
        return dist_P.detach(), *torch.autograd.grad(dist_P.sum(), (u, v))

    def block(emb_BTD: Tensor) -> tuple[Tensor, ...]:
        emb = emb_BTD.detach().requires_grad_()
        dist_BB = block_distances(emb, gamma=GAMMA)
        upper_BB = torch.ones_like(dist_BB).triu()
        (grad_BTD,) = torch.autograd.grad(dist_BB, emb, upper_BB)
        return dist_BB.detach()[upper_BB.bool()], grad_BTD

    def scoring(emb_NTD: Tensor, gallery_GUD: Tensor) -> tuple[Tensor, ...]:
        return (distances(emb_NTD, gallery_GUD, gamma=GAMMA),)

    return Entry(OURS, {"paired": paired, "block": block, "scoring": scoring})


def torch_log() -> Entry:
    """The log-domain loop over anti-diagonals in plain torch."""
    return Entry("torch loop, log domain", works_with(lambda cost_PTU: reference.soft_dtw(cost_PTU, GAMMA, None)))


def torch_exp() -> Entry:
    """The exponential-domain loop in plain torch."""
    return Entry("torch loop, exp domain", works_with(lambda cost_PTU: plain.soft_dtw(cost_PTU, GAMMA, None)))


def _no_features(cost_PTU: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of the right lengths for modules that want them although their dist_func already has the costs."""
    P, T, U = cost_PTU.shape
    return cost_PTU.new_empty(P, T, 0), cost_PTU.new_empty(P, U, 0)


def tslearn_loss() -> Entry:
    """tslearn's torch module: batched, numba with prange over the pairs; costs through `dist_func`."""
    module = importlib.import_module("tslearn.metrics").SoftDTWLossPyTorch

    def kernel(cost_PTU: Tensor) -> Tensor:
        return module(gamma=GAMMA, dist_func=lambda _x, _y: cost_PTU)(*_no_features(cost_PTU))

    return Entry("tslearn, loss module", works_with(kernel))


def tslearn_cdist() -> Entry:
    """tslearn's cdist_soft_dtw: numba, squared Euclidean only, `n_jobs` threads where they help."""
    cdist = importlib.import_module("tslearn.metrics").cdist_soft_dtw

    @functools.cache
    def jobs(T: int) -> int | None:
        u, v = np.zeros((1, T, D)), np.zeros((64, T, D))
        choices = (None, torch.get_num_threads()) if torch.get_num_threads() > 1 else (None,)
        cdist(u, v, gamma=GAMMA)  # compiles
        times = {n: min(seconds(lambda n=n: cdist(u, v, gamma=GAMMA, n_jobs=n), 1) for _ in range(2)) for n in choices}
        return min(choices, key=lambda n: times[n])  # short clips are slower with threads: Python hands out each pair

    def scoring(emb_NTD: Tensor, gallery_GUD: Tensor) -> tuple[Tensor, ...]:
        half = 0.5**0.5  # |u - v|^2 / 2 = 1 - <u, v>
        u, v = (x.double().numpy() * half for x in (emb_NTD, gallery_GUD))
        dist_NG = cdist(u, v, gamma=GAMMA, n_jobs=jobs(u.shape[1]))
        return (torch.from_numpy(dist_NG) / (u.shape[1] + v.shape[1]),)

    return Entry("tslearn, cdist_soft_dtw", {"scoring": scoring}, without="no gradient")


def pysdtw() -> Entry:
    """pysdtw on the CPU: batched, numba with prange over the pairs; costs through `dist_func`."""
    module = importlib.import_module("pysdtw").SoftDTW

    def kernel(cost_PTU: Tensor) -> Tensor:
        # Its result is the diagonal of a pairs x pairs gather, so it is given batches of 256 pairs at most.
        sdtw = [
            module(gamma=GAMMA, dist_func=lambda _x, _y, part=part: part, use_cuda=False)(*_no_features(part))
            for part in cost_PTU.split(256)
        ]
        return sdtw[0] if len(sdtw) == 1 else torch.cat(sdtw)

    return Entry("pysdtw", works_with(kernel, tile_pairs=256))


def soft_dtw_cython() -> Entry:
    """soft-dtw: one pair at a time from its cost matrix, Cython, float64, no threads."""
    one = importlib.import_module("sdtw").SoftDTW

    class EachPair(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, cost_PTU: Tensor) -> Tensor:
            pairs = [one(cost_TU, gamma=GAMMA) for cost_TU in cost_PTU.double().numpy()]
            dist_P = cost_PTU.new_tensor([pair.compute() for pair in pairs])
            if ctx.needs_input_grad[0]:
                E_PTU = np.stack([pair.grad() for pair in pairs])
                ctx.save_for_backward(torch.from_numpy(E_PTU).to(cost_PTU.dtype))
            return dist_P

        @staticmethod
        def backward(ctx: Any, grad_P: Tensor) -> Tensor:
            (E_PTU,) = ctx.saved_tensors
            return E_PTU * grad_P[:, None, None]

    return Entry("soft-dtw", works_with(EachPair.apply), notes=dict.fromkeys(WORKS, "a loop over pairs"))


def soft_dtw_rust() -> Entry:
    """soft-dtw-rust: scalar signals only, cost |x - y|; timed on those, a lighter problem without any product."""
    one = importlib.import_module("soft_dtw_rust").compute_sdtw_1d

    def scoring(emb_NTD: Tensor, gallery_GUD: Tensor) -> tuple[Tensor, ...]:
        x_NT, y_GU = emb_NTD[..., 0].double().numpy(), gallery_GUD[..., 0].double().numpy()
        dist = torch.tensor([[one(x_T, y_U, GAMMA) for y_U in y_GU] for x_T in x_NT])
        return (dist / (x_NT.shape[1] + y_GU.shape[1]),)

    def truth(emb_NTD: Tensor, gallery_GUD: Tensor) -> tuple[Tensor, ...]:
        x_NT, y_GU = emb_NTD[..., 0].double(), gallery_GUD[..., 0].double()
        cost = (x_NT[:, None, :, None] - y_GU[None, :, None, :]).abs().flatten(0, 1)
        dist_P = reference.soft_dtw(cost, GAMMA, None) / (x_NT.shape[1] + y_GU.shape[1])
        return (dist_P.view(len(x_NT), len(y_GU)),)

    note = "scalar signals, cost |x - y|: a lighter problem; a loop over pairs"
    return Entry("soft-dtw-rust", {"scoring": scoring}, "no gradient", {"scoring": note}, {"scoring": truth})


def ddtw() -> Entry:
    """ddtw with its numba backend: batched, takes costs, returns the mean of the batch only."""
    module = importlib.import_module("ddtw").SDTW(gamma=GAMMA, normalization="none", backend="cpu_numba")

    def kernel(cost_PTU: Tensor) -> Tensor:
        return module(C=cost_PTU) * len(cost_PTU)

    works = {"paired": paired_with(kernel), "block": block_with(kernel)}
    note = "returns a batch's mean: value error is of that"
    return Entry("ddtw", works, "returns a batch's mean, no distances", {"paired": note, "block": note})


MAKERS: dict[str, Callable[[], Entry]] = {
    OURS: ours,
    "torch loop, exp domain": torch_exp,
    "torch loop, log domain": torch_log,
    "tslearn, loss module": tslearn_loss,
    "tslearn, cdist_soft_dtw": tslearn_cdist,
    "pysdtw": pysdtw,
    "soft-dtw": soft_dtw_cython,
    "soft-dtw-rust": soft_dtw_rust,
    "ddtw": ddtw,
}


def load(makers: dict[str, Callable[[], Entry]]) -> list[Entry]:
    """Every implementation; one that cannot be imported stays, with the reason."""
    entries = []
    for name, make in makers.items():
        try:
            entries.append(make())
        except Exception as error:  # noqa: BLE001  a peer may fail in any way; the table says how
            entries.append(Entry(name, without=f"not available: {brief(error)}"))
    return entries


def brief(error: BaseException) -> str:
    """An exception on one short line."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:160]


def seconds(run: Callable[[], Any], calls: int) -> float:
    """Wall-clock seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


# The bare products ---------------------------------------------------------------------------------------------------


def products(work: str, inputs: Inputs) -> dict[str, Callable[[], None]]:
    """The matrix products a work cannot do without, written in several ways; all into buffers made beforehand."""
    if work == "scoring":
        return _scoring_products(*inputs)
    if work == "paired":
        u, v = inputs
        E = torch.rand(len(u), u.shape[1], v.shape[1])
        trio = [(u, v.mT), (E, v), (E.mT, u)]
        each = [(a[p], b[p]) for a, b in trio for p in range(len(u))]
    else:
        flat = inputs[0].flatten(0, 1)
        E = torch.rand(len(flat), len(flat))
        trio = each = [(flat, flat.T), (E, flat), (E.T, flat)]
    return {
        "torch": _multiply(torch.matmul, trio),
        "torch, one by one": _multiply(torch.matmul, each),
        "numpy": _multiply(np.matmul, [(a.numpy(), b.numpy()) for a, b in trio]),
    }


def _multiply(matmul: Callable[..., Any], factors: Sequence[tuple[Any, Any]]) -> Callable[[], None]:
    steps = [(a, b, matmul(a, b)) for a, b in factors]

    def run() -> None:
        for a, b, out in steps:
            matmul(a, b, out=out)

    return run


def _scoring_products(emb_NTD: Tensor, gallery_GUD: Tensor) -> dict[str, Callable[[], None]]:
    """Tile by tile into one buffer that stays in cache; the whole product at once only writes more memory."""
    a, b = emb_NTD.flatten(0, 1), gallery_GUD.flatten(0, 1)
    forms = {}
    for rows, cols in ((1024, 256), (1024, 2048), (512, 512), (512, 2048), (256, 512), (256, 2048), (128, 2048)):
        buffer = torch.empty(min(rows, len(a)), min(cols, len(b)))
        forms[f"torch {rows} x {cols}"] = functools.partial(_tiled, torch.mm, a, b, buffer)
        forms[f"numpy {rows} x {cols}"] = functools.partial(_tiled, np.matmul, a.numpy(), b.numpy(), buffer.numpy())
    return forms


def _tiled(matmul: Callable[..., Any], a: Any, b: Any, buffer: Any) -> None:
    rows, cols = buffer.shape
    for i in range(0, len(a), rows):
        for j in range(0, len(b), cols):
            left, right = a[i : i + rows], b[j : j + cols]
            matmul(left, right.T, out=buffer[: len(left), : len(right)])


def operations(work: str, inputs: Inputs) -> float:
    """Floating-point operations of the bare products; a block's are those of all B x B pairs."""
    T, U = inputs[0].shape[1], inputs[-1].shape[1]
    if work == "block":
        return 3 * 2 * D * (len(inputs[0]) * T) ** 2
    return 2 * D * T * U * pairs_of(work, inputs) * (3 if work == "paired" else 1)


def fastest(work: str, inputs: Inputs) -> tuple[str, Callable[[], None]]:
    """The form with the least single time of several: what else the machine does only ever adds."""
    sample = inputs
    if work == "scoring":  # some tiles of each form are enough
        sample = (inputs[0], inputs[1][: max(16, 8192 // inputs[1].shape[1])])
    best: dict[str, float] = {}
    forms = products(work, sample)
    for _ in range(2):
        for name, run in forms.items():
            run()
            best[name] = min(best.get(name, float("inf")), seconds(run, 1), seconds(run, 1))
    form = min(best, key=lambda name: best[name])
    return form, products(work, inputs)[form]
