"""Speed, error and memory of the alignment distance, beside its peers and beside the bare matrix products.

    python3 -m venv ENV && . ENV/bin/activate     # of its own; its torch must be the one the kernel was built for
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

The works and the implementations are in align_peers.py, tables and plot in align_report.py.

Axes: P pairs, N videos, G gallery, T U frames, D embedding.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from align_peers import (
    BARE,
    GAMMA,
    HALF,
    MAKERS,
    OURS,
    PAIRS,
    WORKS,
    D,
    Entry,
    Inputs,
    Work,
    brief,
    fastest,
    inputs_of,
    load,
    operations,
    pairs_of,
    portion,
    seconds,
    torch_log,
    unit_vectors,
)
from align_report import Row, plot, report, versions
from torch import Tensor

from finepseudo.align.kernels import cpu
from finepseudo.align.score import distances

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


# Time ----------------------------------------------------------------------------------------------------------------


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
    return torch_log().works[work](*(x.double() for x in inputs))


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


def gallery_rows(galleries: Sequence[int]) -> Iterator[Row]:
    """Peak growth of our scoring against the size of the gallery."""
    N, T = 32, 16
    for G in (galleries[0], *galleries):  # the first one only warms up
        emb_NTD, gallery_GUD = unit_vectors(N, G, T=T)
        growth = peak_growth(functools.partial(distances, emb_NTD, gallery_GUD, gamma=GAMMA))
        row = {"G": G, "N": N, "T": T, "gallery_bytes": gallery_GUD.nbytes, "result_bytes": N * G * 4}
        yield {**row, "peak_bytes": growth, "beyond_bytes": growth - N * G * 4}


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


# Command line --------------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
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
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--child", choices=("time", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--child-file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.threads = options.threads or ([1] if options.quick else [1, 2])
    options.lengths = options.lengths or ([16, 64] if options.quick else list(PAIRS))
    options.repetitions = options.repetitions or (3 if options.quick else 5)
    options.limit = 0.1 if options.quick else 0.2  # seconds a call may take before it gets fewer pairs
    options.least = 0.03 if options.quick else 0.05  # seconds a measurement lasts at least
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
