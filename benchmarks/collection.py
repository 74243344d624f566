"""What a collection costs before a pixel is read: annotations, manifest, split, plans, labels, and a decoding actor.

    python benchmarks/collection.py                        # 246,534 clips of 400 classes, as Kinetics-400
    python benchmarks/collection.py --clips 10000000 --classes 40
    python benchmarks/collection.py --clips 10000000 --classes 40 --parts made label    # the labelling pass alone
    python benchmarks/collection.py --latency-ms 20        # the store answers as slowly as an object store

A tenth of the clips is labelled, a quarter of the files is missing. What probing and scoring would find is made up (by
`found` and `Scorer`); everything else is what a run does: the labelling pass goes through the driver's own code to
--scorers made-up scorers, threads of other processes that commit parts as those of the pool do. Each part runs in a
process of its own, whose largest memory is shown: its own, and with the pages of mapped files, which the processes of a
node share and the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import math
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from finepseudo import run as places
from finepseudo.align.fusion import Referees
from finepseudo.data.formats import read_annotations
from finepseudo.data.manifest import CLIPS, FOLDER, FOUND, Annotated, Manifest, manifest_parts
from finepseudo.data.plan import Plan, drawn, plan_align, plan_classify, plan_pretrain, samples
from finepseudo.data.split import make_split
from finepseudo.data.stream import BlockReader
from finepseudo.driver.executor import InProcess
from finepseudo.driver.prepare import LARGEST_GROUP, PART, Found
from finepseudo.driver.referees import Judged
from finepseudo.driver.steps import Steps, Trained
from finepseudo.recipe import Recipe
from finepseudo.recipe import Split as SplitOptions
from finepseudo.recipes import find
from finepseudo.sizes import BLOCK_VIDEOS, JUDGED
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store
from finepseudo.train.predict import NEAREST, Pass, Predictor
from finepseudo.train.pseudo_labels import pseudo_samples

pc: Any = pyarrow.compute  # its functions are made at import
EPOCHS, BATCH = 30, 32
LABELLED, MISSING = 0.1, 0.25
SIGNAL = 2.0  # of the made-up scores for the right class, in standard deviations
DAMAGED = 0.001  # of the clips, which scorers cannot decode
PROCESSES = 2  # in which the scorers are threads


def recipe_of(root: Path) -> Recipe:
    """Kinetics-like: annotations in a CSV, a tenth of them with a label."""
    base = find("rehearsal")
    data = dataclasses.replace(
        base.data, root=str(root), rehearsal=None, train="train.csv", test="", vocab="vocab.json", videos="v/{video_id}"
    )
    return dataclasses.replace(base, data=data, split=SplitOptions(label_fraction=1.0), methods=("finepseudo",))


def write_annotations(root: Path, clips: int, classes: int) -> None:
    """A CSV with a line a clip."""
    (root / "vocab.json").write_text(json.dumps([f"class {label:03d}" for label in range(classes)]))
    with (root / "train.csv").open("w") as file:
        file.write("path,label\n")
        every = round(1 / LABELLED)
        for number in range(clips):
            label = f"class {number // every % classes:03d}" if number % every == 0 else ""
            file.write(f"train/{number % 997:03d}/{number:011x}_000010_000020.mp4,{label}\n")


def found(run: Store, groups: list[pa.Array]) -> Found:
    """Made up: what probing would leave of each group of files."""
    rng = np.random.default_rng(0)
    usual = {"num_frames": 300, "fps": 30.0, "height": 256, "width": 340, "access": "decord", "bytes": 1_500_000}
    usual["even"] = True
    folders: list[str] = []
    for paths in (group.to_pylist() for group in groups):
        columns: dict[str, Any] = {name: np.full(len(paths), value) for name, value in usual.items()}
        columns |= {"path": paths, "sha256": [fingerprint(path) * 5 for path in paths]}
        columns |= {"error": ["missing: no such file" if gone else None for gone in rng.random(len(paths)) < MISSING]}
        arrays = [pa.array(columns[item.name], item.type) for item in FOUND]
        folders.append(f"made/{len(folders):05d}")
        data = artefacts.table_bytes(pa.table(arrays, schema=FOUND))
        artefacts.commit(run, folders[-1], {PART: data}, {})
    return Found(run, folders, LARGEST_GROUP)


def manifest(root: Path, run: Store) -> str:
    """From annotations to a committed manifest and split, as `ensure_manifest` does it."""
    began, recipe = time.monotonic(), recipe_of(root)
    annotated, names = read_annotations(Store(str(root)), recipe.data)
    clips = Annotated(annotated)
    read_s = time.monotonic()
    probed = found(run, clips.groups(LARGEST_GROUP))
    probed_s = time.monotonic()
    artefacts.commit(run, FOLDER, manifest_parts(clips, names, probed, min_frames=8), {})
    del annotated, clips
    built_s = time.monotonic()
    made = Manifest.load(run)
    split = make_split(made, recipe.split, Store(str(root)))
    artefacts.commit(run, "split", {"split.json": split.to_bytes()}, {})
    return (
        f"annotations {read_s - began:.1f} s, manifest {built_s - probed_s:.1f} s, split "
        f"{time.monotonic() - built_s:.1f} s (and {probed_s - read_s:.1f} s to make up probes); "
        f"{len(split.labelled):,} labelled, {len(split.unlabelled):,} unlabelled"
    )


def made(root: Path, run: Store, clips: int, classes: int) -> str:
    """In the place of `manifest`, where annotations are not what is looked at: what it would have committed."""
    chunks = np.array_split(np.arange(clips), math.ceil(clips / (1 << 20)))
    number_N = pa.chunked_array([pa.array(chunk).cast(pa.string()) for chunk in chunks])
    name_N = pc.binary_join_element_wise("train/", pc.utf8_lpad(number_N, 11, "0"), "_000010_000020.mp4", "")
    gone_N = pa.array(np.random.default_rng(0).random(clips) < MISSING)
    every = {"split": "train", "start": 0, "file_frames": 300, "num_frames": 300, "fps": 30.0, "height": 256}
    every |= {"width": 340, "bytes": 1_500_000, "access": "decord"}
    columns: dict[str, Any] = {name: pa.repeat(value, clips) for name, value in every.items()}
    columns |= {"video_id": name_N, "path": name_N, "sha256": pc.utf8_lpad(number_N, 64, "0")}
    columns |= {
        "status": pc.if_else(gone_N, "rejected", "ok"),
        "reason": pc.if_else(gone_N, "missing: no such file", ""),
    }
    table = pa.table([columns[name] for name in CLIPS.names], CLIPS.names).cast(CLIPS)
    label_N = pa.array(np.arange(clips) % classes, pa.int32(), mask=np.arange(clips) % round(1 / LABELLED) > 0)
    tables = {"clips.parquet": table, "labels.parquet": pa.table([label_N], ["label"])}
    parts = {name: artefacts.table_bytes(part) for name, part in tables.items()}
    names = json.dumps([f"class {label:03d}" for label in range(classes)]).encode()
    artefacts.commit(run, FOLDER, {**parts, "classes.json": names}, {})
    return f"{clips - pc.sum(gone_N).as_py():,} usable"


def _steps(root: Path, run: Store) -> Steps:
    recipe, made = recipe_of(root), Manifest.load(run)
    return Steps(recipe, run, run, made, make_split(made, recipe.split, Store(str(root))), InProcess(recipe))


def _plans(steps: Steps) -> dict[str, Plan]:
    """Of every kind, of so many epochs."""
    recipe, split, clips = steps.recipe, steps.split, steps.manifest
    train = clips.rows("train")
    common = {"blocks_per_step": 1, "seed": 0}
    gitdl = dataclasses.replace(recipe.gitdl, videos=BATCH)
    whole, of_labelled = (EPOCHS * len(rows) // BATCH for rows in (train, split.labelled))
    how = {"frames": 16, "augment": recipe.augment, **common}
    pseudo = samples(split.unlabelled, split.unlabelled % clips.num_classes)
    both = {"batch": BATCH, "label_share": 0.25}
    return {
        "pretrain": plan_pretrain(clips, train, gitdl, steps=whole, **common),
        "align": plan_align(clips, steps.labelled(), None, recipe.align, steps=of_labelled, label_share=1.0, **how),
        "supervise": plan_classify(clips, steps.labelled(), steps=of_labelled, **both, **how),
        "round": plan_classify(clips, steps.labelled(), pseudo, steps=whole, **both, **how),
    }


def plan(root: Path, run: Store) -> str:
    """Manifest and split looked up, and the plans of all stages committed."""
    told: list[str] = []
    for name, made in _plans(_steps(root, run)).items():
        made.ensure(run, places.training_plan(name))
        told.append(f"{name} {made.blocks:,} blocks")
    return ", ".join(told)


class Counted(Store):
    """Counts what this process asks of a store; each answer can be made to take as long as an object store's."""

    asked: ClassVar[Counter[str]] = Counter()
    latency_s: ClassVar[float] = 0.0

    def _ask(self, verb: str) -> None:
        self.asked[verb] += 1
        time.sleep(self.latency_s)

    def read(self, path: str) -> bytes:
        self._ask("read")
        return super().read(path)

    def read_start(self, path: str, count: int) -> bytes:
        self._ask("read of notes")
        return super().read_start(path, count)

    def write(self, path: str, data: bytes) -> None:
        self._ask("write")
        super().write(path, data)

    def list(self, path: str = "") -> list[str]:
        self._ask("list")
        return super().list(path)

    def exists(self, path: str) -> bool:
        self._ask("look")
        return super().exists(path)


class Scorer(Predictor):
    """Commits parts as those of the pool do; what its encoders would find is made up."""

    def __init__(self, num_classes: int, seed: int) -> None:
        self.rng, self.num_classes, self.views, self.frozen = np.random.default_rng(seed), num_classes, 1, None

    def __call__(self, clip_0: np.ndarray, clip_1: np.ndarray | None) -> dict[str, np.ndarray]:
        N, K = len(clip_0), self.num_classes
        sbar_NK, logits_NK = self.rng.standard_normal((2, N, K), np.float32)
        for both_NK in (sbar_NK, logits_NK):
            both_NK[np.arange(N), clip_0 % K] += SIGNAL * 2
        near_NM = clip_0[:, None].astype(np.int32) % K + np.zeros(NEAREST, np.int32)
        near = {"members/f_A": near_NM, "alignability/f_A": np.full(near_NM.shape, 0.9, np.float32)}
        return {"sbar/f_A": sbar_NK, "logits/f_E": logits_NK, **near}

    def commit(self, run: Store, out: str, number: int, count: int) -> int:
        """A part of so many videos, of which some could not be decoded; the classes take turns."""
        error_N = np.where(self.rng.random(count) < DAMAGED, "made up: broken", "")
        place_N = number * BLOCK_VIDEOS + np.arange(count)
        columns = {"clip_0": place_N, "error": error_N, "decode_s": np.ones(count)}
        return self.write(columns, run, out, number)


def _score(
    scorers: range, of: int, blocks: Sequence[int], last: int, num_classes: int, run: Store, out: str, told: Any
) -> None:
    """Threads of one process, a scorer each; the blocks go round among all `of` of them."""

    def work(seed: int) -> None:
        scorer = Scorer(num_classes, seed)
        for number in blocks[seed::of]:
            told.put(scorer.commit(run, out, number, last if number == blocks[-1] else BLOCK_VIDEOS))

    with ThreadPoolExecutor(len(scorers)) as threads:
        for done in [threads.submit(work, seed) for seed in scorers]:
            done.result()


class Pool(InProcess):
    """An Executor whose passes are scored by so many made-up scorers, in processes of their own."""

    def __init__(self, recipe: Recipe, scorers: int) -> None:
        super().__init__(recipe)
        self.scorers = scorers

    def score(
        self, what: Pass, plan: str, blocks: Sequence[int], num_classes: int, run: Store, data: Store, out: str
    ) -> Iterator[int]:
        made, context = Plan.load(run, plan), multiprocessing.get_context("spawn")
        last, told, plain = (len(made) - 1) % BLOCK_VIDEOS + 1, context.SimpleQueue(), Store(run.root)
        each = math.ceil(self.scorers / PROCESSES)
        processes = [
            context.Process(
                target=_score,
                args=(
                    range(first, min(first + each, self.scorers)),
                    self.scorers,
                    blocks,
                    last,
                    num_classes,
                    plain,
                    out,
                    told,
                ),
            )
            for first in range(0, self.scorers, each)
        ]
        for process in processes:
            process.start()
        for _ in blocks:
            yield told.get()
        for process in processes:
            process.join()


def label(root: Path, run: Store, scorers: int, latency_s: float) -> str:
    """A pass over D_u by many scorers, its labels, and the plan that trains on them: all that the driver does of it."""
    Counted.latency_s, store = latency_s, Counted(run.root)
    steps = _steps(root, store)
    steps.executor, row_N = Pool(steps.recipe, scorers), steps.split.unlabelled
    clip_N = drawn(steps.manifest, row_N, JUDGED, "judged", 0)
    class_N = torch.from_numpy(np.searchsorted(row_N, clip_N)) % steps.manifest.num_classes
    near_NN = 0.1 + (class_N[:, None] != class_N).float()
    told, parts = list[str](), math.ceil(len(row_N) / BLOCK_VIDEOS)

    def tell(what: str, began: tuple[float, float]) -> None:
        wall_s, own_s = time.monotonic() - began[0], time.process_time() - began[1]
        requests = ", ".join(f"{count / parts:.3f} {verb}" for verb, count in sorted(Counted.asked.items()))
        told.append(
            f"{what} {wall_s:.0f} s, driver's own {own_s:.0f} s ({1e3 * own_s / parts:.2f} ms a part; {requests})"
        )
        Counted.asked.clear()

    def now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    began = now()
    scores = steps.score("finepseudo/round-1", row_N, Pass())
    tell(f"{parts:,} parts by {scorers:,} scorers:", began)
    began = now()
    referees = Referees([near_NN] * 2, torch.zeros(0, dtype=torch.int64))
    table = steps.label(
        "finepseudo/round-1", "finepseudo", Trained("", "a"), Trained("", "b"), cast(Any, None), lambda: scores,
        lambda: Judged(clip_N, referees),
    )  # fmt: skip
    tell("labels", began)
    began = now()
    pseudo, recipe = pseudo_samples(table, soft=True), steps.recipe
    plan_classify(
        steps.manifest, steps.labelled(), pseudo, frames=16, augment=recipe.augment, steps=1000, batch=BATCH,
        label_share=0.25, blocks_per_step=1, seed=0,
    ).ensure(store, places.training_plan("next"))  # fmt: skip
    tell("the next plan", began)
    return f"{len(pseudo):,} accepted, {len(scores.rejected):,} rejected; {'; '.join(told)}"


def decoder(root: Path, run: Store) -> str:
    """A decoding actor at its start: plan and manifest, and the rows of blocks anywhere in the plan."""
    began = time.monotonic()
    made = Plan.load(run, places.training_plan("round"))
    BlockReader.of(recipe_of(root), Store(str(root)), made)
    made.rows(0, BATCH)
    first = time.monotonic()
    count = 0
    for block in np.random.default_rng(0).integers(0, made.blocks, 200).tolist():
        count += len(made.rows(block * BATCH, (block + 1) * BATCH))
    last = time.monotonic()
    made.rows(len(made) - BATCH, len(made))
    told = (
        f"first block after {first - began:.2f} s, the last one of {made.blocks:,} in {time.monotonic() - last:.2f} s"
    )
    return f"{told}; {(last - first) / count * 1e6:.0f} us a row anywhere"


def _mib(name: str) -> float:
    """Memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _child(task: Callable[[Path, Store], str], root: Path, run: Store, found: Any) -> None:
    logging.getLogger("finepseudo").setLevel(logging.ERROR)  # the clips that are left out are made up
    began, own = time.monotonic(), [_mib("RssAnon")]

    def watch() -> None:
        while True:
            own[0] = max(own[0], _mib("RssAnon"))
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    told = task(root, run)
    found.put((told, time.monotonic() - began, own[0], _mib("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=246_534)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--scorers", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--folder", help="for the files, which are deleted in the end; of 10,000,000 clips some 10 GB")
    parser.add_argument("--parts", nargs="*", default=["manifest", "plan", "label", "decoder"])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="finepseudo-collection-", dir=options.folder))
    os.environ["TMPDIR"] = str(folder)  # so that tables which a node maps go with it
    context = multiprocessing.get_context("spawn")
    try:
        if "manifest" in options.parts:
            write_annotations(folder, options.clips, options.classes)
        print(f"{options.clips:,} clips, {options.classes} classes, {EPOCHS} epochs of each stage in blocks of {BATCH}")
        print(f"{'part':10} {'seconds':>8} {'own MiB':>8} {'with mapped files':>18}")
        labels = functools.partial(label, scorers=options.scorers, latency_s=options.latency_ms / 1e3)
        rows = functools.partial(made, clips=options.clips, classes=options.classes)
        tasks = {"manifest": manifest, "made": rows, "plan": plan, "label": labels, "decoder": decoder}
        for name in options.parts:
            task = tasks[name]
            found = context.Queue()
            child = context.Process(target=_child, args=(task, folder, Store(str(folder / "run")), found))
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(child.exitcode)
            told, seconds, own, peak = found.get()
            print(f"{name:10} {seconds:8.1f} {own:8.0f} {peak:18.0f}   {told}", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
