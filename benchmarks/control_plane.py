"""The driver at the size of a large collection: time and memory of one labelling round, with made-up scorers.

    python benchmarks/control_plane.py --videos 10000000 --scorers 1000 --classes 400

The manifest, the passes over it, the labels and the plan of the next training are the real ones, on a local disk.
Nothing is decoded and no net runs: each scorer has one block of results, which is committed under the name of every
block that falls to it, as fast as the disk takes it. Memory is the largest resident set of the driver's process, of
which the mapped pages of tables (shared, given back when memory is short) are a part.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import safetensors.numpy
import tyro

from finepseudo.data.manifest import CLIPS, FOLDER, Manifest
from finepseudo.data.plan import drawn, plan_classify
from finepseudo.driver.prepare import ensure_split
from finepseudo.driver.referees import Judged
from finepseudo.driver.steps import Steps, Trained
from finepseudo.recipe import Label, Recipe, Split
from finepseudo.recipes import find
from finepseudo.sizes import BLOCK_VIDEOS, JUDGED
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.predict import Pass, part_name
from finepseudo.train.pseudo_labels import pseudo_samples

T = TypeVar("T")
CHUNK = 1 << 18  # clips that are made up at a time


@dataclass(frozen=True, kw_only=True)
class Options:
    videos: int = 10_000_000
    scorers: int = 1000
    classes: int = 400
    label_fraction: float = 0.01
    folder: str = ""
    """Where to work, and what is left there; empty: a temporary folder that is deleted. A million videos want about
    1 GB."""


@dataclass
class Scorers:
    """An executor whose pool has answered before it is asked."""

    count: int
    classes: int

    def score(
        self, what: Pass, plan: str, blocks: Sequence[int], num_classes: int, run: Store, data: Store, out: str
    ) -> Iterator[int]:
        folder, templates = Path(run.root) / out, Path(run.root) / "scorers"
        folder.mkdir(parents=True, exist_ok=True)
        for block in blocks:
            os.link(templates / f"{block % self.count}", folder / part_name(block))
            yield BLOCK_VIDEOS

    def write(self, run: Store) -> None:
        """The block of each scorer: confident in one class a video, by both nets."""
        draw = np.random.default_rng(0)
        for number in range(self.count):
            sbar_NK = draw.normal(size=(BLOCK_VIDEOS, self.classes)).astype(np.float32)
            sbar_NK[np.arange(BLOCK_VIDEOS), draw.integers(self.classes, size=BLOCK_VIDEOS)] += 12
            seconds = np.full(BLOCK_VIDEOS, 0.01, np.float32)
            body = {"sbar/f_A": sbar_NK, "logits/f_E": sbar_NK + draw.normal(size=sbar_NK.shape).astype(np.float32),
                    "decode_s": seconds, "predict_s": seconds, "errors": np.frombuffer(b"{}", np.uint8)}  # fmt: skip
            run.write(f"scorers/{number}", safetensors.numpy.save(body))


def make_manifest(options: Options, run: Store) -> None:
    """Clips of files of their own, a class each."""
    clips, labels = [], []
    for at in range(0, options.videos, CHUNK):
        number_N = np.arange(at, min(at + CHUNK, options.videos))
        text = [f"{number:010d}" for number in number_N.tolist()]
        same: dict[str, Any] = {
            "start": 0, "file_frames": 300, "num_frames": 300, "fps": 30.0, "height": 256, "width": 340,
            "bytes": 1 << 20, "access": "keyframes", "split": "train", "status": "ok", "reason": "",
        }  # fmt: skip
        columns: dict[str, Any] = {name: pa.repeat(value, len(text)) for name, value in same.items()}
        columns |= {"video_id": text, "path": [f"videos/{one}.mp4" for one in text],
                    "sha256": [f"{number:064x}" for number in number_N.tolist()]}  # fmt: skip
        clips.append(pa.table([pa.array(columns[n]).cast(CLIPS.field(n).type) for n in CLIPS.names], schema=CLIPS))
        labels.append(pa.table({"label": pa.array(number_N % options.classes, pa.int32())}))
    names = json.dumps([f"class {number}" for number in range(options.classes)]).encode()
    parts = {
        "clips.parquet": artefacts.tables_bytes(iter(clips)),
        "labels.parquet": artefacts.tables_bytes(iter(labels)),
    }
    artefacts.commit(run, FOLDER, {**parts, "classes.json": names}, {})


def timed(what: str, do: Callable[[], T]) -> T:
    began = time.monotonic()
    made = do()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:<44} {time.monotonic() - began:8.1f} s   {peak:6.2f} GiB so far", flush=True)
    return made


def drive(options: Options, root: str) -> None:
    """What the driver does of a round, in this process."""
    run, scorers = Store(root), Scorers(options.scorers, options.classes)
    label = Label(threshold=0.5, fusion="mean", min_coverage=0, min_agreement=0)
    recipe: Recipe = replace(
        find("rehearsal"), split=Split(label_fraction=options.label_fraction), label=label, methods=("finepseudo",)
    )
    print(f"{options.videos:,} videos, {options.scorers:,} scorers, {options.classes} classes")
    timed("an empty process", lambda: None)
    manifest = timed("manifest: open", lambda: Manifest.load(run))
    split = timed("split", lambda: ensure_split(recipe, run, run, manifest))
    steps = Steps(recipe, run, run, manifest, split, scorers)  # type: ignore[arg-type]
    scores = timed("the pass over D_u", lambda: steps.score("label", split.unlabelled, Pass()))
    judged = Judged(drawn(manifest, split.unlabelled, JUDGED, "judged", 0), None)
    made_up = Trained("", "")
    table = timed(
        "labels of D_u",
        lambda: steps.label(
            "labels", "finepseudo", made_up, made_up, None, lambda: scores, lambda: judged  # type: ignore[arg-type]
        ),
    )  # fmt: skip
    print(f"accepted: {table['accepted'].to_numpy().mean():.3f}")
    pseudo = timed("accepted labels as samples", lambda: pseudo_samples(table, soft=True))
    plan = timed(
        "plan of the next training",
        lambda: plan_classify(
            manifest, steps.labelled(), pseudo, frames=16, augment=recipe.augment, steps=1_000_000, batch=32,
            label_share=0.5, blocks_per_step=8, seed=0,
        ),
    )  # fmt: skip
    timed("its commit", lambda: plan.ensure(run, "plans/next"))
    timed("rows of a block in its middle", lambda: plan.rows(4_000_000 * 32, 4_000_000 * 32 + 32))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    root = options.folder or tempfile.mkdtemp(prefix="control-plane-")
    try:
        run, process = Store(root), multiprocessing.get_context("spawn").Process
        Scorers(options.scorers, options.classes).write(run)
        for job, args in ((make_manifest, (options, run)), (drive, (options, root))):
            child = process(target=job, args=args)  # a process each: what one needed, the other has not
            child.start()
            child.join()
            if child.exitcode:
                sys.exit(child.exitcode)
    finally:
        if not options.folder:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
