"""A classifier that stays: its weights and its decoding process are kept from one video to the next.

What it answers is what `predict_videos` says; it answers one video at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finepseudo.classifier import ABOUT, Classifier
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder
from finepseudo.data.plan import Plan
from finepseudo.data.stream import BlockReader
from finepseudo.driver.executor import InProcess
from finepseudo.driver.predict import predict_videos
from finepseudo.errors import ArtefactError, DecodeError
from finepseudo.recipe import Recipe, Scale
from finepseudo.rehearsal import encode_mp4
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store, located
from finepseudo.train.predict import Pass, Predictor

log = logging.getLogger("finepseudo")

FOLDERS = f"finepseudo-serve-{os.getuid()}-"  # of the temporary folder, one a desk
NEW_S = 60.0  # an unlocked folder that is younger may be about to be locked
COPY = "classifier"  # below it, where a classifier that lies elsewhere is kept
SAMPLE_FRAMES = 16


class Desk:
    """Answers for files of this machine.

    `folder` is deleted with it; what belongs to a request may lie there too.
    """

    def __init__(self, classifier: str) -> None:
        """Raises ArtefactError: no exported classifier, or a damaged one; DecodeError: no video can be read here."""
        self._folder = _own_folder()
        self.folder = self._folder.name
        self._classifier = Classifier.at(_near(Store(classifier), Store(self.folder)))
        self._child = _TimedChild(self._classifier.recipe.scale)
        self._executor = _Resident(self._classifier.recipe, self._child)
        self._sample = f"{self.folder}/sample.mp4"
        still_FHWC = np.zeros((SAMPLE_FRAMES, 64, 64, 3), np.uint8)
        Path(self._sample).write_bytes(encode_mp4(still_FHWC, 25))
        # A whole answer: nobody is the first to wait for weights, and what cannot answer does not start.
        (row,) = self.answer(self._sample, math.inf)
        if row["error"]:
            raise DecodeError(f"a video that was made to try the decoder is not read: {row['error']}")

    def answer(self, file: str, ends: float) -> list[dict[str, Any]]:
        """Rows of `predict_videos` for a file of a disk, without `video`: whoever asks knows what it is called.

        Raises TimeoutError: they are not there when the monotonic clock shows `ends`.
        """
        self._child.ends = ends
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            rows = predict_videos(self._classifier, [file], Store(work), self._executor, child=self._child)
            return [{**row, "video": None} for row in rows]

    def check(self) -> None:
        """Raises DecodeError: the decoding process does not read a video that is known to be a good one."""
        self._child.ends = math.inf
        found = self._child.probe(self._sample)
        if found.get("num_frames") != SAMPLE_FRAMES:
            raise DecodeError(f"the decoding process does not read a good video: {found.get('error', found)}")

    def about(self) -> dict[str, Any]:
        """What stands here, for people."""
        facts: Mapping[str, Any] = self._classifier.facts
        return {"classes": len(self._classifier.class_names), "weights": facts["weights"]}


def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is locked while this process lives. Those of desks that were killed are deleted."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        with contextlib.suppress(OSError):  # another desk was faster
            if time.time() - left.stat().st_mtime > NEW_S and (lock := _locked(left)) is not None:
                shutil.rmtree(left)
                os.close(lock)
    folder = tempfile.TemporaryDirectory(prefix=FOLDERS)
    _locked(Path(folder.name))
    return folder


def _locked(folder: Path) -> int | None:
    """A lock that ends with this process, whatever its end; None: another one has it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _near(source: Store, here: Store) -> Store:
    """The classifier on a disk of this machine: each answer looks into its markers."""
    if not source.exists(ABOUT):
        raise ArtefactError(
            f"{source.uri()}: no exported classifier is there ({ABOUT} is missing); write one with "
            "jobs/export.py --run RUN --to FOLDER"
        )
    if source.on_disk(""):
        return source
    parent, name = located(source.root)
    artefacts.copy(parent, here, name, COPY)
    for part in artefacts.required(here, COPY)["lineage"]["snapshots"]:
        artefacts.copy(source, here.child(COPY), part)
    return here.child(COPY)


class _TimedChild(Child):
    """Is asked for nothing when the time of an answer is over, and has no more of it than is left."""

    def __init__(self, scale: Scale) -> None:
        super().__init__(scale.decode_deadline_s)
        self._scale, self.ends = scale, math.inf

    def probe(self, uri: str, *, quick: bool = False) -> dict[str, Any]:
        self._allow(self._scale.probe_deadline_s)
        return super().probe(uri, quick=quick)

    def frames(self, uri: str, row: Mapping[str, Any], index_F: list[int], height: int, width: int) -> np.ndarray:
        self._allow(self._scale.decode_deadline_s)
        return super().frames(uri, row, index_F, height, width)

    def _allow(self, most_s: float) -> None:
        left_s = self.ends - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.deadline_s = min(most_s, left_s)


class _Resident(InProcess):
    """An Executor that keeps its encoders and its decoding process."""

    def __init__(self, recipe: Recipe, child: Child) -> None:
        super().__init__(recipe)
        self._child = child
        self._predictors: dict[str, Predictor] = {}

    def reader(self, data: Store, plan: Plan) -> BlockReader:
        frames = self.recipe.frames
        return BlockReader(plan, Decoder(data, frames.height, frames.width, ClipCache("", 0), self._child))

    def predictor(self, what: Pass, num_classes: int) -> Predictor:
        name = fingerprint([repr(what.lineage())])
        if name not in self._predictors:
            self._predictors[name] = super().predictor(what, num_classes)
        return self._predictors[name]
