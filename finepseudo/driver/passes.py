"""One pass of the pool over clips, in committed parts: a killed one goes on with the parts that are not there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial

import numpy as np

from finepseudo.data.batch import too_many_rejected
from finepseudo.data.manifest import Manifest
from finepseudo.data.plan import Plan
from finepseudo.driver.executor import Executor
from finepseudo.errors import DecodeError
from finepseudo.progress import Progress
from finepseudo.recipe import Recipe
from finepseudo.run import pass_plan
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.predict import Pass, Scores, part_name, read_ahead, read_notes

log = logging.getLogger("finepseudo")

SHOWN = 20  # rejected videos of a pass that the log names


def run_pass(
    name: str,
    what: Pass,
    plan: Plan,
    row_N: np.ndarray,
    folder: str,
    *,
    recipe: Recipe,
    manifest: Manifest,
    num_classes: int,
    run: Store,
    data: Store,
    executor: Executor,
) -> Scores:
    """The committed results of a pass in `folder` of the run; what an earlier start left of it is not done again.

    Args:
        plan: of one row a view, over the clips `row_N`, which are rows of the manifest.
        num_classes: K, of which the manifest may name fewer.
        data: where these clips lie.
    Raises DecodeError: more than `data.max_rejected` of the clips could not be decoded.
    """
    began, block_videos = time.monotonic(), plan.block_rows // what.clips
    if artefacts.committed(run, folder) is None:
        where = pass_plan(name, plan.fingerprint)
        plan.ensure(run, where)
        there = set(run.list(folder))
        missing = [number for number in range(plan.blocks) if part_name(number) not in there]
        count = sum(min(block_videos, len(row_N) - number * block_videos) for number in missing)
        log.info("%s: %d videos", name, count)
        progress, start = Progress(name, count), 0.0
        for videos in executor.score(what, where, missing, num_classes, run, data, folder):
            start = start or time.monotonic() - began
            progress.add(videos)
        seconds, rejected, damaged = _gathered(run, folder, plan.blocks, block_videos, row_N)
        try:
            _check_rejected(name, rejected, len(row_N), recipe.data.max_rejected, manifest)
        except DecodeError:
            for number in damaged:  # made again by the next start: files may be mended
                run.delete(f"{folder}/{part_name(number)}")
            raise
        seconds |= {"start": start, "total": time.monotonic() - began, "rows": float(len(plan))}
        seconds |= {"clips": float(len(row_N)), "rejected": float(len(rejected))}
        artefacts.commit(run, folder, {}, {"rejected": rejected, "seconds": seconds})
    left = artefacts.required(run, folder)["lineage"]
    rejected = {int(row): text for row, text in left["rejected"].items()}
    return Scores(run, folder, plan.blocks, block_videos, row_N, left["seconds"], rejected)


def _gathered(
    run: Store, folder: str, parts: int, block_videos: int, row_N: np.ndarray
) -> tuple[dict[str, float], dict[int, str], list[int]]:
    """Of a pass whose parts are all there: seconds by kind; reasons, by row, of what was not decoded; their parts."""
    seconds, rejected, damaged = {"decode": 0.0, "predict": 0.0}, dict[int, str](), list[int]()
    for number, (taken, errors) in read_ahead(partial(read_notes, run, folder), range(parts)):
        rejected |= {int(row_N[number * block_videos + place]): text for place, text in errors.items()}
        damaged += [number] if errors else []
        for kind in seconds:
            seconds[kind] += taken[kind]
    return seconds, rejected, damaged


def _check_rejected(name: str, rejected: Mapping[int, str], asked: int, most: float, manifest: Manifest) -> None:
    for row, reason in list(rejected.items())[:SHOWN]:
        log.warning("%s: %s left out: %s", name, manifest.ids(np.array([row]))[0], reason)
    if len(rejected) > SHOWN:
        log.warning("%s: %d more are left out", name, len(rejected) - SHOWN)
    if too_many_rejected(len(rejected), asked, most):
        raise DecodeError(
            f"{name}: {len(rejected)} of {asked} videos could not be decoded, more than data.max_rejected = "
            f"{most:g}; {'; '.join(list(rejected.values())[:3])}"
        )
