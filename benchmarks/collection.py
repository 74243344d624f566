"""What a collection costs before a pixel is read: annotations, manifest, split, plans, labels, and a decoding actor.

    python benchmarks/collection.py                        # 246,534 clips of 400 classes, as Kinetics-400
    python benchmarks/collection.py --clips 10000000 --classes 40

A tenth of the clips is labelled, a quarter of the files is missing. What probing and scoring would find is made up (by
`found` and `score`); everything else is what a run does. Each part runs in a process of its own, whose largest memory
is shown: its own, and with the pages of mapped files, which the processes of a node share and the system takes back
when it needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy

from finepseudo import run as places
from finepseudo.data.formats import read_annotations
from finepseudo.data.manifest import FOLDER, FOUND, Annotated, Manifest, manifest_parts
from finepseudo.data.plan import Plan, plan_align, plan_classify, plan_pretrain, plan_score, samples
from finepseudo.data.split import make_split
from finepseudo.data.stream import BlockReader
from finepseudo.driver.executor import InProcess
from finepseudo.driver.prepare import LARGEST_GROUP, PART, Found
from finepseudo.driver.steps import Steps, Trained
from finepseudo.recipe import Recipe
from finepseudo.recipe import Split as SplitOptions
from finepseudo.recipes import find
from finepseudo.sizes import BLOCK_VIDEOS
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store
from finepseudo.train.predict import Scores, part_name
from finepseudo.train.pseudo_labels import pseudo_samples

EPOCHS, BATCH = 30, 32
LABELLED, MISSING = 0.1, 0.25
SIGNAL = 2.0  # of the made-up scores for the right class, in standard deviations


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


def score(root: Path, run: Store) -> str:
    """Made up: what the pool would leave of D_u."""
    steps, rng = _steps(root, run), np.random.default_rng(1)
    classes = steps.manifest.num_classes
    row_N = steps.split.unlabelled
    lengths = {"align_frames": 24, "video_frames": 16}
    made = plan_score(steps.manifest, row_N, **lengths, clips=1, block_videos=BLOCK_VIDEOS)
    made.ensure(run, places.pass_plan("label", made.fingerprint))
    for number in range(made.blocks):
        count = len(row_N[number * BLOCK_VIDEOS : (number + 1) * BLOCK_VIDEOS])
        right_N = rng.integers(0, classes, count)
        both = rng.standard_normal((2, count, classes), np.float32)
        both[:, np.arange(count), right_N] += SIGNAL * 2
        columns = {"sbar/f_A": both[0], "logits/f_E": both[1]}
        columns |= {f"{kind}_s": np.ones(count, np.float32) for kind in ("decode", "predict")}
        columns["errors"] = np.frombuffer(b"{}", np.uint8)
        run.write(f"scores/made/{part_name(number)}", safetensors.numpy.save(columns))
    return f"{made.blocks:,} parts"


def label(root: Path, run: Store) -> str:
    """The end of a pass over D_u, its labels, and the plan that trains on them."""
    steps = _steps(root, run)
    row_N = steps.split.unlabelled
    lengths = {"align_frames": 24, "video_frames": 16}
    made = plan_score(steps.manifest, row_N, **lengths, clips=1, block_videos=BLOCK_VIDEOS)
    steps._finish("label", "scores/made", made, row_N, {"start": 0.0, "began": time.monotonic()})
    scores = Scores(run, "scores/made", made.blocks, BLOCK_VIDEOS, row_N, {}, {})
    table = steps.label("finepseudo/round-1", "finepseudo", Trained("", "a"), Trained("", "b"), lambda: scores, None)
    pseudo, recipe = pseudo_samples(table, soft=True), steps.recipe
    plan_classify(
        steps.manifest, steps.labelled(), pseudo, frames=16, augment=recipe.augment, steps=1000, batch=BATCH,
        label_share=0.25, blocks_per_step=1, seed=0,
    ).ensure(run, places.training_plan("next"))  # fmt: skip
    return f"{len(pseudo):,} accepted"


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
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="finepseudo-collection-"))
    context = multiprocessing.get_context("spawn")
    try:
        write_annotations(folder, options.clips, options.classes)
        print(f"{options.clips:,} clips, {options.classes} classes, {EPOCHS} epochs of each stage in blocks of {BATCH}")
        print(f"{'part':10} {'seconds':>8} {'own MiB':>8} {'with mapped files':>18}")
        for task in (manifest, plan, score, label, decoder):
            found = context.Queue()
            child = context.Process(target=_child, args=(task, folder, Store(str(folder / "run")), found))
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(child.exitcode)
            told, seconds, own, peak = found.get()
            print(f"{task.__name__:10} {seconds:8.1f} {own:8.0f} {peak:18.0f}   {told}", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
