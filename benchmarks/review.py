"""What an hour of an expert's time buys: clips by influence, by uncertainty and at random, answered by the truth.

    python benchmarks/review.py rehearsal --run runs/demo --to runs/review --count 20 --seeds 0 1 2

`--run` is a finished run of the recipe's data; its manifest and pre-training are used. For every label seed the recipe
is run as it is, and once more for each order of the queue, with as many clips answered by the annotations. Printed:
top-1 on the test videos, mean and standard error over the seeds, the gain over the run without answers, paired by seed,
and how many of the answers were another class than the pseudo-label. A run that is there is looked up.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
from dataclasses import replace
from typing import get_args

import numpy as np

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.recipe import Recipe, changed
from finepseudo.recipes import find
from finepseudo.results import Results
from finepseudo.review.answers import import_answers
from finepseudo.review.queue import By, make_queue
from finepseudo.run import Run
from finepseudo.runtime.executor import on_ray
from finepseudo.storage.store import Store

PARTS = ("f_E", "fused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--run", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--in-process", action="store_true", help="without Ray")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    base, to = Store(asked.run), Store(asked.to)
    top1: dict[str, list[list[float]]] = {}
    news: dict[str, list[int]] = {}
    for seed in asked.seeds:
        recipe = replace(changed(find(asked.recipe), {"split.seed": seed}), methods=("finepseudo",))
        before = Run.at(to.child(f"seed-{seed}/none"), base)
        top1.setdefault("none", []).append(accuracies(finished(recipe, before, in_process=asked.in_process)))
        for by in get_args(By):
            uri, other = answered(before, asked.count, by)
            news.setdefault(by, []).append(other)
            after = Run.at(to.child(f"seed-{seed}/{by}"), base)
            learned = changed(recipe, {"split.answers": uri})
            top1.setdefault(by, []).append(accuracies(finished(learned, after, in_process=asked.in_process)))
            print(f"seed {seed}, {by}: {other} of {asked.count} answers are another class; {top1[by][-1]}", flush=True)
    print(f"\n{asked.recipe}, {asked.count} answers, label seeds {asked.seeds}; top-1, and gain over no answers")
    for by, found in top1.items():
        values_S2, gain_S2 = np.array(found), np.array(found) - np.array(top1["none"])
        cells = [
            f"{part} {said(values_S2[:, at])} ({said(gain_S2[:, at], '+')})" if by != "none" else
            f"{part} {said(values_S2[:, at])}"
            for at, part in enumerate(PARTS)
        ]  # fmt: skip
        print(f"  {by:<12}{'  '.join(cells)}" + (f"  other class: {np.mean(news[by]):.1f}" if by in news else ""))


def finished(recipe: Recipe, run: Run, *, in_process: bool) -> Results:
    if in_process:
        return ensure_results(run_rounds(recipe, run.store, InProcess(recipe), run.base))
    with on_ray(recipe) as executor:
        return ensure_results(run_rounds(recipe, run.store, executor, run.base))


def answered(run: Run, count: int, by: By) -> tuple[str, int]:
    """Committed answers, by the annotations, and how many are another class than the pseudo-label."""
    clips, manifest = make_queue(run, count, by).clips, run.manifest()
    ids = [clip["clip"] for clip in clips]
    truth = [manifest.class_names[label] for label in manifest.truth(manifest.rows_of(ids)).tolist()]
    sink = io.StringIO()
    csv.writer(sink).writerows([("clip", "label"), *zip(ids, truth, strict=True)])
    run.store.write(f"{by}.csv", sink.getvalue().encode())
    done = import_answers(run, run.store.uri(f"{by}.csv"))
    return done.uri, sum(clip["label"] != label for clip, label in zip(clips, truth, strict=True))


def accuracies(results: Results) -> list[float]:
    measured = results.measured["finepseudo"]
    return [measured.f_E.top1.value, measured.fused.top1.value if measured.fused else np.nan]


def said(value_S: np.ndarray, sign: str = "") -> str:
    """Mean and standard error over the seeds."""
    error = value_S.std(ddof=1) / np.sqrt(len(value_S)) if len(value_S) > 1 else np.nan
    return f"{value_S.mean():{sign}.3f} ±{error:.3f}"


if __name__ == "__main__":
    main()
