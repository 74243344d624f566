"""Features of every clip's frames, made once by a frozen backbone, and the manifest that has them instead of videos."""

from __future__ import annotations

import logging

import numpy as np

from finepseudo import run as places
from finepseudo.data.features import BYTES, stored_clips
from finepseudo.data.manifest import FOLDER, Manifest
from finepseudo.data.plan import plan_score
from finepseudo.driver.executor import Executor
from finepseudo.driver.passes import run_pass
from finepseudo.recipe import Pixels, Recipe, part_of
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import chosen, fingerprint
from finepseudo.storage.store import Store
from finepseudo.train.initial import ensure_initial
from finepseudo.train.predict import Pass, Scores, read_part, stored_sha256

log = logging.getLogger("finepseudo")

FRAMES = 512  # of a part, about: what a decoding actor hands on at a time


def ensure_features(
    recipe: Recipe, run: Store, videos: Manifest, data: Store, executor: Executor, frozen: tuple[str, str] | None = None
) -> Manifest:
    """The manifest of the stored features of all usable clips; what is missing of them is made, in committed parts.

    Args:
        run: where they are kept; the manifest of the videos is there.
        data: where the videos lie.
        frozen: URI and digest of the backbone's snapshot; without them it is made of the weights that the recipe names.
    Raises DecodeError: more than `data.max_rejected` of the clips could not be decoded.
    """
    uri, digest = frozen or ensure_initial(recipe, "frozen", videos.num_classes, run)
    if not frozen and not recipe.models.frozen_weights:
        log.warning("models.frozen_weights names no weights: %s has random ones", recipe.models.frozen)
    frames, what = recipe.frames.frozen, Pass(frozen=uri)
    row_N = np.flatnonzero(videos.usable.to_numpy())
    block = max(1, FRAMES // frames)
    plan = plan_score(videos, row_N, align_frames=frames, video_frames=0, clips=1, block_videos=block)
    seen = [recipe.models.encoder("frozen"), part_of(Pixels, recipe.frames), recipe.augment.scale_min]
    folder = places.stored(fingerprint([plan.fingerprint, what.lineage(), seen]))
    where = f"{folder}/{FOLDER}"

    def make() -> dict[str, bytes]:
        log.info("features: %s", said(len(row_N), frames, recipe.models.stored))
        done = run_pass(
            "features", what, plan, row_N, folder,
            recipe=recipe, manifest=videos, num_classes=videos.num_classes, run=run, data=data, executor=executor,
        )  # fmt: skip
        clips = stored_clips(videos, row_N, frames, block, _digests(done), done.rejected)
        labels = {name: artefacts.read_part(run, FOLDER, name) for name in ("labels.parquet", "classes.json")}
        return {"clips.parquet": artefacts.table_bytes(clips), **labels}

    with artefacts.making(run, where) as mine:
        artefacts.ensure(mine, where, {"videos": videos.fingerprint, "frozen": digest, "seen": chosen(seen)}, make)
    return Manifest.load(run, where)


def said(clips: int, frames: int, width: int) -> str:
    """How much that will be."""
    size = clips * frames * width * BYTES
    return f"{clips} clips x {frames} frames x {width} numbers of {BYTES} bytes = {size / (1 << 20):,.1f} MiB"


def _digests(done: Scores) -> list[str]:
    return [stored_sha256(read_part(done.run, done.folder, number)[0]) for number in range(done.parts)]
