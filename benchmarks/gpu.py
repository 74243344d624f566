"""The Triton kernels on an NVIDIA device: their numbers against the log domain in double, then speed and memory.

    PYTHONPATH=. python benchmarks/gpu.py [--lengths 16 32 64 128] [--seconds 0.2] [--checks-only]

Needs this package's align/ and torch with CUDA, and triton, which such a torch brings along. Nothing has been measured
with it yet: no device has run it.

Three works: `forward` and `forward and gradient`, from the costs of all pairs i <= j of a training block, and
`class sums`, from embeddings to the class sums of N videos x G gallery members. Beside ours runs a loop of torch
operations over anti-diagonals in the log domain (kernels/reference.py), and flash-softdtw 0.2.0 where it is installed
and right. That one gets the block's costs in its own anti-diagonal layout, laid out beforehand; from embeddings, the
layout is part of the work. Every measurement of another lies between two of ours, and its ratio is
against the mean of the two.

Exits with 0, with 1 if a number is wrong, and with 2 if there is no device to run on.

Axes: P pairs, B clips of a block, N videos, G gallery, T U frames, D embedding, K classes, H hidden units of the head.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from finepseudo.align.kernels import reference

GAMMA = 0.1
D = 128
CLIPS = 32
CLASSES = 64
HIDDEN = 16
GALLERY = 4096
TILE_CELLS = 2**25  # of the peers, which hold the costs: 128 MiB at a time
OURS, LOOP, FLASH = "finepseudo", "torch, log domain", "flash-softdtw"
HEADER = ("work", "T", "implementation", "ms", "cells/s", "times ours", "spread", "peak MiB")

Call = Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print a table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128], help="frames of every clip, T = U")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each implementation")
    parser.add_argument("--checks-only", action="store_true", help="compare the numbers and stop")
    options = parser.parse_args(arguments)
    if min(options.lengths) < 1 or options.seconds <= 0 or options.rounds < 1:
        parser.error("expected lengths and rounds of at least 1 and a positive number of seconds")
    if not torch.cuda.is_available() or torch.version.cuda is None:
        print(f"no NVIDIA device to run on: torch {torch.__version__} sees none", file=sys.stderr)
        return 2
    from finepseudo.align.kernels import cuda

    torch.backends.cuda.matmul.allow_tf32 = False  # the peers' costs shall be fp32, as ours are
    flash, why = flash_softdtw()
    for line in about(flash, why):
        print(line)
    wrong = 0
    for name, error in checks(cuda):
        wrong += not error <= 1  # NaN is wrong as well
        print(f"{'ok   ' if error <= 1 else 'WRONG'} {name}: {error:.3f} of the allowed error", flush=True)
    if wrong:
        print(f"{wrong} checks failed; nothing is timed", file=sys.stderr)
        return 1
    if not options.checks_only:
        rows = []
        for work, make in (("forward", block), ("forward and gradient", block_gradient), ("class sums", scoring)):
            for T in options.lengths:
                calls, cells = make(cuda, flash, T)
                rows += measured(calls, (work, T), cells, options.seconds, options.rounds)
                print(f"{work}, T = {T}: done", file=sys.stderr, flush=True)
                del calls
        print(table(HEADER, rows))
    return 0


def flash_softdtw() -> tuple[ModuleType | None, str]:
    """That package, or why it is left out: a build for other cards may leave its output untouched without an error."""
    try:
        flash = importlib.import_module("flash_softdtw")
    except ImportError as error:
        return None, f"not installed ({error})"
    emb = frames(4, 16)
    cost_PTU, lengths = costs(emb, emb), [16] * 16
    try:
        laid = flash.square_to_antidiag(cost_PTU.flatten(), lengths, 16)
        dist_P = flash.softdtw_forward(lengths, 16, laid, gamma=GAMMA)[0]
        torch.cuda.synchronize()
    except RuntimeError as error:
        return None, f"left out, it does not run on this device ({error})"
    error = excess(dist_P, reference.soft_dtw(cost_PTU.double(), GAMMA, None), 1e-3, 1e-3)
    if not error <= 1:
        return None, f"left out, its values are {error:.0f} times 1e-3 from ours on this device"
    return flash, ""


def about(flash: ModuleType | None, why: str) -> Iterator[str]:
    """The device and every version that the numbers depend on."""
    device = torch.cuda.get_device_properties(0)
    yield (
        f"{device.name}, compute capability {device.major}.{device.minor}, {device.multi_processor_count} processors, "
        f"{device.total_memory / 2**30:.0f} GiB"
    )
    triton = importlib.metadata.version("triton")
    yield f"python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}, triton {triton}"
    yield f"{FLASH}: {importlib.metadata.version('flash-softdtw') if flash else why}"


# Numbers --------------------------------------------------------------------------------------------------------------


def frames(count: int, T: int, depth: int = D, *, seed: int = 0) -> Tensor:
    """Unrelated unit vectors, made on the CPU so that they are the same on every device."""
    random = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, T, depth, generator=random), dim=-1).cuda()


def costs(emb_NTD: Tensor, gallery_GUD: Tensor) -> Tensor:
    """Cosine costs of all pairs (n, g), [N * G, T, U] with g fastest."""
    (N, T, _), (G, U, _) = emb_NTD.shape, gallery_GUD.shape
    product = emb_NTD.flatten(0, 1) @ gallery_GUD.flatten(0, 1).T
    return (1 - product).view(N, T, G, U).transpose(1, 2).reshape(N * G, T, U)


def truth(emb_NTD: Tensor, gallery_GUD: Tensor, gamma: float) -> Tensor:
    """Distances in double, [N, G]."""
    cost_PTU = costs(emb_NTD.double(), gallery_GUD.double())
    dist_P = reference.soft_dtw(cost_PTU, gamma, None) / sum(cost_PTU.shape[1:])
    return dist_P.view(len(emb_NTD), len(gallery_GUD))


def excess(got: Tensor, want: Tensor, absolute: float = 1e-6, relative: float = 1e-5) -> float:
    """The largest error as a share of what is allowed; NaN where a number is not finite."""
    return float(((got.double() - want).abs() / (absolute + relative * want.abs())).max())


def gradient(kernel: Any, cost_PTU: Tensor, gamma: float, lengths_P2: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of their sum."""
    cost_PTU = cost_PTU.detach().requires_grad_()
    dist_P = kernel.soft_dtw(cost_PTU, gamma, lengths_P2)
    (grad_PTU,) = torch.autograd.grad(dist_P.sum(), cost_PTU)
    return dist_P.detach(), grad_PTU


def checks(cuda: Any) -> Iterator[tuple[str, float]]:
    """Every kernel in shapes that are not powers of two; what the interpreter cannot show: precision and races."""
    for N, G, T, U, depth in ((5, 7, 16, 16, 128), (3, 130, 5, 7, 33), (2, 40, 33, 20, 17), (2, 3, 300, 70, 1024)):
        for gamma in (0.001, 0.1, 10.0):
            emb, gallery = frames(N, T, depth, seed=1), frames(G, U, depth, seed=2)
            error = excess(cuda.distances(emb, gallery, gamma), truth(emb, gallery, gamma))
            yield f"distances N {N} G {G} T {T} U {U} D {depth} gamma {gamma:g}", error
    for dtype in (torch.float16, torch.bfloat16):
        emb, gallery = frames(9, 20, 40, seed=3).to(dtype), frames(70, 24, 40, seed=4).to(dtype)
        yield f"distances {dtype}", excess(cuda.distances(emb, gallery, GAMMA), truth(emb, gallery, GAMMA))
    same = frames(4, 64)
    yield "distances of the same clips", excess(cuda.distances(same, same, 0.01), truth(same, same, 0.01))
    for T, U, gamma in ((1, 1, 0.1), (32, 32, 0.1), (9, 40, 0.001), (300, 70, 1.0)):
        cost_PTU = costs(frames(3, T, 16, seed=5), frames(3, U, 16, seed=6))
        lengths = torch.tensor([[T, U], [1, U], [T, 1]], device="cuda").repeat(3, 1)
        for lengths_P2 in (None, lengths):
            got, want = (
                gradient(k, c, gamma, lengths_P2) for k, c in ((cuda, cost_PTU), (reference, cost_PTU.double()))
            )
            name = f"T {T} U {U} gamma {gamma:g}{'' if lengths_P2 is None else ' ragged'}"
            yield f"values {name}", excess(got[0], want[0], 1e-6 * (T + U))
            yield f"gradient {name}", excess(got[1], want[1], 1e-5)
    emb, gallery = frames(50, 40, seed=7), frames(300, 40, seed=8)
    head = score_head(0.5)
    start_C = torch.tensor([0, 0, 1, 200, 200, 300, 300], device="cuda")
    dist_NG = truth(emb, gallery, GAMMA)
    for as_score in (False, True):
        got = cuda.class_sums(emb, gallery, start_C, *head, GAMMA, as_score=as_score)
        want = sums_of(alignability(dist_NG, head, as_score=as_score), start_C)
        yield f"class sums, as_score {as_score}", excess(got, want, 1e-3)
        again = [cuda.class_sums(emb, gallery, start_C, *head, GAMMA, as_score=as_score) for _ in range(20)]
        differ = any(not torch.equal(other, got) for other in again)
        yield f"class sums, twenty times the same bits, as_score {as_score}", 2.0 * differ
    emb[1, 3, 5] = torch.nan
    lost = cuda.distances(emb, gallery, GAMMA).isfinite()
    yield "NaN stays where it is", 2.0 * (bool(lost[1].any()) or not bool(lost[[0, *range(2, 50)]].all()))


def score_head(mean: float) -> tuple[Tensor, Tensor, Tensor, float, float, float]:
    """slope_H, centre_H, height_H, bias, mean, std of a head about as it starts."""
    unit = torch.ones(HIDDEN, device="cuda")
    return unit, torch.linspace(-2, 2, HIDDEN, device="cuda"), unit * (2 / HIDDEN), 0.0, mean, 0.05


def alignability(dist: Tensor, head: tuple, *, as_score: bool) -> Tensor:
    """f_S of distances of any shape, or its sigmoid."""
    slope_H, centre_H, height_H, bias, mean, std = head
    hidden = torch.tanh(((dist - mean) / std)[..., None] * slope_H + centre_H)
    value = bias - (hidden * height_H).sum(-1)
    return value.sigmoid() if as_score else value


def sums_of(values_NG: Tensor, start_C: Tensor) -> Tensor:
    """Sums over the members of each class, in double."""
    K = len(start_C) - 1
    label_G = torch.repeat_interleave(torch.arange(K, device=start_C.device), start_C.diff())
    total_NK = torch.zeros(len(values_NG), K, dtype=torch.float64, device=values_NG.device)
    return total_NK.index_add(1, label_G, values_NG.double())


# Works: what is called, by implementation, and the cells of one call -------------------------------------------------


def block(cuda: Any, flash: Any, T: int) -> tuple[dict[str, Call], int]:
    """R of all pairs i <= j of a training block, from their costs."""
    cost_PTU = block_costs(T)
    calls: dict[str, Call] = {
        OURS: lambda: cuda.soft_dtw(cost_PTU, GAMMA, None),
        LOOP: lambda: reference.soft_dtw(cost_PTU, GAMMA, None),
    }
    if flash:
        lengths = [T] * len(cost_PTU)
        laid = flash.square_to_antidiag(cost_PTU.flatten(), lengths, T)
        calls[FLASH] = lambda: flash.softdtw_forward(lengths, T, laid, gamma=GAMMA)
    return calls, cost_PTU.numel()


def block_gradient(cuda: Any, flash: Any, T: int) -> tuple[dict[str, Call], int]:
    """R and dR/dC of the same pairs."""
    cost_PTU = block_costs(T)
    calls: dict[str, Call] = {
        OURS: lambda: gradient(cuda, cost_PTU, GAMMA, None),
        LOOP: lambda: gradient(reference, cost_PTU, GAMMA, None),
    }
    if flash:
        lengths = [T] * len(cost_PTU)
        laid = flash.square_to_antidiag(cost_PTU.flatten(), lengths, T)

        def both() -> Any:
            _, cells = flash.softdtw_forward(lengths, T, laid, gamma=GAMMA)
            return flash.softdtw_backward(lengths, T, laid, cells, gamma=GAMMA)

        calls[FLASH] = both
    return calls, cost_PTU.numel()


def block_costs(T: int) -> Tensor:
    """Costs of all pairs i <= j of CLIPS clips."""
    emb = frames(CLIPS, T)
    first, second = torch.triu_indices(CLIPS, CLIPS, device="cuda")
    return costs(emb, emb).index_select(0, first * CLIPS + second).contiguous()


def scoring(cuda: Any, flash: Any, T: int) -> tuple[dict[str, Call], int]:
    """Class sums of N videos, fewer the longer they are: about 2e9 cells, the peers in tiles."""
    N = max(1, 2**31 // (GALLERY * T * T))
    emb, gallery = frames(N, T, seed=1), frames(GALLERY, T, seed=2)
    start_C = torch.arange(CLASSES + 1, device="cuda") * (GALLERY // CLASSES)
    head = score_head(0.5)
    height = max(1, TILE_CELLS // (GALLERY * T * T))
    width = min(GALLERY, max(1, TILE_CELLS // (T * T)))

    def tiled(values: Callable[[Tensor], Tensor]) -> Tensor:
        totals = []
        for n in range(0, N, height):
            part = emb[n : n + height]
            tiles = [values(costs(part, gallery[g : g + width])).view(len(part), -1) for g in range(0, GALLERY, width)]
            totals.append(sums_of(alignability(torch.cat(tiles, 1) / (2 * T), head, as_score=False), start_C))
        return torch.cat(totals)

    calls: dict[str, Call] = {
        OURS: lambda: cuda.class_sums(emb, gallery, start_C, *head, GAMMA, as_score=False),
        LOOP: lambda: tiled(lambda cost_PTU: reference.soft_dtw(cost_PTU, GAMMA, None)),
    }
    if flash:

        def theirs(cost_PTU: Tensor) -> Tensor:
            lengths = [T] * len(cost_PTU)
            laid = flash.square_to_antidiag(cost_PTU.flatten(), lengths, T)
            return flash.softdtw_forward(lengths, T, laid, gamma=GAMMA)[0]

        calls[FLASH] = lambda: tiled(theirs)
    return calls, N * GALLERY * T * T


# Measuring ------------------------------------------------------------------------------------------------------------


def milliseconds(call: Call, repeats: int) -> float:
    """Time of one call, between two events on the device."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats


def peak_mib(call: Call) -> float:
    """What one call allocates at most, beyond what was there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measured(calls: dict[str, Call], what: tuple, cells: int, seconds: float, rounds: int) -> list[tuple[str, ...]]:
    """A row of the table for each implementation."""
    peaks = {name: peak_mib(call) for name, call in calls.items()}  # the first call compiles; it is not timed
    repeats = {name: max(1, round(1000 * seconds / milliseconds(call, 1))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        before = milliseconds(calls[OURS], repeats[OURS])
        times[OURS].append(before)
        for name in [name for name in calls if name != OURS]:
            theirs = milliseconds(calls[name], repeats[name])
            after = milliseconds(calls[OURS], repeats[OURS])
            times[name].append(theirs)
            times[OURS].append(after)
            ratios[name].append(2 * theirs / (before + after))
            before = after
    return [(*map(str, what), name, *figures(times[name], ratios[name], cells), f"{peaks[name]:.1f}") for name in calls]


def figures(times: Sequence[float], ratios: Sequence[float], cells: int) -> tuple[str, str, str, str]:
    """Median time, rate, and the median and range of the ratios; ours has none."""
    time = statistics.median(times)
    rate = f"{1000 * cells / time:.2e}"
    if not ratios:
        return f"{time:.3f}", rate, "1", f"{min(times) / time:.2f}-{max(times) / time:.2f}"
    return f"{time:.3f}", rate, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


if __name__ == "__main__":
    sys.exit(main())
