"""How much of a training step and of a labelling pass is alignment, before and after; two scorers on two cores.

    python benchmarks/share.py                       # the rehearsal's encoder and sizes, one thread

"before" is the log-domain recursion in torch (align/kernels/reference.py), "after" is what runs here. Both are timed
in turn within each repetition; shares are medians, with the least and the most.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch.nn.functional import normalize

from finepseudo.align import kernels
from finepseudo.align.gallery import Gallery
from finepseudo.align.head import ScoreHead
from finepseudo.align.kernels import plain, reference
from finepseudo.align.losses import score_loss, triplet_loss
from finepseudo.align.score import ClassScorer
from finepseudo.align.softdtw import block_distances
from finepseudo.models.encoders import build
from finepseudo.recipes import find

SECONDS = 2.0
"""That two scorers work side by side for one figure."""


class LogDomainRows(plain.Rows):
    """A gallery scored in tiles by the reference."""

    solve = staticmethod(reference.soft_dtw)


BEFORE = SimpleNamespace(__name__="reference", soft_dtw=reference.soft_dtw, Rows=LogDomainRows)


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def spread(values: list[float]) -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def frames(rows: int, T: int, D: int) -> torch.Tensor:
    """Unrelated embeddings."""
    return normalize(torch.randn(rows, T, D, generator=torch.Generator().manual_seed(rows)), dim=-1)


def gallery(size: int, T: int, D: int, K: int) -> Gallery:
    """Unrelated members, classes in turn."""
    return Gallery(frames(size, T, D), torch.arange(size) % K, tuple(map(str, range(size))), K)


def head() -> ScoreHead:
    """Standardised at what unrelated embeddings give."""
    score = ScoreHead()
    score.standardise(0.4, 0.1414)
    return score


def compare(name: str, part: Callable[[], object], rest: Callable[[], object], repetitions: int) -> None:
    """Share of `part` in `part` + `rest`, with the reference and with what runs here."""
    chosen = kernels.choose
    found: dict[str, list[float]] = {"before": [], "after": []}
    times: dict[str, list[float]] = {"before": [], "after": [], "rest": []}
    for _ in range(repetitions):
        times["rest"].append(seconds(rest))
        for which, choose in (("before", lambda tensor: BEFORE), ("after", chosen)):
            kernels.choose = choose
            try:
                times[which].append(seconds(part))
            finally:
                kernels.choose = chosen
            found[which].append(times[which][-1] / (times[which][-1] + times["rest"][-1]))
    faster = [b / a for b, a in zip(times["before"], times["after"], strict=True)]
    rest_ms = 1000 * statistics.median(times["rest"])
    print(f"{name}: encoder {rest_ms:.1f} ms, share of alignment before {spread(found['before'])}, "
          f"after {spread(found['after'])}; alignment {spread(faster)} times faster")  # fmt: skip


def labelling(members: Gallery, score: ScoreHead, emb: torch.Tensor, gamma: float) -> Callable[[], object]:
    """Class means of a block; the gallery is laid out beforehand, as once for a whole pass."""
    chosen = kernels.choose
    kernels.choose = lambda tensor: BEFORE
    before = ClassScorer(members, score, gamma=gamma)
    kernels.choose = chosen
    after = ClassScorer(members, score, gamma=gamma)
    return lambda: (before if kernels.choose(emb) is BEFORE else after)(emb)


def scorer(seconds_each: float, T: int, size: int, turns: object) -> int:
    """Blocks of 32 videos that one process scores against a gallery in a time that begins for all together."""
    torch.set_num_threads(1)
    score, emb = ClassScorer(gallery(size, T, 128, 400), head(), gamma=0.1), frames(32, T, 128)
    score(emb)
    turns.wait()
    blocks, end = 0, time.perf_counter() + seconds_each
    while time.perf_counter() < end:
        score(emb)
        blocks += 1
    return blocks


def pool(scorers: int, T: int, size: int) -> float:
    """Blocks a second of several processes of one thread."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(scorers) as processes:
        turns = manager.Barrier(scorers)
        return sum(processes.starmap(scorer, [(SECONDS, T, size, turns)] * scorers)) / SECONDS


def main() -> None:
    """Print four lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    recipe = find("rehearsal")
    T, crop, B = recipe.frames.align, recipe.frames.crop, recipe.align.classes * recipe.align.clips
    encoder, score = build(recipe.models.encoder("frame"), num_classes=2, size=crop, seed=0), head()
    clips = torch.rand(B, T, 3, crop, crop)
    label_B, video_B, weight_B = torch.arange(B) // recipe.align.clips, torch.arange(B), torch.ones(B)
    emb = encoder(clips).detach().requires_grad_()

    def forward_backward() -> None:
        encoder.zero_grad()
        encoder(clips).square().sum().backward()

    def losses() -> None:
        emb.grad = None
        dist_BB = block_distances(emb, gamma=recipe.align.gamma)
        rows = (label_B, video_B, weight_B)
        (triplet_loss(dist_BB, *rows).loss + score_loss(score(dist_BB), *rows)).backward()

    losses(), forward_backward()
    compare(f"training step, block of {B} clips, T = {T}", losses, forward_backward, repetitions)

    def embed() -> None:
        with torch.inference_mode():
            encoder(clips)

    for size, K, runs in ((28, 14, repetitions), (24_000, 400, 1)):
        label = labelling(gallery(size, T, emb.shape[2], K), score, emb, recipe.align.gamma)
        compare(f"labelling {B} videos, gallery of {size}, T = {T}", label, embed, runs)
    one, two = [], []
    for _ in range(5):
        one.append(pool(1, 16, 2048))
        two.append(pool(2, 16, 2048))
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    print(f"two scorers on two cores: {spread(ratios)} times the blocks of one")


if __name__ == "__main__":
    main()
