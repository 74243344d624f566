"""Speed, error and memory of the alignment distance, beside its peers and beside the bare matrix products.

    pip install -r benchmarks/requirements.txt
    pip install --no-build-isolation --no-deps soft-dtw==0.1.6
    PYTHONPATH=. python benchmarks/align.py [--quick] [--json FILE] [--plot FILE.svg]

Three works, all from embeddings: `paired` (forward and gradient of P pairs), `block` (forward and gradient of all pairs
i <= j of 32 clips) and `scoring` (N x G distances). A peer that takes costs gets the cosine costs from one matrix
product; one that knows squared Euclidean only gets unit vectors over sqrt(2), for which it is the same number.

Each thread count has a process of its own, started with OMP_NUM_THREADS, MKL_NUM_THREADS, OPENBLAS_NUM_THREADS,
NUMBA_NUM_THREADS and RAYON_NUM_THREADS at that count, torch.set_num_threads and, where a peer has it, `n_jobs` besides.
All implementations of a row run in that one process. Every measurement of another lies between two of ours, and its
ratio is against the mean of the two: what else the machine does falls on both. A slow implementation runs on fewer
pairs (the column `pairs`); times are per pair.

Axes: P pairs, B clips of a block, N videos, G gallery, T U frames, D embedding.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finepseudo.align.kernels import reference
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
OURS, BARE, BARE_HALF = "finepseudo", "bare products", "bare products of i <= j"
HALF = (CLIPS + 1) / (2 * CLIPS)  # the share of all B x B pairs that i <= j are
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
MIB = 2**20

Inputs = tuple[Tensor, ...]
Work = Callable[..., tuple[Tensor, ...]]  # inputs -> (distances, gradient of each input where the work has one)
Kernel = Callable[[Tensor], Tensor]  # cost_PTU -> undivided soft-DTW values, differentiable
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One implementation: how it does each work, or why it does not."""

    name: str
    works: dict[str, Work] = field(default_factory=dict)
    without: str = ""  # why the other works are missing
    notes: dict[str, str] = field(default_factory=dict)
    truth: dict[str, Work] = field(default_factory=dict)  # where it solves another problem than ours


# The works -----------------------------------------------------------------------------------------------------------


def inputs_of(work: str, T: int, *, seed: int = 0) -> Inputs:
    """Unrelated unit vectors: every cost is near 1, the far end of the range an exponential has to cover."""
    generator = torch.Generator().manual_seed(seed)

    def unit(count: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(count, T, D, generator=generator), dim=-1)

    if work == "block":
        return (unit(CLIPS),)
    first, second = (PAIRS[T], PAIRS[T]) if work == "paired" else VIDEOS_AND_GALLERY[T]
    return unit(first), unit(second)


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
    return {
        "paired": paired_with(kernel),
        "block": block_with(kernel),
        "scoring": scoring_with(kernel, tile_pairs),
    }


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
    plain = importlib.import_module("finepseudo.align.kernels.plain")
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


# Time ----------------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any], calls: int) -> float:
    """Wall-clock seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


@dataclass
class Runner:
    """An implementation ready to be timed on one row, and its times per pair."""

    name: str
    run: Callable[[], Any]
    pairs: int
    calls: int
    times: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def time(self) -> float:
        """Seconds per pair, now."""
        return seconds(self.run, self.calls) / self.pairs


def fit(work: str, run: Work, inputs: Inputs, limit_s: float) -> tuple[Inputs, float]:
    """The largest 1/2^k of the inputs for which a call is expected within the limit, and the expected seconds."""
    share = 1 / 16
    small = portion(work, inputs, share)
    run(*small)  # compiles
    expected = seconds(lambda: run(*small), 1) / share
    share = 1.0
    while expected > limit_s and share > 1 / 256:
        share, expected = share / 2, expected / 2
    return (inputs if share == 1 else portion(work, inputs, share)), expected


def prepare(name: str, run: Callable[[], Any], pairs: int, least_s: float) -> Runner:
    """Warm up and choose how many calls make one measurement."""
    once = seconds(run, 1)
    if once < least_s:  # a short call is not judged by its first time
        once = min(once, seconds(run, 1), seconds(run, 1))
    return Runner(name, run, pairs, calls=max(1, round(least_s / max(once, 1e-7))))


def race(mine: Runner, others: list[Runner], repetitions: int) -> Iterator[tuple[Runner, Exception]]:
    """Time every other between two measurements of ours, in alternating order; yields those that fail."""
    failed: set[str] = set()
    for repetition in range(repetitions):
        before = mine.time()
        mine.times.append(before)
        for other in others if repetition % 2 == 0 else others[::-1]:
            if other.name in failed:
                continue
            try:
                theirs = other.time()
            except Exception as error:  # noqa: BLE001  any failure of a peer is a line of the table
                failed.add(other.name)
                yield other, error
                continue
            after = mine.time()
            mine.times.append(after)
            other.times.append(theirs)
            other.ratios.append(theirs / ((before + after) / 2))
            before = after


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


# Error ---------------------------------------------------------------------------------------------------------------


def difference(got: Tensor, expected: Tensor) -> dict[str, float]:
    """Largest difference, and that over the largest expected number; of the mean, where only a sum was given."""
    if got.dim() == 0 and expected.dim():
        got, expected = got / expected.numel(), expected.mean()
    largest = float((got.double() - expected).abs().max())
    return {"max": largest, "relative": largest / float(expected.abs().max())}


def few(work: str, inputs: Inputs) -> Inputs:
    """As many pairs as the float64 reference does in a moment."""
    if work != "scoring":
        return inputs
    return portion(work, inputs, min(1.0, 1e6 / (pairs_of(work, inputs) * inputs[0].shape[1] ** 2)))


def errors(entry: Entry, work: str, inputs: Inputs, truth: Iterable[Tensor]) -> dict[str, dict[str, float]]:
    """Differences from the float64 log domain, of the distances and of the gradient."""
    value, *gradients = entry.works[work](*inputs)
    if work in entry.truth:
        truth = entry.truth[work](*inputs)
    expected, *expected_gradients = truth
    found = {"value_error": difference(value, expected)}
    if gradients:
        found["gradient_error"] = difference(torch.cat(gradients), torch.cat(expected_gradients))
    return found


def exact(work: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The log-domain reference in float64."""
    kernel: Kernel = lambda cost_PTU: reference.soft_dtw(cost_PTU, GAMMA, None)  # noqa: E731  typed in one line
    return works_with(kernel)[work](*(x.double() for x in inputs))


# Rows ----------------------------------------------------------------------------------------------------------------


class Messages(logging.Handler):
    """Keeps what this package says of itself, each message once: it names the kernel that ran."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.seen:
            self.seen.append(message)

    def take(self) -> list[str]:
        """What is new since the last call."""
        seen, self.seen = self.seen, []
        return seen


def solved() -> tuple[int, int, int] | None:
    """Pairs of this process that our C++ kernel proved by one comparison, by the two-sided run, and left to the log."""
    cpu = importlib.import_module("finepseudo.align.kernels.cpu")
    return cpu.solved() if cpu.available() else None


def ways(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> str:
    """How our kernel came to its values, as shares of the pairs."""
    if before is None or after is None or before == after:
        return ""
    counts = [b - a for a, b in zip(before, after, strict=True)]
    shares = zip(("one comparison", "two-sided", "log domain"), counts, strict=True)
    return "proven by " + ", ".join(f"{name} {count / sum(counts):.0%}" for name, count in shares if count)


def measure(work: str, T: int, entries: list[Entry], options: argparse.Namespace) -> list[Row]:
    """All rows of one work and length."""
    inputs = inputs_of(work, T)
    sample = few(work, inputs)
    truth = exact(work, sample)
    rows: dict[str, Row] = {}
    runners: dict[str, Runner] = {}
    for entry in entries:
        row = rows[entry.name] = {"work": work, "T": T, "threads": options.threads[0], "name": entry.name}
        if work not in entry.works:
            row.update(status="left out", note=entry.without)
            continue
        try:
            before = solved() if entry.name == OURS else None
            row.update(errors(entry, work, sample, truth))
            way = ways(before, solved() if entry.name == OURS else None)
            # Ours runs on all pairs: what it does once per gallery must not weigh more than it does in use.
            limit = float("inf") if entry.name == OURS else options.limit
            part, _ = fit(work, entry.works[work], inputs, limit)
            run = functools.partial(entry.works[work], *part)
            runners[entry.name] = prepare(entry.name, run, pairs_of(work, part), options.least)
            row.update(status="ok", note=way, remark=entry.notes.get(work, ""))
        except Exception as error:  # noqa: BLE001  reported in its row, the others go on
            row.update(status="failed", note=brief(error))
    form, bare = fastest(work, inputs)
    runners[BARE] = prepare(BARE, bare, pairs_of(work, inputs), options.least)
    rows[BARE] = {"work": work, "T": T, "threads": options.threads[0], "name": BARE, "status": "ok"}
    if OURS not in runners:  # nothing to divide by; the reasons are still worth a table
        return [{**row, "status": "not timed", "note": ""} if row["status"] == "ok" else row for row in rows.values()]
    mine = runners.pop(OURS)
    for runner, error in race(mine, list(runners.values()), options.repetitions):
        rows[runner.name].update(status="failed", note=brief(error))
    mine.ratios = [1.0]
    for runner in (mine, *runners.values()):
        if runner.times:
            rows[runner.name].update(timing(runner))
    rate = operations(work, inputs) / (rows[BARE]["seconds_per_pair"] * runners[BARE].pairs)
    rows[BARE].update(note=f"{form}: {rate / 1e9:.0f} GFLOP/s", form=form, flops_per_second=rate)
    rows[BARE]["ours_over_bare"] = over_bare(work, runners[BARE].ratios)
    return list(rows.values())


def timing(runner: Runner) -> Row:
    """The columns that come from the clock."""
    return {
        "pairs": runner.pairs,
        "calls": runner.calls,
        "seconds_per_pair": statistics.median(runner.times),
        "ratio": spread(runner.ratios),
    }


def over_bare(work: str, bare_over_ours: Sequence[float]) -> dict[str, dict[str, float]]:
    """Ours over the bare products; for a block also over the share of them that pairs i <= j need."""
    inverse = [1 / ratio for ratio in bare_over_ours]
    if work != "block":
        return {"all": spread(inverse)}
    return {"all": spread(inverse), "half": spread([ratio / HALF for ratio in inverse])}


# Memory --------------------------------------------------------------------------------------------------------------


def peak_growth(run: Callable[[], Any]) -> int:
    """Bytes by which the resident memory grew at its peak, the result included."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it, and only glibc hoards
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    before = _status("VmRSS")
    result = run()
    growth = _status("VmHWM") - before
    del result
    return max(0, growth)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"expected {name} in /proc/self/status")


def memory_rows(T: int, entries: list[Entry]) -> Iterator[Row]:
    """Peak growth of every implementation and work at one length."""
    for work in WORKS:
        inputs = inputs_of(work, T)
        for entry in entries:
            if work not in entry.works:
                continue
            row = {"work": work, "T": T, "name": entry.name}
            try:
                # A call in tiles needs no more for more tiles, so slow ones are shortened there, and only there.
                part, _ = fit(work, entry.works[work], inputs, 2.0 if work == "scoring" else float("inf"))
                growth = peak_growth(functools.partial(entry.works[work], *part))
                yield {**row, "pairs": pairs_of(work, part), "peak_bytes": growth}
            except Exception as error:  # noqa: BLE001  reported in its row, the others go on
                yield {**row, "note": brief(error)}


def gallery_rows(galleries: Sequence[int], *, N: int = 32, T: int = 16) -> Iterator[Row]:
    """Peak growth of our scoring against the size of the gallery."""
    for G in (galleries[0], *galleries):  # the first one only warms up
        generator = torch.Generator().manual_seed(0)
        emb_NTD, gallery_GUD = (
            torch.nn.functional.normalize(torch.randn(count, T, D, generator=generator), dim=-1) for count in (N, G)
        )
        growth = peak_growth(functools.partial(distances, emb_NTD, gallery_GUD, gamma=GAMMA))
        row = {"G": G, "N": N, "T": T, "gallery_bytes": gallery_GUD.nbytes, "result_bytes": N * G * 4}
        yield {**row, "peak_bytes": growth, "beyond_bytes": growth - N * G * 4 - gallery_GUD.nbytes}


# Processes -----------------------------------------------------------------------------------------------------------


def child(options: argparse.Namespace) -> None:
    """Measure in this process, one line of JSON per row into the file given."""
    torch.set_num_threads(options.threads[0])
    messages = Messages()
    log = logging.getLogger("finepseudo")
    log.setLevel(logging.DEBUG)
    log.addHandler(messages)
    entries = [entry for entry in load(MAKERS) if not options.only or entry.name in {OURS, *options.only}]
    with options.child_file.open("a") as file:

        def write(kind: str, row: Row) -> None:
            file.write(json.dumps({"kind": kind, **row}) + "\n")
            file.flush()

        if options.child == "memory":
            for T in options.memory_lengths:
                for row in memory_rows(T, entries):
                    write("memory", row)
            for row in gallery_rows(options.galleries):
                write("gallery", row)
            return
        for work in options.works:
            for T in options.lengths:
                start = time.perf_counter()
                for row in measure(work, T, entries, options):
                    write("row", row)
                write("log", {"work": work, "T": T, "threads": options.threads[0], "messages": messages.take()})
                took = time.perf_counter() - start
                print(f"{work}, T {T}, threads {options.threads[0]}: {took:.0f} s", file=sys.stderr, flush=True)


def spawn(kind: str, threads: int, arguments: Sequence[str]) -> list[Row]:
    """Run one child; what it wrote before a crash counts, and the crash is a row of its own."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    if kind == "memory":
        # Freed blocks go back to the system at once, or an earlier call's would hide a later call's.
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.touch()
        command = [sys.executable, __file__, *arguments, "--threads", str(threads)]
        code = subprocess.run([*command, "--child", kind, "--child-file", str(path)], env=environment).returncode
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    if code:
        rows.append({"kind": "crash", "process": kind, "threads": threads, "code": code})
    return rows


# Report --------------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Of everything that was measured."""
    found = {"python": platform.python_version(), "machine": _processor()}
    for name in ("torch", "numpy", "numba", "tslearn", "pysdtw", "soft-dtw", "soft-dtw-rust", "ddtw"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def table(rows: list[Row], memory: dict[tuple[str, int, str], Row]) -> str:
    """One work at one thread count, readable."""
    head = ("T", "", "pairs", "us/pair", "x ours", "(min..max)", "value err", "(rel)", "grad err", "(rel)", "MiB", "")
    lines = [head]
    for row in [row for row in rows if row["status"] != "left out"]:
        if row["T"] != lines[-1][0] and len(lines) > 1 and row["name"] == OURS:
            lines.append(("",) * len(head))
        lines.append(cells(row, memory.get((row["work"], row["T"], row["name"]), {})))
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(head) - 1)]
    left = {1, len(head) - 1}
    text = [
        "  ".join(
            str(cell).ljust(width) if i in left else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(line, [*widths, 0], strict=True))
        ).rstrip()
        for line in lines
    ]
    remarks = {row["name"]: row["remark"] for row in rows if row.get("remark")}
    missing = {row["name"]: row["note"] for row in rows if row["status"] == "left out"}
    text += ["", *(f"{name}: {remark}" for name, remark in remarks.items())]
    text += [f"Left out: {name} ({reason})" for name, reason in missing.items()]
    return "\n".join(text).rstrip()


def cells(row: Row, memory: Row) -> tuple[str, ...]:
    """One line of the table."""
    start = (str(row["T"]), row["name"])
    if "seconds_per_pair" not in row:
        return (*start, *("-",) * 9, f"{row['status']}: {row['note']}")
    ratio = row["ratio"]
    note = row.get("note", "")
    for kind, over in row.get("ours_over_bare", {}).items():
        of = " of i <= j" if kind == "half" else ""
        note += f"; ours / bare{of} {over['median']:.2f} ({over['min']:.2f}..{over['max']:.2f})"
    if row["status"] == "failed":
        note = f"failed: {note}"
    return (
        *start,
        str(row["pairs"]),
        number(row["seconds_per_pair"] * 1e6),
        number(ratio["median"]),
        f"({number(ratio['min'])}..{number(ratio['max'])})",
        *_error_cells(row.get("value_error")),
        *_error_cells(row.get("gradient_error")),
        f"{memory['peak_bytes'] / MIB:.1f}" if "peak_bytes" in memory else "-",
        note,
    )


def _error_cells(error: dict[str, float] | None) -> tuple[str, str]:
    return ("-", "-") if error is None else (f"{error['max']:.0e}", f"({error['relative']:.0e})")


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.3g}" if value < 0.1 else f"{value:,.{digits}f}"


def report(result: dict[str, Any]) -> str:
    """The whole result as text."""
    parts = [", ".join(f"{name} {version}" for name, version in result["versions"].items())]
    parts.append(
        f"D {D}, gamma {GAMMA}, unrelated unit vectors, float32 inputs. 'x ours' is a time over ours: above 1 is "
        "slower than ours.\nErrors are against the float64 log domain on the same inputs: largest difference, and over "
        "the largest number.\nMiB is the growth of the resident memory at its peak, results included, one thread; in "
        "scoring, which works in tiles, slow ones do fewer pairs."
    )
    memory = {(row["work"], row["T"], row["name"]): row for row in result["memory"]}
    for work, title in WORKS.items():
        for threads in result["threads"]:
            rows = [row for row in result["rows"] if row["work"] == work and row["threads"] == threads]
            if rows:
                parts.append(f"{work}, {threads} thread{'s' * (threads > 1)}: {title}\n\n{table(rows, memory)}")
    parts += [
        f"{crash['process']} process, {crash['threads']} threads: exit {crash['code']}" for crash in result["crash"]
    ]
    if result["gallery"]:
        parts.append(gallery_table(result["gallery"]))
    said = sorted({message for entry in result["log"] for message in entry["messages"]})
    parts.append("What finepseudo logged of itself: " + ("; ".join(said) if said else "nothing"))
    return "\n\n".join(parts)


def gallery_table(rows: list[Row]) -> str:
    """How the memory of scoring goes with the gallery."""
    lines = [f"Memory of scoring against the gallery, N {rows[0]['N']}, T {rows[0]['T']}, MiB", ""]
    lines.append(
        f"{'G':>6}  {'gallery':>8}  {'result':>8}  {'peak growth':>12}  {'less both':>10}  {'of the gallery':>15}"
    )
    for row in rows[1:]:
        sizes = [row[key] / MIB for key in ("gallery_bytes", "result_bytes", "peak_bytes", "beyond_bytes")]
        lines.append(
            "{:6d}  {:8.1f}  {:8.1f}  {:12.1f}  {:10.1f}  {:15.2f}".format(row["G"], *sizes, sizes[3] / sizes[0])
        )
    lines += [
        "",
        "The caller's gallery is there before; taking its size off once more allows for one packed copy of it.",
    ]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Cells per second against T, a panel for each work and thread count."""
    plt = importlib.import_module("matplotlib.pyplot")
    colours = ["#d55e00", "#0072b2", "#56b4e9", "#009e73", "#8fce5a", "#cc79a7", "#e69f00", "#7f7f7f", "#5d3a9b"]
    style = {name: {"color": colour, "marker": "o", "ms": 4} for name, colour in zip(MAKERS, colours, strict=True)}
    style[OURS] |= {"lw": 3, "ms": 6, "zorder": 5}
    style[BARE] = {"color": "black", "ls": "--", "lw": 1.5}
    style[BARE_HALF] = {"color": "black", "ls": ":", "lw": 1.5}
    shown = [work for work in WORKS if any(row["work"] == work for row in result["rows"])]
    height = len(result["threads"])
    figure, axes = plt.subplots(
        height, len(shown), figsize=(4.6 * len(shown), 3.9 * height + 0.9), sharex=True, sharey=True, squeeze=False
    )
    for i, threads in enumerate(result["threads"]):
        for j, work in enumerate(shown):
            rows = [row for row in result["rows"] if row["work"] == work and row["threads"] == threads]
            _panel(axes[i][j], [row for row in rows if "seconds_per_pair" in row], style)
            axes[i][j].set_title(f"{work}, {threads} thread{'s' * (threads > 1)}", fontsize=11)
            axes[i][j].tick_params(labelbottom=True)
        axes[i][0].set_ylabel("cells / s  (pairs x T x T)")
    for axis in axes[-1]:
        axis.set_xlabel("T, frames")
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    order = [name for name in style if name in handles]
    figure.tight_layout(rect=(0, 0.7 / figure.get_figheight(), 1, 1))
    figure.legend([handles[name] for name in order], order, loc="lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, rows: list[Row], style: dict[str, dict[str, Any]]) -> None:
    for name in style:
        half = name == BARE_HALF and rows[0]["work"] == "block"
        line = [
            (row["T"], row["T"] ** 2 / row["seconds_per_pair"] / (HALF if half else 1))
            for row in rows
            if row["name"] == (BARE if half else name)
        ]
        if line:
            axis.plot(*zip(*line, strict=True), label=name, **style[name])
    ticks = sorted({row["T"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(ticks, [str(T) for T in ticks])
    axis.yaxis.set_major_formatter(lambda value, _position: f"{value:.0e}".replace("e+0", "e"))
    axis.grid(visible=True, which="major", alpha=0.3)


# Command line --------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; --quick only changes their defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small subset, about a minute")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--plot", type=Path, help="draw cells per second against T: .svg or .png")
    parser.add_argument("--threads", type=int, nargs="+", help="thread counts, one process each")
    parser.add_argument("--lengths", type=int, nargs="+", choices=tuple(PAIRS), metavar="T", help="of 8 16 32 64 128")
    parser.add_argument("--works", nargs="+", choices=tuple(WORKS), default=list(WORKS))
    parser.add_argument("--only", nargs="+", choices=tuple(MAKERS), metavar="NAME", help="these beside ours")
    parser.add_argument("--repetitions", type=int, help="paired measurements of each implementation")
    parser.add_argument("--limit", type=float, help="seconds a call may take before it gets fewer pairs")
    parser.add_argument("--least", type=float, help="seconds a measurement lasts at least")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--child", choices=("time", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--child-file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.threads = options.threads or ([1] if options.quick else [1, 2])
    options.lengths = options.lengths or ([16, 64] if options.quick else list(PAIRS))
    options.repetitions = options.repetitions or (3 if options.quick else 5)
    options.limit = options.limit or (0.1 if options.quick else 0.2)
    options.least = options.least or (0.03 if options.quick else 0.05)
    options.memory_lengths = options.lengths[:1] if options.quick else options.lengths
    options.galleries = (512, 2048) if options.quick else (512, 2048, 8192)
    return options


def main() -> None:
    """Run the children, print the tables."""
    options = parse()
    if options.child:
        child(options)
        return
    arguments = sys.argv[1:]
    runs = [("time", threads) for threads in options.threads]
    if not options.no_memory:
        runs.append(("memory", 1))
    rows = [row for kind, threads in runs for row in spawn(kind, threads, arguments)]
    result: dict[str, Any] = {"versions": versions(), "threads": options.threads, "D": D, "gamma": GAMMA}
    for key, kind in {"rows": "row", "memory": "memory", "gallery": "gallery", "log": "log", "crash": "crash"}.items():
        result[key] = [row for row in rows if row["kind"] == kind]
    print(report(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
