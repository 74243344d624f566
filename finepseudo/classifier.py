"""What a finished run knows, to name the classes of other videos: read from the run, or from an exported folder.

Axes: G gallery, T frames.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch

from finepseudo.align.fusion import Fusion
from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.data.manifest import Manifest
from finepseudo.data.plan import derive
from finepseudo.errors import ArtefactError
from finepseudo.models.table import Role
from finepseudo.recipe import Recipe, described, recipe_from
from finepseudo.results import Results
from finepseudo.run import RECIPE, Run
from finepseudo.storage import artefacts, tables
from finepseudo.storage.store import Store, located
from finepseudo.train.predict import score_head
from finepseudo.train.pseudo_labels import known_from

Says = Literal["f_E", "p_A", "fused"]

FORM = 1  # of an exported folder
ABOUT, MEMBERS_FILE, EMBEDDED = "classifier.json", "members.parquet", "gallery.safetensors"
KNOWN = 0.05
"""Share of the labelled clips that would be taken for ones of an unknown class, where nothing else says a bound [C]."""

MEMBERS = pa.schema(
    {"video_id": pa.string(), "file": pa.string(), "start_s": pa.float64(), "end_s": pa.float64(), "label": pa.int32()}
)
"""A row is a gallery member; its times are null where its file is shown at no known rate."""


@dataclass(frozen=True)
class Length:
    """Of labelled clips, in frames, and in seconds where the rates of their files are known."""

    frames: float
    seconds: float | None


@dataclass(frozen=True, eq=False)
class Classifier:
    """Encoders, gallery, fusion and names: enough to name the class of a video."""

    recipe: Recipe
    class_names: tuple[str, ...]
    method: str
    says: Says  # what the run stands by: one of the two nets, or both
    snapshots: Mapping[Role, str]
    """URIs of the weights of `frame` (f_A), `video` (f_E) and, where features are stored, of what makes these."""
    gallery: Gallery
    members: pa.Table  # as MEMBERS, in the order of the gallery
    fusion: Fusion
    known: float  # θ_known: below it, what a video shows is taken for a class that has no label
    clips: int  # V, clips of a video, as in the evaluation
    typical: Length  # the median labelled clip
    longest: Length
    facts: Mapping[str, Any]  # of the run, for people: its figures, and what made it

    @staticmethod
    def at(store: Store, base: Store | None = None) -> Classifier:
        """Of a finished run, or of an exported folder.

        Args:
            base: the run directory that a run shares with others.
        Raises ArtefactError: it is neither, the run is not finished, or it stands by a method without weights.
        """
        try:
            if store.exists(ABOUT):
                return _exported(store)
            if store.exists(RECIPE):
                return _of_run(Run.at(store, base))
        except (KeyError, TypeError, ValueError) as error:  # where a digest fits, and what it is of does not
            what = f"{type(error).__name__}: {error}"
            raise ArtefactError(f"{store.uri()}: what is committed there is damaged ({what})") from error
        raise ArtefactError(
            f"{store.uri()}: neither a run directory ({RECIPE}) nor an exported classifier ({ABOUT}) is there"
        )

    def about(self) -> dict[str, Any]:
        """What an exported folder says of it beside weights and gallery."""
        data = dataclasses.replace(self.recipe.data, root="")  # where its maker's videos lie is nobody's business
        return {
            "form": FORM,
            "recipe": described(dataclasses.replace(self.recipe, data=data)),
            "classes": self.class_names,
            "method": self.method,
            "says": self.says,
            "fusion": vars(self.fusion),
            "known": self.known,
            "clips": self.clips,
            "typical": vars(self.typical),
            "longest": vars(self.longest),
            "facts": self.facts,
        }


def _of_run(run: Run) -> Classifier:
    results, recipe, manifest = run.results(), run.recipe(), run.manifest()
    method, _, says = results.prediction.partition("/")
    if method not in results.snapshots:
        trained = ", ".join(results.snapshots)
        raise ArtefactError(
            f"{run.store.uri()} stands by {results.prediction}, which has no weights of its own (there are those of "
            f"{trained}); run it with --methods finepseudo as well"
        )
    fusion, chosen = results.measured[method].fusion, results.snapshots[method]
    if fusion is None:
        raise ArtefactError(f"{run.store.uri()}: no test clip was measured, so no fusion of f_A and f_E is known")
    snapshots: dict[Role, str] = {part: run.snapshot(method, part) for part in ("frame", "video")}
    if recipe.models.frozen:
        snapshots["frozen"] = run.base.uri("train/initial/frozen/snapshot")
    gallery = run.gallery(chosen.digest_f_A)
    evaluated = artefacts.required(run.store, results.predictions.rpartition("/")[0])["lineage"]["evaluate"]
    typical, longest = _lengths(manifest, manifest.rows_of(list(run.labelled())))
    return Classifier(
        recipe=recipe,
        class_names=run.class_names(),
        method=method,
        says=cast(Says, says),
        snapshots=snapshots,
        gallery=gallery,
        members=_members(manifest, gallery),
        fusion=fusion,
        known=_known(recipe, fusion, gallery, snapshots["frame"]),
        clips=evaluated["clips"],
        typical=typical,
        longest=longest,
        facts=_facts(results, method, says),
    )


def _exported(store: Store) -> Classifier:
    where = located(store.root)
    marker = artefacts.required(*where)
    about = json.loads(artefacts.read_part(*where, ABOUT))
    if about.get("form") != FORM:
        raise ArtefactError(
            f"{store.uri(ABOUT)}: form {about.get('form')!r}, expected {FORM}: another version of this program wrote "
            "it; export it again from its run"
        )
    members = artefacts.read_table(*where, MEMBERS_FILE)
    embedded = Embeddings.from_bytes(artefacts.read_part(*where, EMBEDDED))
    label_G = torch.tensor(members["label"].to_pylist(), dtype=torch.int64)
    return Classifier(
        recipe=recipe_from(about["recipe"]),
        class_names=tuple(about["classes"]),
        method=about["method"],
        says=about["says"],
        snapshots={part: store.uri(part) for part in marker["lineage"]["snapshots"]},
        gallery=Gallery(embedded.emb_NTD, label_G, embedded.video_ids, len(about["classes"])),
        members=members,
        fusion=Fusion(**about["fusion"]),
        known=about["known"],
        clips=about["clips"],
        typical=Length(**about["typical"]),
        longest=Length(**about["longest"]),
        facts=about["facts"],
    )


def _known(recipe: Recipe, fusion: Fusion, gallery: Gallery, frame: str) -> float:
    """θ_known: by `label.known` where it filters labels; else the known-ness of the least alignable clip of D_u.    [C]

    A quantile of the labelled clips' own is a strict bound, since f_A was trained on these; where D_u may hold unknown
    classes, a recipe asks for it.
    """
    if not recipe.label.known and math.isfinite(fusion.low):
        return fusion.low
    asked = dataclasses.replace(recipe, label=dataclasses.replace(recipe.label, known=recipe.label.known or KNOWN))
    return known_from(gallery, score_head(frame), asked, derive(recipe.seed, "known"))


def _members(manifest: Manifest, gallery: Gallery) -> pa.Table:
    rows = tables.rows_at(manifest.clips, manifest.rows_of(gallery.video_ids))
    times = [
        (row["start"] / row["fps"], (row["start"] + row["num_frames"]) / row["fps"]) if row["fps"] else (None, None)
        for row in rows
    ]
    columns: dict[str, Any] = {
        "video_id": gallery.video_ids,
        "file": [row["path"] for row in rows],
        "start_s": [start for start, _ in times],
        "end_s": [end for _, end in times],
        "label": gallery.label_G.tolist(),
    }
    return pa.Table.from_pydict(columns, MEMBERS)


def _lengths(manifest: Manifest, row_N: np.ndarray) -> tuple[Length, Length]:
    clips = tables.take(manifest.clips.select(["num_frames", "fps"]), row_N)
    frames_N, fps_N = clips["num_frames"].to_numpy(), clips["fps"].to_numpy()
    seconds_N = frames_N[fps_N > 0] / fps_N[fps_N > 0]
    typical, longest = (Length(float(of(frames_N)), None) for of in (np.median, np.max))
    if not len(seconds_N):
        return typical, longest
    of_median, of_longest = float(np.median(seconds_N)), float(np.max(seconds_N))
    return Length(typical.frames, of_median), Length(longest.frames, of_longest)


def _facts(results: Results, method: str, says: str) -> dict[str, Any]:
    measured = results.measured[method]
    parts = {"f_E": measured.f_E, "p_A": measured.p_A, "fused": measured.fused}
    told = {name: part for name, part in parts.items() if part is not None}
    return {
        "recipe": results.recipe.name,
        "recipe digest": results.recipe.digest,
        "split": results.split.fingerprint,
        "manifest": results.manifest.fingerprint,
        "labelled clips": results.split.labelled,
        "stands by": f"{method}/{says}",
        "test clips": measured.f_E.videos,
        "top-1": {name: dataclasses.asdict(part.top1) for name, part in told.items()},
        "mean class": {name: dataclasses.asdict(part.mean_class) for name, part in told.items()},
        "calibration error": {name: part.calibration_error for name, part in told.items()},
        "weights": {"f_A": results.snapshots[method].digest_f_A, "f_E": results.snapshots[method].digest_f_E},
    }
