"""From a recipe to a committed manifest: generate the rehearsal set where asked for, probe every video once."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from finepseudo import rehearsal
from finepseudo.data.formats import read_annotations
from finepseudo.data.manifest import FOLDER, Manifest, build_manifest
from finepseudo.data.probe import Prober
from finepseudo.errors import ClusterError
from finepseudo.recipe import Recipe, Rehearsal
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store

log = logging.getLogger("finepseudo")

CHUNK = 28
LOG_EVERY_S = 10.0


def ensure_manifest(recipe: Recipe, run: Store) -> Manifest:
    """The manifest of the run's data; made by probing every video if it is not committed yet.

    Raises:
        ManifestError: annotations are wrong (file, entry and field are named), or no video is usable.
    """
    data = data_store(recipe, run)
    if recipe.data.rehearsal is not None:
        generate(recipe.data.rehearsal, data)
    annotations, names = read_annotations(data, recipe.data)
    lineage = {
        "annotations": fingerprint([(row.video_id, row.label, row.split) for row in annotations]),
        "classes": fingerprint(names),
        "min_frames": recipe.data.min_frames,
        "videos": recipe.data.videos,
    }

    def make() -> dict[str, bytes]:
        uris = {row.video_id: data.uri(recipe.data.videos.format(video_id=row.video_id)) for row in annotations}
        probes = _probe_all(uris, recipe.scale.probe_deadline_s)
        manifest = build_manifest(annotations, names, probes, uris, min_frames=recipe.data.min_frames)
        return {
            "manifest.parquet": artefacts.table_bytes(manifest.table),
            "classes.json": json.dumps(list(manifest.class_names)).encode(),
        }

    artefacts.ensure(run, FOLDER, lineage, make)
    manifest = Manifest.load(run)
    _log_summary(manifest, recipe)
    return manifest


def data_store(recipe: Recipe, run: Store) -> Store:
    """Where annotations and videos are."""
    return Store(recipe.data.root) if recipe.data.root else run.child("data")


def generate(spec: Rehearsal, data: Store) -> None:
    """Write what is missing of the rehearsal set: videos, annotations, and the exact phases of every frame."""
    lineage = asdict(spec)
    marker = artefacts.committed(data, "rehearsal")
    if marker is None:
        there = set(data.list("videos"))
        every = [(split, video_id) for split in rehearsal.SPLITS for video_id, _ in rehearsal.video_ids(spec, split)]
        missing = [item for item in every if f"{item[1]}.mp4" not in there]
        chunks = [missing[at : at + CHUNK] for at in range(0, len(missing), CHUNK)]
        _spread([lambda chunk=chunk: _render.remote(spec, data, chunk) for chunk in chunks], "generating videos")
        for name, body in rehearsal.annotations(spec).items():
            data.write(name, body)
        marker = artefacts.commit(data, "rehearsal", {"truth.parquet": _truth(spec, every)}, lineage)
    artefacts.check_lineage(data, "rehearsal", marker, lineage)


def _truth(spec: Rehearsal, every: Sequence[tuple[str, str]]) -> bytes:
    rows = []
    for split, video_id in every:
        truth = rehearsal.truth(spec, split, video_id)
        rows.append({"video_id": video_id, **vars(truth)})
    return artefacts.table_bytes(pa.Table.from_pylist(rows))


@ray.remote(num_cpus=1)
def _render(spec: Rehearsal, data: Store, chunk: Sequence[tuple[str, str]]) -> None:
    for split, video_id in chunk:
        data.write(f"videos/{video_id}.mp4", rehearsal.video(spec, split, video_id)[0])


@ray.remote(num_cpus=1)
def _probe(uris: dict[str, str], deadline_s: float) -> dict[str, dict[str, Any]]:
    prober = Prober(deadline_s)
    try:
        return {video_id: prober.probe(uri) for video_id, uri in uris.items()}
    finally:
        prober.close()


def _probe_all(uris: dict[str, str], deadline_s: float) -> dict[str, dict[str, Any]]:
    items = list(uris.items())
    chunks = [dict(items[at : at + CHUNK]) for at in range(0, len(items), CHUNK)]
    found = _spread([lambda chunk=chunk: _probe.remote(chunk, deadline_s) for chunk in chunks], "probing videos")
    return {video_id: probe for chunk in found for video_id, probe in chunk.items()}


def _spread(tasks: Sequence[Callable[[], Any]], what: str) -> list[Any]:
    """Results of tasks of `CHUNK` videos each, a bounded number of them under way."""
    limit = max(os.cpu_count() or 1, int(ray.cluster_resources().get("CPU", 1)) // 4)
    began = logged = time.monotonic()
    waiting, under_way, results = list(tasks), [], []
    if tasks:
        log.info("%s: %d groups of up to %d", what, len(tasks), CHUNK)
    while waiting or under_way:
        while waiting and len(under_way) < limit:
            under_way.append(waiting.pop(0)())
        done, under_way = ray.wait(under_way, timeout=600)
        if not done:
            raise ClusterError(f"{what}: no group of {CHUNK} finished within 600 s; is the storage reachable?")
        results += ray.get(done)
        if time.monotonic() - logged > LOG_EVERY_S and waiting:
            logged = time.monotonic()
            left = (logged - began) / len(results) * (len(tasks) - len(results))
            log.info("%s: %d/%d, %.0f s left", what, len(results), len(tasks), left)
    return results


def _log_summary(manifest: Manifest, recipe: Recipe) -> None:
    summary = manifest.summary()
    log.info("manifest %s: %s usable, %d rejected %s", manifest.fingerprint, summary["usable"], summary["rejected"],
             summary["reasons"] or "")  # fmt: skip
    for part in ("align", "video"):
        asked = getattr(recipe.frames, part)
        short = sum(1 for split in ("train", "test") for v in manifest.videos(split) if v.num_frames < asked)
        if short:
            log.warning("%d videos have fewer than frames.%s = %d frames; theirs are repeated", short, part, asked)
