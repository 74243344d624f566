"""A classifier as one folder that stands alone: weights, gallery, names, and programs that do without this library.

classifier.json          recipe, class names, fusion, bounds, lengths, figures and lineage of the run
members.parquet, gallery.safetensors   the gallery's clips, and what f_A makes of them
frame/ video/ (frozen/)  snapshots of the encoders
f_A.pt2, f_E.pt2         the same encoders as programs of torch.export: normalised clips in, embeddings or logits out
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from finepseudo.align.gallery import Embeddings
from finepseudo.classifier import ABOUT, EMBEDDED, MEMBERS_FILE, Classifier
from finepseudo.errors import ArtefactError
from finepseudo.models.public import read_about
from finepseudo.models.table import Role
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import plain
from finepseudo.storage.store import Store, located
from finepseudo.train.initial import preprocessing_of
from finepseudo.train.predict import Pass, Predictor

log = logging.getLogger("finepseudo")

PROGRAMS: Mapping[Role, str] = {"frame": "f_A.pt2", "video": "f_E.pt2"}
CLOSE = 1e-4  # largest difference, relative to the largest number, of a program's output and its encoder's


def export_classifier(classifier: Classifier, to: Store, *, programs: bool = True) -> None:
    """Write the folder, its marker last; what is there already is looked up.

    Raises ArtefactError: the folder holds another classifier; a program gives other numbers than its encoder.
    """
    for part, uri in classifier.snapshots.items():
        store, folder = located(uri)
        artefacts.copy(store, to, folder, part)
    snapshots = {part: artefacts.marker_digest(artefacts.required(to, part)) for part in classifier.snapshots}
    about = {**classifier.about(), "facts": {**classifier.facts, "licences": _licences(classifier)}}
    about |= {"inputs": {PROGRAMS[part]: _input(classifier, part) for part in PROGRAMS}}
    lineage = {"snapshots": snapshots, "gallery": classifier.gallery.digest, "programs": programs}

    def make() -> dict[str, bytes]:
        gallery = Embeddings(classifier.gallery.emb_GTD, classifier.gallery.video_ids)
        parts = {
            ABOUT: json.dumps(plain(about), indent=1).encode(),
            MEMBERS_FILE: artefacts.table_bytes(classifier.members),
            EMBEDDED: gallery.to_bytes(),
        }
        return parts | (_programs(classifier) if programs else {})

    artefacts.ensure(*located(to.root), lineage, make)


def _input(classifier: Classifier, part: Role) -> dict[str, Any]:
    """What a program takes: frames spread over the whole clip, and what is done with their pixels."""
    recipe = classifier.recipe
    frames = {"frame": recipe.frames.align, "video": recipe.frames.video}[part]
    if recipe.models.frozen:
        return {"axes": "BTC", "frames": frames, "features": recipe.models.stored}
    pixels = preprocessing_of(classifier.snapshots[part], recipe.models.encoder(part))
    return {"axes": "BTCHW", "frames": frames, "scale_to_cover": [recipe.frames.height, recipe.frames.width],
            "crop": recipe.frames.crop, **vars(pixels)}  # fmt: skip


def _licences(classifier: Classifier) -> dict[str, str]:
    """Of the weights that training started from."""
    models = classifier.recipe.models
    named = {part: getattr(models, f"{part}_weights") for part in classifier.snapshots}
    return {part: _licence(uri) for part, uri in named.items() if uri}


def _licence(uri: str) -> str:
    """As the header of a converted file says it."""
    store, name = located(uri)
    try:
        size = 8 + int.from_bytes(store.read_start(name, 8), "little")
        return str(read_about(store.read_start(name, size)).get("licence", "not stated"))
    except FileNotFoundError:
        return f"not known: {uri} is gone"


def _programs(classifier: Classifier) -> dict[str, bytes]:
    recipe, uris = classifier.recipe, classifier.snapshots
    what = Pass(frame={"f_A": uris["frame"]}, video={"f_E": uris["video"]})
    predictor = Predictor(recipe, len(classifier.class_names), what, torch.device("cpu"))
    encoders: dict[Role, tuple[Any, int]] = {
        "frame": (predictor.frame["f_A"][0], recipe.frames.align),
        "video": (predictor.video["f_E"], recipe.frames.video),
    }
    found: dict[str, bytes] = {}
    for part, (encoder, frames) in encoders.items():
        size = (recipe.models.stored,) if recipe.models.frozen else (3, recipe.frames.crop, recipe.frames.crop)
        found[PROGRAMS[part]] = _program(PROGRAMS[part], encoder, torch.randn(2, frames, *size))
    return found


def _program(name: str, encoder: torch.nn.Module, clip: torch.Tensor) -> bytes:
    """Any number of clips of this length and size in. Raises ArtefactError: it gives other numbers than the encoder."""
    batch = torch.export.Dim("B", min=1)
    with torch.inference_mode(mode=False), torch.no_grad():
        program = torch.export.export(encoder, (clip,), dynamic_shapes=({0: batch},))
        sink = io.BytesIO()
        torch.export.save(program, sink)
        sink.seek(0)
        again = torch.export.load(sink).module()
        three = torch.cat([clip, clip[:1] + 1])
        got, expected = again(three), encoder(three)
    worst = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    log.info("%s: differs from its encoder by %.1e of the largest number", name, worst)
    if not worst <= CLOSE:
        raise ArtefactError(f"{name}: differs from its encoder by {worst:.1e}, expected at most {CLOSE:g}")
    return sink.getvalue()
