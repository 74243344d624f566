"""The classes of videos that no run has seen: looked at, cut into windows where they are long, and scored by the pool.

It is the way of an evaluation, with a manifest of its own: probing in a killable child, a plan, a pass in committed
parts. Axes: N clips, M nearest gallery members, T frames, K classes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
from torch import Tensor

from finepseudo.align import collaborate
from finepseudo.classifier import Classifier, Length
from finepseudo.data.child import Child
from finepseudo.data.formats import CLIPS, match
from finepseudo.data.formats.entries import ENDINGS
from finepseudo.data.manifest import FOLDER, Annotated, Manifest, manifest_parts
from finepseudo.data.plan import plan_score
from finepseudo.driver.executor import Executor
from finepseudo.driver.features import ensure_features
from finepseudo.driver.passes import run_pass
from finepseudo.driver.prepare import Found, probed
from finepseudo.errors import ManifestError
from finepseudo.recipe import Recipe
from finepseudo.run import scores
from finepseudo.sizes import BLOCK_VIDEOS
from finepseudo.storage import artefacts, tables
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store, located
from finepseudo.train.predict import NEAREST, PARTS_FORM, Pass, Scores, logits, nearest, paths, sbar
from finepseudo.train.pseudo_labels import most_likely

log = logging.getLogger("finepseudo")

UNKNOWN = "unknown"  # what is said of a clip that is less alignable than θ_known
LONG = 2.0
"""Times the longest labelled clip: a longer file is not one action, and is cut into windows.                 [C]"""
OVERLAP = 0.5  # share of a window that the next one shows again: an action that one cuts is whole in another       [C]
FPS = 25.0  # taken for that of files that say none, where a window is asked for in seconds
SPLIT = "predict"
SAID = (
    *("label", "confidence", "known", "knownness", "top", "label_A", "confidence_A", "label_E", "confidence_E"),
    *("near", "path"),
)
"""What a row says of a clip that could be read."""


def find_videos(places: Sequence[str]) -> list[str]:
    """Addresses of the videos that files, folders and patterns with `*` name, in their order, each once.

    A folder stands for all videos at any depth in it; one of pictures for the video that they make. What is not there
    is kept: its row will say so.
    Raises ManifestError: a folder or a pattern has no video.
    """
    found: dict[str, None] = {}
    for place in places:
        root, inside = (place, "") if "*" not in place else _before_star(place)
        store = Store(root or ".")
        files = [file for file in match.expand(store, inside) if file.lower().endswith(ENDINGS)]
        if not files and ("*" in place or _is_empty(store)):
            endings = ", ".join(ENDINGS[:6])
            raise ManifestError(f"{place}: no video in it; expected files ending in {endings} or another container's")
        found |= dict.fromkeys([store.uri(file) for file in files] or [store.root])
    if not found:
        raise ManifestError("no videos: expected files, folders, or patterns such as 'clips/*.mp4'")
    return list(found)


def predict_videos(
    classifier: Classifier,
    videos: Sequence[str],
    work: Store,
    executor: Executor,
    window_s: float | None = None,
    child: Child | None = None,
) -> Iterator[dict[str, Any]]:
    """A row a clip, in the order of files and times; those of files that cannot be read have a reason.

    Args:
        videos: addresses, all of one store.
        work: where parts are kept until the last row is given; the same call continues from them. Workers of a
            cluster must reach it.
        executor: for the recipe of the classifier.
        window_s: length of the windows that every longer file is cut into; 0: none is. Without it, files of more than
            LONG times the longest labelled clip are cut into windows of a typical one.
        child: probes the files, where the executor works in this process.
    Yields `video`, `first_frame` and `num_frames` (of a window), `start_s` and `end_s` (of one, where the file has a
    rate), `label` (or UNKNOWN), `confidence`, `known`, `knownness`, `top`
    (label and p of the five likeliest), `label_A`, `confidence_A`, `label_E`, `confidence_E`, `near` (gallery clips:
    their id, file, times, label, alignability S), `path` (pairs of seconds, or of shares of the whole where a rate is
    not known: which moment of the clip is aligned with which of the nearest one), `error`.
    Raises ManifestError: they lie in several stores; StorageError: theirs does not answer.
    """
    recipe = dataclasses.replace(classifier.recipe, data=dataclasses.replace(classifier.recipe.data, max_rejected=1.0))
    data, files = _below_one(videos)
    manifest = _ensure_manifest(classifier, recipe, data, files, work, executor, window_s, child)
    seen, where = manifest, data
    if recipe.models.frozen and manifest.usable.to_numpy().any():
        backbone = classifier.snapshots["frozen"]
        digest = artefacts.marker_digest(artefacts.required(*located(backbone)))
        seen = ensure_features(recipe, work, manifest, data, executor, frozen=(backbone, digest))
        where = work.child(seen.folder.rpartition("/")[0])
    row_N = np.flatnonzero(seen.usable.to_numpy())
    found = _score(classifier, recipe, seen, where, row_N, work, executor) if len(row_N) else None
    told = _predicted(classifier, manifest, data, found) if found else iter(())
    pending = next(told, None)
    for clip in range(len(manifest.clips)):
        if pending is not None and pending[0] == clip:
            yield pending[1]
            pending = next(told, None)
        else:
            (row,) = tables.rows_at(manifest.clips, np.array([clip]))
            reason = (found.rejected.get(clip) if found else "") or seen.clips["reason"][clip].as_py() or row["reason"]
            yield {**_which(data, row), **dict.fromkeys(SAID), "error": reason}


def _before_star(pattern: str) -> tuple[str, str]:
    folder = match.folder_of(pattern)
    return folder or ("/" if pattern.startswith("/") else "."), pattern.removeprefix(f"{folder}/" if folder else "/")


def _is_empty(store: Store) -> bool:
    """Whether it is a folder on a disk with nothing that could be a video's pictures."""
    place = store.on_disk("")
    return bool(place) and os.path.isdir(place) and not store.sizes()


def _below_one(videos: Sequence[str]) -> tuple[Store, list[str]]:
    """The folder that all lie below, and their paths in it."""
    schemes = {video.partition("://")[0] if "://" in video else "" for video in videos}
    folders = [posixpath.dirname(video.partition("://")[2] or video) for video in videos]
    common = posixpath.commonpath(folders) if len(schemes) == 1 else ""
    if not common:
        raise ManifestError(
            f"videos of several stores, such as {videos[0]} and {videos[-1]}; ask for those of each by themselves"
        )
    root = Store(f"{scheme}://{common}" if (scheme := schemes.pop()) else common)
    return root, [video.removeprefix(root.root).lstrip("/") for video in videos]


def _ensure_manifest(
    classifier: Classifier,
    recipe: Recipe,
    data: Store,
    files: Sequence[str],
    work: Store,
    executor: Executor,
    window_s: float | None,
    child: Child | None,
) -> Manifest:
    """Every file or, of a long one, every window of it."""
    lengths = {"typical": vars(classifier.typical), "longest": vars(classifier.longest)}
    lineage = {"files": fingerprint(list(files)), "data": data.root, "window_s": window_s, **lengths}

    def make() -> dict[str, bytes]:
        every = Annotated(_clips([(file, file, None, None) for file in files]))
        found = probed(recipe, work, data, every, executor, child)
        parts = Annotated(_clips(_windows(classifier, every, found, window_s)))
        return manifest_parts(parts, classifier.class_names, found, min_frames=recipe.data.min_frames, to_train=False)

    artefacts.ensure(work, FOLDER, lineage, make)
    return Manifest.load(work)


def _clips(rows: Iterable[tuple[str, str, int | None, int | None]]) -> pa.Table:
    """Ids, files, and first and last frames, as annotations have them."""
    ids, files, starts, ends = zip(*rows, strict=True)
    columns: dict[str, Any] = dict.fromkeys(CLIPS.names, [None] * len(ids))
    columns |= {"video_id": ids, "file": files, "start": starts, "end": ends}
    return pa.Table.from_pydict(columns | {"seconds": [False] * len(ids), "split": [SPLIT] * len(ids)}, CLIPS)


def _windows(
    classifier: Classifier, every: Annotated, found: Found, window_s: float | None
) -> Iterator[tuple[str, str, int | None, int | None]]:
    for some, file_N in every.windows():
        for file, shown in zip(cast(list[str], some["file"].to_pylist()), found(file_N).to_pylist(), strict=True):
            frames, fps = int(shown["num_frames"] or 0), float(shown["fps"] or 0.0)
            window, most = _window(classifier, fps, window_s)
            if frames <= most:
                yield file, file, None, None
                continue
            starts = [*range(0, frames - window, max(1, round(window * OVERLAP))), frames - window]
            for start in starts:
                yield f"{file}#{start:09d}", file, start, start + window


def _window(classifier: Classifier, fps: float, window_s: float | None) -> tuple[int, float]:
    """Frames of a window of a file, and how many a file may have that is not cut."""

    def frames(length: Length) -> float:
        return length.seconds * fps if length.seconds and fps else length.frames

    if window_s is None:
        return max(1, round(frames(classifier.typical))), LONG * frames(classifier.longest)
    window = max(1, round(window_s * (fps or FPS)))
    return window, window if window_s else math.inf


def _score(
    classifier: Classifier,
    recipe: Recipe,
    manifest: Manifest,
    data: Store,
    row_N: np.ndarray,
    work: Store,
    executor: Executor,
) -> Scores:
    frames, uris = recipe.frames, classifier.snapshots
    what = Pass(
        frame={"f_A": uris["frame"]}, video={"f_E": uris["video"]}, galleries={"f_A": classifier.gallery},
        clips=classifier.clips, nearest=NEAREST, paths=True,
    )  # fmt: skip
    lengths = {"align_frames": frames.align, "video_frames": frames.video}
    plan = plan_score(manifest, row_N, **lengths, clips=classifier.clips, block_videos=BLOCK_VIDEOS)
    folder = scores("predict", fingerprint([plan.fingerprint, what.lineage(), PARTS_FORM]))
    return run_pass(
        "predict", what, plan, row_N, folder,
        recipe=recipe, manifest=manifest, num_classes=len(classifier.class_names), run=work, data=data,
        executor=executor,
    )  # fmt: skip


def _predicted(
    classifier: Classifier, manifest: Manifest, data: Store, found: Scores
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row of the manifest, and what is said of it, of every clip that was decoded."""
    fusion, names = classifier.fusion, classifier.class_names
    members: list[dict[str, Any]] = classifier.members.to_pylist()
    for batch in found.batches():
        sbar_NK, logits_NK = sbar(batch, "f_A"), logits(batch, "f_E")
        p_A_NK, p_E_NK = fusion.p_A(sbar_NK), fusion.p_E(logits_NK)
        p_NK = {"f_E": p_E_NK, "p_A": p_A_NK, "fused": fusion.p(sbar_NK, logits_NK)}[classifier.says]
        known_N = collaborate.knownness(sbar_NK).numpy()
        top_NM, top_p_NM = most_likely(p_NK.numpy())
        (member_NM, near_S_NM), path_NT = nearest(batch, "f_A"), paths(batch, "f_A")
        for n, row in enumerate(tables.rows_at(manifest.clips, batch["clip"])):
            pairs = zip(top_NM[n].tolist(), top_p_NM[n].tolist(), strict=True)
            likely: list[dict[str, Any]] = [{"label": names[label], "p": p} for label, p in pairs]
            known = bool(known_N[n] >= classifier.known)
            near: list[dict[str, Any]] = [members[place] for place in member_NM[n].tolist()]
            alignability: list[float] = near_S_NM[n].tolist()
            around = [_member(names, *pair) for pair in zip(near, alignability, strict=True)]
            yield (
                int(batch["clip"][n]),
                {
                    **_which(data, row),
                    "label": likely[0]["label"] if known else UNKNOWN,
                    "confidence": likely[0]["p"],
                    "known": known,
                    "knownness": float(known_N[n]),
                    "top": likely,
                    **_said("A", p_A_NK[n], names),
                    **_said("E", p_E_NK[n], names),
                    "near": around,
                    "path": _moments(row, near[0], path_NT[n].tolist(), 0.5 / classifier.clips),
                    "error": None,
                },
            )


def _which(data: Store, row: dict[str, Any]) -> dict[str, Any]:
    """The file, and of a window in it its frames, and its times where the file's rate is known."""
    count, fps = row["num_frames"], row["fps"]
    found: dict[str, Any] = dict.fromkeys(("start_s", "end_s", "first_frame", "num_frames"))
    if count is not None and count < row["file_frames"]:
        found |= {"first_frame": row["start"], "num_frames": count}
        if fps:
            found |= {"start_s": row["start"] / fps, "end_s": (row["start"] + count) / fps}
    return {"video": data.uri(row["path"]), **found}


def _said(net: str, p_K: Tensor, names: Sequence[str]) -> dict[str, Any]:
    return {f"label_{net}": names[int(p_K.argmax())], f"confidence_{net}": float(p_K.max())}


def _member(names: Sequence[str], member: dict[str, Any], alignability: float) -> dict[str, Any]:
    return {**member, "label": names[member["label"]], "alignability": alignability}


def _moments(row: dict[str, Any], member: dict[str, Any], path_T: Sequence[int], phase: float) -> list[list[float]]:
    """Seconds of the clip's frames in it, and of those of its nearest gallery clip that are aligned with them.

    Of what has no known rate, shares of the whole.
    """
    frames = len(path_T)
    mine = (np.arange(frames) + phase) / frames * (row["num_frames"] / row["fps"] if row["fps"] else 1.0)
    seconds = 1.0 if member["end_s"] is None else member["end_s"] - member["start_s"]
    theirs = (np.array(path_T) + 0.5) / frames * seconds
    return [[round(float(a), 3), round(float(b), 3)] for a, b in zip(mine, theirs, strict=True)]
