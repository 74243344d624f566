"""What of a run's data and weights is there, without opening a video: annotations are read, some videos looked for.

Axes: N clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from finepseudo.data.answers import Answers
from finepseudo.data.formats import Collection, lists, read_collection
from finepseudo.data.formats.match import Template, folder_of
from finepseudo.data.manifest import FOLDER, Manifest
from finepseudo.errors import ArtefactError, FinePseudoError, StorageError
from finepseudo.models.table import ENCODERS, PARTS, Role, unfrozen
from finepseudo.recipe import Data, Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, located
from finepseudo.storage.tables import pc

LOOKED = 24  # clips whose files are looked for, at even distances in the annotations
READERS = 16  # threads that ask a store, which answers each in some ten milliseconds


@dataclass
class Inventory:
    """What was found, line by line, and what the run would stop for; sizes are 0 where nothing says them."""

    lines: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])  # each with what to do
    videos: int = 0  # training clips
    tests: int = 0
    classes: int = 0
    labelled: int = 0  # of a list; 0: the share of the recipe
    frames: float = 0.0  # of a clip, as probed


@contextmanager
def answering(*uris: str) -> Iterator[None]:
    """Where a store refuses or does not answer, one line instead of what its client raises, which is of many kinds.

    Raises StorageError.
    """
    remote = [uri for uri in uris if "://" in uri]
    try:
        yield
    except FinePseudoError:
        raise
    except Exception as error:
        if not remote:
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise StorageError(f"{' or '.join(remote)}: {said}; check address, credentials and endpoint") from error


def take_stock(recipe: Recipe, base: Store) -> Inventory:
    """Look at what the recipe needs; `base` is where a manifest, and generated data, would lie."""
    found = Inventory()
    data = Store(recipe.data.root) if recipe.data.root else base.child("data")
    if (spec := recipe.data.rehearsal) is not None:
        found.classes = len(spec.words)
        found.videos, found.tests = (found.classes * count for count in (spec.train_per_class, spec.test_per_class))
        found.lines.append(f"{found.videos + found.tests} generated videos of {found.classes} classes")
    elif artefacts.committed(base, FOLDER) is not None:
        _probed(found, Manifest.load(base))
    else:
        _annotated(found, recipe, data)
    _answers(found, recipe)
    _weights(found, recipe)
    found.missing += [lacks for part in PARTS if (lacks := recipe.models.encoder(part).lacks)]
    return found


def _probed(found: Inventory, manifest: Manifest) -> None:
    """What an earlier start has committed; every video was looked at then."""
    usable = manifest.clips.filter(manifest.usable)
    counts = manifest.summary()
    found.videos, found.tests = (counts["usable"].get(split, 0) for split in ("train", "test"))
    found.classes, found.frames = manifest.num_classes, float(pc.mean(usable["num_frames"]).as_py() or 0)
    found.lines.append(
        f"{found.videos} train and {found.tests} test clips of {found.classes} classes, all probed; "
        f"{counts['rejected']} rejected"
    )


def _annotated(found: Inventory, recipe: Recipe, data: Store) -> None:
    """Annotation files, what they say, and some of the videos."""
    absent = [f"data.{name} = {file!r}: {data.uri(file)} is not there" for name, file in _absent(recipe.data, data)]
    if absent:
        found.missing += [f"{line}; set --data.root to its folder, or fetch it" for line in absent]
        return
    try:
        collection = read_collection(data, recipe.data, find_files=False)
        found.labelled = _listed(recipe, data, collection)
    except (FinePseudoError, OSError) as error:
        found.missing.append(str(error))
        return
    known = collection.understood
    found.videos, found.tests, found.classes = known.clips["train"], known.clips["test"], known.classes
    found.lines += [str(known), *known.surprises]
    if recipe.data.unlabelled:
        found.lines.append(
            f"the videos below data.unlabelled = {recipe.data.unlabelled!r} are not counted in what follows"
        )
    _look(found, recipe.data, data, collection)


def _absent(data: Data, store: Store) -> Iterator[tuple[str, str]]:
    """Annotation files that the recipe names and nobody finds; of several with a `*`, their folder."""
    for name in ("train", "test", "vocab", "unlabelled"):
        if (file := getattr(data, name)) and not _there(store, file):
            yield name, file


def _there(store: Store, file: str) -> bool:
    return store.exists(folder_of(file) if "*" in file else file.rstrip("/"))


def _listed(recipe: Recipe, data: Store, collection: Collection) -> int:
    """Clips that `split.labelled` names; 0 without a list."""
    named = {half: getattr(recipe.split, half) for half in ("labelled", "unlabelled")}
    rows = {half: lists.read_list(data, file, collection.clips, half=half)[0] for half, file in named.items() if file}
    return len(rows.get("labelled", ()))


def _answers(found: Inventory, recipe: Recipe) -> None:
    """What an expert has answered."""
    if not recipe.split.answers:
        return
    try:
        answers = Answers.load(recipe.split.answers)
    except ArtefactError as error:
        found.missing.append(f"split.answers: {error}")
        return
    new = f", {len(answers.new)} new classes" if answers.new else ""
    found.lines.append(f"{len(answers.label)} clips are labelled by answers{new}")


def _look(found: Inventory, data: Data, store: Store, collection: Collection) -> None:
    """Look for the files of some clips; what is lacking of a few is counted when all are probed."""
    clips, names, template = collection.clips, collection.class_names, Template(data.videos)
    row_N = np.unique(np.linspace(0, len(clips) - 1, min(LOOKED, len(clips))).astype(int))
    some: list[dict[str, Any]] = clips.take(pa.array(row_N, pa.int64())).to_pylist()

    def here(clip: dict[str, Any]) -> bool:
        label = "" if clip["label"] is None else names[clip["label"]]
        return any(map(store.exists, template.places(clip["file"], label)))

    with ThreadPoolExecutor(READERS) as pool:
        there = list(pool.map(here, some))
    absent = [clip["file"] for clip, seen in zip(some, there, strict=True) if not seen]
    found.lines.append(
        f"videos: {len(some)} of {len(clips)} looked for, {len(some) - len(absent)} there"
        + (f"; not {', '.join(absent[:3])}" if absent else "")
    )
    if len(absent) == len(some):
        found.missing.append(
            f"none of {len(some)} videos is there, such as {store.uri(absent[0])}; data.videos = {data.videos!r} says "
            "where they lie below --data.root"
        )


def _weights(found: Inventory, recipe: Recipe) -> None:
    """Named weights: there, and of a local file the digest."""
    for role in get_args(Role):
        uri, sha256 = getattr(recipe.models, f"{role}_weights"), getattr(recipe.models, f"{role}_sha256")
        field_name = f"models.{role}_weights"
        if not uri:
            if (name := getattr(recipe.models, role)) and ENCODERS[name].frozen:
                found.missing.append(f"{field_name}: {unfrozen(name)}")
            continue
        store, name = located(uri)
        if not store.exists(name):
            found.missing.append(f"{field_name}: {store.uri(name)} is not there; make it by jobs/import_weights.py")
        elif "://" in uri:
            found.lines.append(f"{field_name}: {uri} is there; its digest is looked at when the run starts")
        elif (digest := _digest(store, name)) != sha256.lower():
            found.missing.append(f"{field_name}: {uri} has sha256 {digest}, expected {sha256}; fetch it again")
        else:
            found.lines.append(f"{field_name}: {uri} is there, with the right digest")


def _digest(store: Store, name: str) -> str:
    with store.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
