"""A run directory: what lies where in it, and the readers of it. Neither Ray nor a decoder is needed to read a run.

recipe.json                     the recipe that it belongs to
data/                           a generated data set
manifest/  split/               which videos there are; which of them keep their label
plans/<training or pass>/       which clips, and the numbers from which every row follows
train/<training>/               history, checkpoints while it lasts, snapshot, and with label.lag that of half its steps
features/<digest>/              what a frozen backbone made of every clip's frames, a table a part, and their manifest
scores/<pass>/                  what encoders made of clips, a part a block, while labels and results are made of it
embeddings/<name>/              what one f_A made of D_l, and of the held-out videos of the pair test
labels/<method>/round-<r>/      pseudo-labels and what they were decided with
answers/<digest>/               what an expert answered of this run's queue; a next run's `split.answers`
results/<digest>/  results.json every figure; report.html, logs/, tensorboard/: for people
lease/                          who works in it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.align.fusion import Fusion
from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.data.manifest import FOLDER, UNKNOWN, Manifest
from finepseudo.data.plan import Plan, derive, drawn
from finepseudo.errors import ArtefactError, RecipeError
from finepseudo.models.table import Part
from finepseudo.recipe import METHODS, OUTSIDE, PLACES, Recipe, described, digest, recipe_from
from finepseudo.results import Results
from finepseudo.storage import artefacts, lease, tables
from finepseudo.storage.lineage import differences
from finepseudo.storage.store import Store
from finepseudo.train import checkpoint

RECIPE, RESULTS, REPORT = "recipe.json", "results.json", "report.html"
LABELS, FUSION, SECONDS = "labels.parquet", "fusion.json", "seconds.json"
NEAR = "column near (the gallery clips that a label stands on)"  # what labels of an older version lack
LEFT_OUT = "left_out.json"  # part beside SECONDS, where a pass could not decode all clips: reasons
KNOWN = "known.json"  # part of a round's labels: θ_known, where the recipe asks for one
EMBEDDINGS = "embeddings.safetensors"
SPLIT = "split"  # folder
FEATURES = "features"  # folder of what frozen backbones made of every clip's frames
SCORES = "scores"  # folder of all passes; needed until the results are committed
LAUNCHES = "timing"  # folder, below a training, of the seconds that each launch took


def training(name: str) -> str:
    """Folder of a training, such as `align/frame` or `finepseudo/round-1/video`."""
    return f"train/{name}"


def snapshot(name: str) -> str:
    """Folder of the weights that a training ended with."""
    return f"{training(name)}/snapshot"


def halfway(name: str) -> str:
    """Folder of the weights after half of a training, where the next round's labels are made with them."""
    return f"{training(name)}/{checkpoint.HALFWAY}"


def training_plan(name: str) -> str:
    """Folder of a training's plan."""
    return f"plans/train/{name}"


def pass_plan(name: str, fingerprint: str) -> str:
    """Folder of the plan of a pass of the pool over videos."""
    return f"plans/score/{name}-{fingerprint}"


def scores(name: str, fingerprint: str) -> str:
    """Folder of the results of a pass."""
    return f"{SCORES}/{name}-{fingerprint}"


def stored(fingerprint: str) -> str:
    """Folder of the features that one frozen backbone made; `manifest` in it is that of their clips."""
    return f"{FEATURES}/{fingerprint}"


def embeddings(name: str) -> str:
    """Folder of the embeddings that one f_A gave."""
    return f"embeddings/{name}"


def round_name(method: str, number: int) -> str:
    """Name of a round's labels and trainings."""
    return f"{method}/round-{number}"


def round_number(name: str) -> int:
    """The number in the name of a round's labels or training."""
    return int(name.partition("/round-")[2].partition("/")[0] or 0)


def labels(name: str) -> str:
    """Folder of the pseudo-labels of a round."""
    return f"labels/{name}"


def made_before(store: Store, name: str, what: str) -> ArtefactError:
    """The error of labels that an older version committed, without something that is asked for now."""
    return ArtefactError(
        f"{store.uri(labels(name))} has no {what}: an older version made these labels; jobs/run.py with another --run "
        f"and --base {store.uri()} makes them again, and shares what is trained"
    )


def data_store(recipe: Recipe, base: Store) -> Store:
    """Where annotations and videos are; `base` is where generated ones lie."""
    return Store(recipe.data.root) if recipe.data.root else base.child("data")


def pair_videos(recipe: Recipe, manifest: Manifest, test: np.ndarray) -> np.ndarray:
    """Those of the test clips that the pair test compares, the same for every f_A, by their rows of the manifest."""
    known_N = test[manifest.truth(test) != UNKNOWN]
    return drawn(manifest, known_N, recipe.evaluate.pair_videos, "pairs", recipe.seed)


def gallery_of(recipe: Recipe, embedded: Embeddings, labels: Mapping[str, int], num_classes: int) -> Gallery:
    """The labelled videos among those that were embedded, with their labels, balanced as the recipe says."""
    labelled, most = embedded.gallery(labels, num_classes), recipe.label.per_class_max
    return labelled.balanced(most, derive(recipe.seed, recipe.split.seed, "gallery")) if most else labelled


def launch_seconds(store: Store, folder: str) -> float:
    """Seconds between asking for workers and their first own step, summed over a training's launches."""
    base = f"{folder}/{LAUNCHES}"
    markers = [artefacts.committed(store, f"{base}/{name}") for name in store.list(base)]
    return sum(marker["lineage"]["launch_s"] for marker in markers if marker)


def pass_seconds(store: Store, folder: str) -> dict[str, float]:
    """Seconds by kind of a pass over videos, by the folder of what it made."""
    return json.loads(artefacts.read_part(store, folder, SECONDS))


def pass_left_out(store: Store, folder: str) -> dict[int, str]:
    """Reasons, by the row of the manifest, of the clips that a pass could not decode; by the folder of what it made."""
    if LEFT_OUT not in artefacts.required(store, folder)["parts"]:
        return {}
    return {int(row): reason for row, reason in json.loads(artefacts.read_part(store, folder, LEFT_OUT)).items()}


def claim(store: Store, recipe: Recipe) -> None:
    """Make the run directory belong to this recipe, or check that it does.

    Raises ArtefactError: it belongs to another recipe; both digests and the differing fields are shown.
    """
    body = {"digest": digest(recipe), "recipe": described(recipe)}
    data = json.dumps(body, indent=1, sort_keys=True).encode()
    if store.create(RECIPE, data):
        return
    theirs = _owner(store)
    places = [f"{section}.{name}" for section, names in PLACES.items() for name in names]
    beside = tuple(f"{name}:" for name in (*OUTSIDE, *places))
    changed = [line for line in differences(recipe, theirs["recipe"]) if not line.startswith(beside)]
    if {*store.list()} <= {RECIPE, "logs", lease.FOLDER}:
        changed = []  # nothing is made yet: the recipe was mended
    if not changed and theirs["recipe"] != body["recipe"]:
        store.write(RECIPE, data)  # readers look where things lie now
    if changed:
        raise ArtefactError(
            f"{store.uri()} belongs to recipe {theirs['digest']}, asked for is {body['digest']}; they differ in "
            f"{'; '.join(changed)}. Use another --run, or the options that this run directory was started with"
        )


def _owner(store: Store) -> dict[str, Any]:
    try:
        body = json.loads(store.read(RECIPE))
        return {"digest": body["digest"], "recipe": dict(body["recipe"])}
    except FileNotFoundError:
        raise ArtefactError(
            f"{store.uri()} is no run directory: no {RECIPE} in it; expected one of jobs/run.py"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError(f"{store.uri(RECIPE)} is damaged ({error}); use another --run") from None


@dataclass(frozen=True)
class Run:
    """Reads what a run left behind."""

    store: Store
    base: Store  # where manifest and pre-training lie: the run itself, or the directory that several runs share

    @staticmethod
    def at(store: Store, base: Store | None = None) -> Run:
        """The run in a directory."""
        return Run(store, base or store)

    def recipe(self) -> Recipe:
        """The recipe that the run belongs to; what may change between starts has its defaults."""
        try:
            return recipe_from(_owner(self.store)["recipe"])
        except (RecipeError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{self.store.uri(RECIPE)} is no recipe of this version: {error}") from None

    def data(self) -> Store:
        """Where annotations and videos are."""
        return data_store(self.recipe(), self.base)

    def manifest(self) -> Manifest:
        """Every annotated clip."""
        return Manifest.load(self.store)

    def seen(self) -> tuple[Manifest, Store]:
        """Of the clips that f_A and f_E see, videos or stored features, by the same rows; and where they lie."""
        plan = artefacts.committed(self.store, training_plan("align/frame"))
        folder = plan["lineage"]["spec"].get("manifest", FOLDER) if plan else FOLDER
        where = self.data() if folder == FOLDER else self.base.child(folder.rpartition("/")[0])
        return Manifest.load(self.store, folder), where

    def class_names(self) -> tuple[str, ...]:
        """Those of the manifest, and those that answers brought."""
        return self.manifest().class_names + tuple(self._split().get("new_classes", ()))

    def labelled(self) -> dict[str, int]:
        """Classes of D_l by id: what was answered, or else annotated."""
        body, manifest, names = self._split(), self.manifest(), self.class_names()
        label_N = manifest.truth(manifest.rows_of(body["labelled"])).tolist()
        answered = {video_id: names.index(name) for video_id, name in body.get("answered", {}).items()}
        return dict(zip(body["labelled"], label_N, strict=True)) | answered

    def _split(self) -> dict[str, Any]:
        (name,) = artefacts.required(self.store, SPLIT)["parts"]
        return json.loads(artefacts.read_part(self.store, SPLIT, name))

    def labels(self, name: str) -> pa.Table:
        """Pseudo-labels of a round, one row a video."""
        return tables.mapped(self.store, labels(name), LABELS)

    def rounds(self) -> list[str]:
        """Names of the rounds whose labels are committed."""
        found = [folder.removeprefix(labels("")) for folder in _below(self.store, labels("").rstrip("/"), FUSION)]
        return [name for name in found if artefacts.committed(self.store, labels(name)) is not None]

    def rounds_by_method(self) -> dict[str, list[str]]:
        """The committed rounds of each method that has any, in their order."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.rounds(), key=round_number):
            found.setdefault(name.partition("/")[0], []).append(name)
        return found

    def asked(self) -> np.ndarray:
        """The clips of D_u, by their rows of the manifest, ascending: what the first round was asked to label.

        Raises ArtefactError: no round has been labelled yet.
        """
        folder = pass_plan("label", "")[:-1]
        named = [name for name in self.store.list(folder) if name.startswith("round-1-")]
        if not named:
            raise ArtefactError(f"{self.store.uri(folder)}: no plan of labelling yet; jobs/run.py makes it")
        return np.sort(Plan.load(self.store, f"{folder}/{named[0]}").samples["clip"].to_numpy())

    def known_from(self, name: str) -> float | None:
        """θ_known of a round: a video of a smaller known-ness got no label; None where all classes are known.

        Raises ArtefactError: an older version made the labels, and did not keep it.
        """
        marker = artefacts.required(self.store, labels(name))
        if KNOWN in marker["parts"]:
            return json.loads(artefacts.read_part(self.store, labels(name), KNOWN))
        if marker["lineage"].get("known") and METHODS[marker["lineage"]["method"]].uses_p_A:
            raise made_before(self.store, name, KNOWN)
        return None

    def predictions(self) -> pa.Table:
        """Of a finished run: a row a test video, `video_id`, `truth`, and a class by `<method>/<part>`."""
        folder, _, part = self.results().predictions.rpartition("/")
        return tables.mapped(self.store, folder, part)

    def plans(self) -> list[tuple[str, Plan]]:
        """Plans of the trainings that the run uses, by their names; pre-training first."""
        root = training_plan("")[:-1]
        own = _below(self.store, root, artefacts.MARKER)
        theirs = [folder for folder in _below(self.base, root, artefacts.MARKER) if folder not in own]
        used = [(self.store, folder) for folder in own]
        used += [(self.base, folder) for folder in theirs if folder.startswith(training_plan("pretrain/"))]
        names = {folder.removeprefix(f"{root}/"): store for store, folder in used}
        return [(name, Plan.load(names[name], training_plan(name))) for name in sorted(names, key=_told)]

    def last_round(self) -> str:
        """The name of the last labels of the last method that makes any. Raises ArtefactError: there are none."""
        there = self.rounds_by_method()
        for method in reversed(METHODS):
            if METHODS[method].labels and method in there:
                return there[method][-1]
        raise ArtefactError(f"{self.store.uri('labels')}: expected labels of a round, got none; jobs/run.py makes them")

    def fusion(self, name: str) -> Fusion:
        """What the labels of a round were decided with."""
        return Fusion(**json.loads(artefacts.read_part(self.store, labels(name), FUSION)))

    def embeddings(self, name: str) -> Embeddings:
        """What one f_A made of videos."""
        return Embeddings.from_bytes(artefacts.read_part(self.store, embeddings(name), EMBEDDINGS))

    def embedded(self) -> dict[str, dict[str, Any]]:
        """Markers of the committed embeddings, by their names."""
        folders = _below(self.store, "embeddings", EMBEDDINGS)
        found = {folder.removeprefix(embeddings("")): artefacts.committed(self.store, folder) for folder in folders}
        return {name: marker for name, marker in found.items() if marker is not None}

    def gallery(self, digest: str) -> Gallery:
        """That of the f_A whose weights have this digest.

        Raises ArtefactError: nobody has embedded D_l by it.
        """
        for name, marker in self.embedded().items():
            if marker["lineage"]["f_A"] == digest:
                return gallery_of(self.recipe(), self.embeddings(name), self.labelled(), len(self.class_names()))
        raise ArtefactError(f"{self.store.uri('embeddings')}: none by f_A {digest}; jobs/evaluate.py makes them")

    def curve(self, name: str) -> list[dict[str, float]]:
        """Loss and what was logged beside it, by step, of a training."""
        store = self.store if self.store.list(f"{training(name)}/history") else self.base
        return checkpoint.read_history(store, training(name)).curve

    def trainings(self) -> list[tuple[Store, str]]:
        """Where each training that the run uses lies: store and folder, those of the base last."""
        own = _below(self.store, "train", "history", "snapshot")
        theirs = [] if self.base == self.store else _below(self.base, "train", "history", "snapshot")
        used = [folder for folder in theirs if folder not in own and self._uses(folder.removeprefix("train/"))]
        return [(self.store, folder) for folder in own] + [(self.base, folder) for folder in used]

    def passes(self) -> list[tuple[Store, str]]:
        """Where each committed pass over videos of this run left its seconds."""
        return [
            (self.store, folder)
            for root in ("embeddings", "labels", "results")
            for folder in _below(self.store, root, SECONDS)
            if artefacts.committed(self.store, folder) is not None
        ]

    def timing(self) -> dict[str, dict[str, float]]:
        """Seconds by kind of every training and pass, by its folder."""
        timing: dict[str, dict[str, float]] = {}
        for store, folder in self.trainings():
            seconds = checkpoint.taken(store, folder).seconds
            timing[folder] = {**seconds, "launch": launch_seconds(store, folder)}
        for store, folder in self.passes():
            timing[folder] = pass_seconds(store, folder)
        return timing

    def results(self) -> Results:
        """Every figure.

        Raises ArtefactError: the run has not come to its end, or another version wrote them.
        """
        try:
            return Results.from_json(self.store.read(RESULTS))
        except FileNotFoundError:
            raise ArtefactError(f"{self.store.uri()} has no results yet; jobs/run.py makes them") from None
        except ArtefactError as error:
            raise ArtefactError(f"{self.store.uri(RESULTS)}: {error}") from None

    def snapshot(self, method: str, part: Part) -> str:
        """URI of the weights that a method ended with, or those of STAGE_2."""
        snapshots = self.results().snapshots
        if method not in snapshots:
            raise ArtefactError(f"{self.store.uri()} has no snapshots of {method!r}; it has {', '.join(snapshots)}")
        place = snapshots[method].f_A if part == "frame" else snapshots[method].f_E
        return place if place.startswith("/") or "://" in place else self.store.uri(place)

    def _uses(self, name: str) -> bool:
        """Whether a training of the base is one of this run's: pre-training is, others left their plan here."""
        return name.startswith("pretrain/") or artefacts.committed(self.store, training_plan(name)) is not None


def _told(name: str) -> tuple[int, str, int, str]:
    """Trainings in the order of the story: without labels, on D_l, round by round."""
    first = ("pretrain", "align", "supervise")
    method = name.partition("/")[0]
    return first.index(method) if method in first else len(first), method, round_number(name), name


def _below(store: Store, folder: str, mark: str, skip: str = "") -> list[str]:
    """Folders at or below one that hold an entry of the name `mark`."""
    names = store.list(folder)
    if mark in names:
        return [folder]
    return [deeper for name in names if name != skip for deeper in _below(store, f"{folder}/{name}", mark, skip)]
