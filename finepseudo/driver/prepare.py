"""From a recipe to a committed manifest and split: a rehearsal set is generated, and every video probed once."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from finepseudo import rehearsal
from finepseudo.data.child import Child
from finepseudo.data.formats import read_annotations
from finepseudo.data.manifest import FOLDER, Manifest, build_manifest
from finepseudo.data.split import SplitLists, make_split
from finepseudo.driver.executor import Executor
from finepseudo.errors import ManifestError
from finepseudo.recipe import METHODS, Recipe, Rehearsal
from finepseudo.run import data_store
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store

log = logging.getLogger("finepseudo")

GROUP = 28  # videos that one task generates or probes
PROBES = "probes"  # folder of what was found out of each group, until the manifest is committed


def ensure_manifest(recipe: Recipe, run: Store, executor: Executor) -> Manifest:
    """The manifest of the run's data; made by probing every video if it is not committed yet.

    Raises ManifestError: annotations are wrong (file, place and field are named), or no video is usable.
    """
    data = data_store(recipe, run)
    if recipe.data.rehearsal is not None:
        generate(recipe.data.rehearsal, data, executor)
    annotations, names = read_annotations(data, recipe.data)
    lineage = {
        "annotations": fingerprint([asdict(replace(row, where="")) for row in annotations]),
        "classes": fingerprint(names),
        "min_frames": recipe.data.min_frames,
        "videos": recipe.data.videos,
        **({"probe": recipe.data.probe} if recipe.data.probe != "thorough" else {}),
    }

    def make() -> dict[str, bytes]:
        paths = {row.video_id: row.path(recipe.data.videos) for row in annotations}
        uris = [(path, data.uri(path)) for path in dict.fromkeys(paths.values())]
        task = functools.partial(_probe, run, recipe.scale.probe_deadline_s, recipe.data.probe)
        found = executor.spread(task, _groups(uris), f"probing videos, groups of {GROUP}")
        probes = {path: probe for group in found for path, probe in group.items()}
        manifest = build_manifest(annotations, names, probes, paths, min_frames=recipe.data.min_frames)
        return {
            "manifest.parquet": artefacts.table_bytes(manifest.table),
            "classes.json": json.dumps(list(manifest.class_names)).encode(),
        }

    artefacts.ensure(run, FOLDER, lineage, make)
    run.delete(PROBES)
    manifest = Manifest.load(run)
    _log_summary(manifest, recipe)
    return manifest


def ensure_split(recipe: Recipe, run: Store, manifest: Manifest) -> SplitLists:
    """D_l and D_u, committed with their seed in the name."""
    truth = manifest.truth("train")
    without = [video.video_id for video in manifest.videos("train") if video.video_id not in truth]
    made = make_split(truth, without, label_fraction=recipe.split.label_fraction, seed=recipe.split.seed)
    labelling = [method for method in recipe.methods if METHODS[method].labels]
    if labelling and not made.unlabelled:
        raise ManifestError(
            f"no unlabelled video is left for {', '.join(labelling)}: {len(made.labelled)} training videos, all "
            f"labelled; lower split.label_fraction (now {recipe.split.label_fraction:g}), or ask for methods supervised"
        )
    lineage = {"fingerprint": made.fingerprint, "seed": recipe.split.seed, "fraction": recipe.split.label_fraction}
    artefacts.ensure(run, "split", lineage, lambda: {f"split-seed{recipe.split.seed}.json": made.to_bytes()})
    log.info("split %s: %d labelled, %d unlabelled", made.fingerprint, len(made.labelled), len(made.unlabelled))
    return made


def generate(spec: Rehearsal, data: Store, executor: Executor) -> None:
    """Write what is missing of the rehearsal set: videos, annotations, and the exact phases of every frame."""
    lineage = asdict(spec)
    marker = artefacts.committed(data, "rehearsal")
    if marker is None:
        there = set(data.list("videos"))
        every = [(split, video_id) for split in rehearsal.SPLITS for video_id, _ in rehearsal.video_ids(spec, split)]
        missing = [item for item in every if f"{item[1]}.mp4" not in there]
        task = functools.partial(_render, spec, data)
        executor.spread(task, _groups(missing), f"generating videos, groups of {GROUP}")
        for name, body in rehearsal.annotations(spec).items():
            data.write(name, body)
        marker = artefacts.commit(data, "rehearsal", {"truth.parquet": _truth(spec, every)}, lineage)
    artefacts.check_lineage(data, "rehearsal", marker, lineage)


def _groups(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[at : at + GROUP] for at in range(0, len(items), GROUP)]


def _truth(spec: Rehearsal, every: Sequence[tuple[str, str]]) -> bytes:
    rows = [{"video_id": name, **vars(rehearsal.truth(spec, split, name))} for split, name in every]
    return artefacts.table_bytes(pa.Table.from_pylist(rows))


def _render(spec: Rehearsal, data: Store, group: Sequence[tuple[str, str]]) -> None:
    for split, video_id in group:
        data.write(f"videos/{video_id}.mp4", rehearsal.video(spec, split, video_id)[0])


def _probe(run: Store, deadline_s: float, how: str, group: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """What was found out about the files of a group, committed, so that a killed preparation goes on behind it."""

    def make() -> dict[str, bytes]:
        child = Child(deadline_s)
        try:
            found = {path: child.probe(uri, quick=how == "quick") for path, uri in group}
            return {"found.json": json.dumps(found).encode()}
        finally:
            child.close()

    folder, files = f"{PROBES}/{how}-{fingerprint(group)}", [path for path, _ in group]
    artefacts.ensure(run, folder, {"files": files}, make)
    return json.loads(artefacts.read_part(run, folder, "found.json"))


def _log_summary(manifest: Manifest, recipe: Recipe) -> None:
    summary = manifest.summary()
    rejected = f"{summary['rejected']} rejected {summary['reasons'] or ''}".strip()
    log.info("manifest %s: %s usable, %s", manifest.fingerprint, summary["usable"], rejected)
    for what, ids in manifest.twice().items():
        shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        log.warning("the same clip %s: %s", what, shown)
    for part in ("align", "video"):
        asked = getattr(recipe.frames, part)
        short = sum(1 for split in ("train", "test") for v in manifest.videos(split) if v.num_frames < asked)
        if short:
            log.warning("%d videos have fewer than frames.%s = %d frames; theirs are repeated", short, part, asked)
