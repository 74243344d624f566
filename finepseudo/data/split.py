"""Labelled, unlabelled and held-out clips: seeded, class by class, or from lists; and written down.

Axes: N clips.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from finepseudo import recipe
from finepseudo.data.answers import Answers
from finepseudo.data.formats import lists, match
from finepseudo.data.manifest import UNKNOWN, Manifest
from finepseudo.data.plan import drawn
from finepseudo.errors import ManifestError
from finepseudo.fields import nearest
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import Store
from finepseudo.storage.tables import pc

log = logging.getLogger("finepseudo")


@dataclass(frozen=True, eq=False)
class Split:
    """Clips by their rows of the manifest; what is in one of these is in no other."""

    seed: int
    label_fraction: float
    labelled: np.ndarray  # D_l, class by class
    unlabelled: np.ndarray  # D_u, ascending
    test: np.ndarray  # the test split, and what was held out of the labelled clips
    labelled_ids: tuple[str, ...]
    label_N: np.ndarray  # of D_l: what was answered, or else annotated
    class_names: tuple[str, ...]  # of the manifest, and then `new_classes`
    new_classes: tuple[str, ...]  # that answers added
    answered: dict[str, str]  # names of classes, by id
    digests: dict[str, str]
    """Of the ids of each: two people who have the same have the same clips."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """Twelve digits that results repeat, so that a split can be recognised."""
        return fingerprint(self.digests)

    def to_bytes(self) -> bytes:
        """For people, and for `split.labelled` of another run; D_u is what the manifest has besides."""
        body = {
            "seed": self.seed,
            "label_fraction": self.label_fraction,
            "fingerprint": self.fingerprint,
            "digests": self.digests,
            "labelled": self.labelled_ids,
            **({"answered": self.answered, "new_classes": self.new_classes} if self.answered else {}),
        }
        return json.dumps(body, indent=1).encode()


def make_split(manifest: Manifest, options: recipe.Split, data: Store) -> Split:
    """Keep the labels that the recipe leaves; D_u is all other training clips, or those of a list.

    Without lists, `label_fraction` of each class's training clips keep theirs, of at least one. The order within a
    class is by a hash of seed and id, so adding a clip moves no other between the halves beyond the changed count.
    Clips that `split.answers` answers are in D_l too, with the answered label.
    Raises ManifestError where no class would have a labelled clip, or a list is not of its form.
    """
    test, train = manifest.rows("test"), manifest.rows("train")
    if options.held_out:
        held_out = np.concatenate(list(_shares(manifest, train, options.held_out, "held out")))
        together = _of_same_files(manifest, train, held_out)
        held_out = together[manifest.truth(together) != UNKNOWN]
        test, train = np.concatenate([test, held_out]), np.setdiff1d(train, together)
    if options.labelled:
        labelled = _by_class(manifest, _listed(manifest, options.labelled, "labelled", train, data))
    else:
        labelled = np.concatenate(list(_shares(manifest, train, options.label_fraction, "split", options.seed)))
    novel = novel_classes(manifest, options)
    labelled = labelled[~np.isin(manifest.truth(labelled), novel)]
    answers = Answers.load(options.answers) if options.answers else Answers({})
    labelled, label_N, class_names = _answered(manifest, labelled, answers, train, options.answers)
    if not len(labelled):
        known = int((manifest.truth(train) != UNKNOWN).sum())
        how = f"split.labelled = {options.labelled}" if options.labelled else ""
        how = how or f"split.label_fraction = {options.label_fraction:g}"
        how += f", split.novel = {', '.join(options.novel)}" if options.novel else ""
        how += f", split.held_out = {options.held_out:g}" if options.held_out else ""
        raise ManifestError(
            f"no class has a labelled video: {known} usable training videos with a label, {how}; check the "
            "annotations, or change that"
        )
    others = train
    if options.unlabelled:
        others = _listed(manifest, options.unlabelled, "unlabelled", train, data)
        if said := lists.overlap(labelled, others):
            log.warning("split: %s; they count as labelled", said)
    others = np.setdiff1d(others, labelled)
    if options.drop_novel:
        others = others[~np.isin(manifest.truth(others), novel)]
    ids, every = tuple(manifest.ids(labelled)), manifest.clips["video_id"]
    digests = {"labelled": lists.digest(ids), "unlabelled": lists.digest(match.take(every, others), in_order=True)}
    digests["test"] = lists.digest(match.take(every, test))
    if options.answers:
        digests["answers"] = fingerprint(answers.label)
    return Split(
        options.seed, options.label_fraction, labelled, others, test, ids, label_N, class_names,
        class_names[manifest.num_classes :], dict(answers.label), digests,
    )  # fmt: skip


def _answered(
    manifest: Manifest, labelled: np.ndarray, answers: Answers, train: np.ndarray, place: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """D_l with the answered clips, class by class; its labels; and the names of all classes.

    Raises ManifestError: an answer is for a clip that is no usable training clip.
    """
    names = manifest.class_names + answers.classes(manifest.class_names, place)
    told = {video_id: names.index(name) for video_id, name in answers.label.items()}
    ids = pa.array(list(told), pa.string())
    row_N = pc.index_in(ids, manifest.clips["video_id"]).fill_null(UNKNOWN).to_numpy().astype(np.int64)
    for video_id, there in zip(told, np.isin(row_N, train), strict=True):
        if not there:
            raise ManifestError(
                f"{place}, clip {video_id}: expected a usable training clip that is not held out, got another; "
                "these answers are for other data, or another split.held_out"
            )
    label_N = dict(zip(labelled.tolist(), manifest.truth(labelled).tolist(), strict=True))
    label_N |= dict(zip(row_N.tolist(), told.values(), strict=True))
    rows, labels = (np.array(list(part), np.int64) for part in (label_N.keys(), label_N.values()))
    order = np.lexsort((rows, labels))
    return rows[order], labels[order], names


def novel_classes(manifest: Manifest, options: recipe.Split) -> list[int]:
    """Classes that `split.novel` names.

    Raises ManifestError: there is no such class.
    """
    names = list(manifest.class_names)
    if wrong := [name for name in options.novel if name not in names]:
        raise ManifestError(f"split.novel: there is no class {wrong[0]!r}{nearest(wrong[0], names)}")
    return [names.index(name) for name in options.novel]


def _shares(manifest: Manifest, row_N: np.ndarray, share: float, *key: object) -> Iterator[np.ndarray]:
    """A share of the clips of each class, of at least one unless it is 0, by a hash; ascending in each class."""
    truth_N = manifest.truth(row_N)
    yield np.zeros(0, np.int64)
    for label in range(manifest.num_classes) if share else ():
        members = row_N[truth_N == label]
        if len(members):
            yield np.sort(drawn(manifest, members, max(1, round(share * len(members))), *key))


def _of_same_files(manifest: Manifest, row_N: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Those of the rows whose file has a chosen clip: parts of one file are of one mind."""
    paths = manifest.clips["path"]
    within = pc.is_in(pc.take(paths, row_N), pc.unique(pc.take(paths, chosen)))
    return row_N[within.to_numpy()]


def _by_class(manifest: Manifest, row_N: np.ndarray) -> np.ndarray:
    """Those with a label, in the order that `_shares` has."""
    truth_N = manifest.truth(row_N)
    if without := int((truth_N == UNKNOWN).sum()):
        log.warning("split.labelled: %d of its clips have no label in the annotations, and stay unlabelled", without)
    return np.concatenate([np.sort(row_N[truth_N == label]) for label in range(manifest.num_classes)])


def _listed(manifest: Manifest, file: str, half: str, train: np.ndarray, data: Store) -> np.ndarray:
    """Usable training clips that a list names."""
    label = manifest.label if half == "labelled" else pa.nulls(len(manifest.clips), pa.int32())
    table = manifest.clips.select(["video_id", "path"]).append_column("label", label)
    row_N, report = lists.read_list(data, file, table, half=half)
    first, *surprises = report.lines(list(manifest.class_names))
    log.info("split.%s: %s", half, first)
    for surprise in surprises:
        log.warning("split.%s: %s", half, surprise)
    usable = np.intersect1d(row_N, train)
    if len(usable) < len(row_N):
        log.warning("split.%s: %d of its clips are no usable training clips", half, len(row_N) - len(usable))
    return usable
