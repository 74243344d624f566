"""From a recipe to a committed manifest and split: a rehearsal set is generated, and every video probed once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo import rehearsal
from finepseudo.data.child import Child
from finepseudo.data.formats import read_annotations
from finepseudo.data.manifest import FOLDER, FOUND, Annotated, Manifest, manifest_parts
from finepseudo.data.split import Split, make_split
from finepseudo.driver.executor import Executor
from finepseudo.errors import ManifestError
from finepseudo.recipe import METHODS, Recipe, Rehearsal
from finepseudo.run import SPLIT, data_store
from finepseudo.storage import artefacts, tables
from finepseudo.storage.lineage import chosen, fingerprint
from finepseudo.storage.store import Store
from finepseudo.storage.tables import pc

log = logging.getLogger("finepseudo")

GROUP = 28  # videos that one task generates or probes, of a small collection
GROUPS, LARGEST_GROUP = 4096, 512  # of a large one: about so many groups, up to so many videos in each
PART = "found.parquet"
KEPT_FILES = 1 << 20  # of which what was found stays in memory, some 200 MiB
PROBES = "probes"  # folder of what was found out of each group, until the manifest is committed


def ensure_manifest(recipe: Recipe, run: Store, executor: Executor) -> Manifest:
    """The manifest of the run's data; made by probing every video if it is not committed yet.

    Raises ManifestError: annotations are wrong (file, place and field are named), or no video is usable.
    """
    with artefacts.making(run, FOLDER) as mine:
        manifest = _ensured(recipe, mine, executor)
    counts = manifest.summary()
    rejected = f"{counts['rejected']} rejected {counts['reasons'] or ''}".strip()
    log.info("manifest %s: %s usable, %s", manifest.fingerprint, counts["usable"], rejected)
    return manifest


def _ensured(recipe: Recipe, run: Store, executor: Executor) -> Manifest:
    data = data_store(recipe, run)
    if recipe.data.rehearsal is not None:
        generate(recipe.data.rehearsal, data, executor)
    annotated, names = read_annotations(data, recipe.data)
    lineage = {
        "annotations": tables.digest(annotated.drop_columns(["where"])),
        "classes": fingerprint(names),
        "min_frames": recipe.data.min_frames,
        **({"probe": recipe.data.probe} if recipe.data.probe != "thorough" else {}),
    }

    def make() -> dict[str, bytes]:
        ordered = Annotated(annotated)
        found = probed(recipe, run, data, ordered, executor)
        return manifest_parts(ordered, names, found, min_frames=recipe.data.min_frames)

    new = artefacts.committed(run, FOLDER) is None
    artefacts.ensure(run, FOLDER, lineage, make)
    manifest = Manifest.load(run)
    run.delete(PROBES)
    if new:
        _warn(manifest, recipe)
    return manifest


def probed(
    recipe: Recipe, run: Store, data: Store, ordered: Annotated, executor: Executor, child: Child | None = None
) -> Found:
    """What probing finds of the files of clips, in committed groups below PROBES.

    Args:
        child: opens the files, where an executor works in this process; without it, each group has one of its own.
    """
    size = max(GROUP, min(LARGEST_GROUP, len(ordered) // GROUPS))
    task = functools.partial(_probe, run, data, recipe.data.probe, recipe.scale.probe_deadline_s, child)
    return Found(run, executor.spread(task, ordered.groups(size), f"probing videos, groups of {size}"), size)


def ensure_split(recipe: Recipe, run: Store, data: Store, manifest: Manifest) -> Split:
    """D_l, D_u and the test clips, committed with their seed in the name."""
    made = make_split(manifest, recipe.split, data)
    labelling = [method for method in recipe.methods if METHODS[method].unlabelled]
    if labelling and not len(made.unlabelled):
        raise ManifestError(
            f"no unlabelled video is left for {', '.join(labelling)}: {len(made.labelled)} training videos, all "
            f"labelled; lower split.label_fraction (now {recipe.split.label_fraction:g}), or ask for methods supervised"
        )
    lineage = {"fingerprint": made.fingerprint, "seed": recipe.split.seed}
    artefacts.ensure(run, SPLIT, lineage, lambda: {f"split-seed{recipe.split.seed}.json": made.to_bytes()})
    counts = [len(half) for half in (made.labelled, made.unlabelled, made.test)]
    log.info("split %s: %d labelled, %d unlabelled, %d to test on", made.fingerprint, *counts)
    return made


def generate(spec: Rehearsal, data: Store, executor: Executor) -> None:
    """Write what is missing of the rehearsal set: videos, annotations, and the exact phases of every frame."""
    lineage = chosen(spec)  # a field that is added changes nothing of what is there
    marker = artefacts.committed(data, "rehearsal")
    if marker is None:
        there = set(data.list("videos"))
        every = [(split, video_id) for split in rehearsal.SPLITS for video_id, _ in rehearsal.video_ids(spec, split)]
        missing = [item for item in every if f"{item[1]}.mp4" not in there]
        task = functools.partial(_render, spec, data)
        groups = [missing[at : at + GROUP] for at in range(0, len(missing), GROUP)]
        executor.spread(task, groups, f"generating videos, groups of {GROUP}")
        for name, body in rehearsal.annotations(spec).items():
            data.write(name, body)
        marker = artefacts.commit(data, "rehearsal", {"truth.parquet": _truth(spec, every)}, lineage)
    artefacts.check_lineage(data, "rehearsal", marker, lineage)


def _truth(spec: Rehearsal, every: Sequence[tuple[str, str]]) -> bytes:
    rows = [{"video_id": name, **vars(rehearsal.truth(spec, split, name))} for split, name in every]
    return artefacts.table_bytes(pa.Table.from_pylist(rows))


def _render(spec: Rehearsal, data: Store, group: Sequence[tuple[str, str]]) -> None:
    for split, video_id in group:
        data.write(f"videos/{video_id}.mp4", rehearsal.video(spec, split, video_id)[0])


def _probe(run: Store, data: Store, how: str, deadline_s: float, lent: Child | None, files: Any) -> str:
    """What was found out about the files of a group, committed, so that a killed preparation goes on behind it.

    Returns the folder.
    """
    paths: list[str] = files.to_pylist()
    folder = f"{PROBES}/{how}-{fingerprint(paths)}"
    known: list[dict[str, Any]] = []
    if artefacts.committed(run, folder) is not None:
        known = artefacts.read_table(run, folder, PART).to_pylist()
    good = {row["path"]: row for row in known if row["error"] is None}  # what was wrong may be mended by now
    if len(good) < len(paths):
        child = lent or Child(deadline_s)
        try:
            rows = [
                good.get(path) or {"path": path, **child.probe(data.uri(path), quick=how == "quick")} for path in paths
            ]
        finally:
            if child is not lent:
                child.close()
        part = artefacts.table_bytes(pa.Table.from_pylist(rows, schema=FOUND))
        artefacts.commit(run, folder, {PART: part}, {})
    return folder


class Found:
    """What probing found of files, by their numbers; groups are read where they are wanted."""

    def __init__(self, run: Store, folders: Sequence[str], size: int) -> None:
        self._size = size

        @functools.lru_cache(KEPT_FILES // size)
        def group(number: int) -> pa.Table:
            return artefacts.read_table(run, folders[number], PART)

        self._group = group

    def __call__(self, file_N: np.ndarray) -> pa.Table:
        groups, place_N = np.unique(file_N // self._size, return_inverse=True)
        found = pa.concat_tables(self._group(number) for number in groups.tolist())
        return tables.take(found, place_N * self._size + file_N % self._size)


def _warn(manifest: Manifest, recipe: Recipe) -> None:
    """Of what may surprise."""
    for what, ids in manifest.twice().items():
        shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        log.warning("the same clip %s: %s", what, shown)
    for part in ("align", "video"):
        asked = getattr(recipe.frames, part)
        short = pc.sum(pc.and_(manifest.usable, pc.less(manifest.clips["num_frames"], asked))).as_py()
        if short:
            log.warning("%d videos have fewer than frames.%s = %d frames; theirs are repeated", short, part, asked)
