"""Some files of a run's data by which it is known: what annotates it, and one of its clips."""

from __future__ import annotations

import numpy as np

from finepseudo.data.formats import read_collection
from finepseudo.data.formats.match import Template
from finepseudo.data.manifest import FOLDER, Manifest
from finepseudo.recipe import Recipe
from finepseudo.rehearsal import encode_mp4
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

LOOKED = 24  # clips whose file is looked for, at even distances, until one is there


def sample(recipe: Recipe, data: Store, base: Store) -> tuple[list[str], str]:
    """Names of files below the data's root, and of a clip that is there; nothing of a set that is yet to be generated.

    Raises what reading annotations raises.
    """
    if recipe.data.rehearsal is not None and artefacts.committed(data, "rehearsal") is None:
        return [], ""
    named = [name for name in (recipe.data.train, recipe.data.test, recipe.data.vocab) if name and "*" not in name]
    if not all(data.exists(name.rstrip("/")) for name in named):
        return named, ""
    clip = _clip(recipe, data, base)
    return ([*named, clip], clip) if clip else (named, "")


def _clip(recipe: Recipe, data: Store, base: Store) -> str:
    """Path of a clip that is there: of the manifest, or else of the annotations."""
    if artefacts.committed(base, FOLDER) is not None:
        manifest = Manifest.load(base)
        return manifest.clips.select(["path"]).filter(manifest.usable)["path"][0].as_py()
    collection = read_collection(data, recipe.data, find_files=False)
    clips, template = collection.clips, Template(recipe.data.videos)
    for row in np.unique(np.linspace(0, len(clips) - 1, min(LOOKED, len(clips))).astype(int)):
        (clip,) = clips.slice(int(row), 1).to_pylist()
        label = "" if clip["label"] is None else collection.class_names[clip["label"]]
        for place in template.places(clip["file"], label):
            if data.exists(place):
                return place
    return ""


def tiny_clip() -> bytes:
    """A video of a moment, where there is no other to try a node's decoder with."""
    return encode_mp4(np.zeros((8, 48, 48, 3), np.uint8), 25)
