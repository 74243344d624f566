"""The weights that an encoder starts from: named by the recipe, or random; and the preprocessing that they bring."""

from __future__ import annotations

import json
import logging
from typing import Any

from finepseudo.data.plan import derive
from finepseudo.errors import ArtefactError, WeightsError
from finepseudo.models import public, weights
from finepseudo.models.encoders import build
from finepseudo.models.table import ENCODERS, Encoder, Preprocessing, Role, unfrozen
from finepseudo.recipe import Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import plain
from finepseudo.storage.store import Store, located, read_uri

log = logging.getLogger("finepseudo")

PREPROCESSING = "preprocessing.json"
"""Part of a snapshot whose encoder takes other pixels than its kind does, since the weights of its start did."""


def random_encoder(encoder: Encoder, *, num_classes: int, size: int, seed: int) -> Any:
    return build(encoder, num_classes=num_classes, size=size, seed=derive("weights", seed, encoder.part))


def ensure_initial(recipe: Recipe, part: Role, num_classes: int, run: Store) -> tuple[str, str]:
    """URI and digest of a committed snapshot of the weights that the recipe names, or of random ones.

    What the named file does not have keeps its random values: all but the backbone of f_A, the classifier of f_E; the
    latter also where the file's is of another number of classes. The log says so.
    Raises WeightsError where the file is not the one that the recipe names, or does not fit the encoder; where none is
        named and the encoder's backbone would never be trained.
    """
    folder = f"train/initial/{part}/snapshot"
    uri, sha256 = getattr(recipe.models, f"{part}_weights"), getattr(recipe.models, f"{part}_sha256")
    chosen = recipe.models.encoder(part)
    if ENCODERS[chosen.name].frozen and not uri:
        raise WeightsError(f"models.{part}_weights: {unfrozen(chosen.name)}")
    lineage = {"encoder": chosen, "sha256": sha256, "seed": recipe.seed, "classes": num_classes}

    def make() -> dict[str, bytes]:
        encoder = random_encoder(chosen, num_classes=num_classes, size=recipe.size_of(part), seed=recipe.seed)
        if uri:
            _load(encoder, chosen, uri, sha256)
        state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
        parts = {"weights.safetensors": weights.to_bytes(state, {})}
        if encoder.preprocessing != chosen.preprocessing:
            parts[PREPROCESSING] = json.dumps(plain(encoder.preprocessing)).encode()
        return parts

    marker = artefacts.ensure(run, folder, lineage, make)
    return run.uri(folder), artefacts.marker_digest(marker)


def carried(snapshot: str) -> dict[str, bytes]:
    """The parts of a snapshot that a training which starts from it hands on; of no snapshot none."""
    if not snapshot:
        return {}
    store, folder = located(snapshot)
    there = artefacts.required(store, folder)["parts"]
    return {name: artefacts.read_part(store, folder, name) for name in (PREPROCESSING,) if name in there}


def preprocessing_of(snapshot: str, encoder: Encoder) -> Preprocessing:
    """What the encoder of a snapshot takes: the encoder's own unless its weights brought another."""
    parts = carried(snapshot)
    return Preprocessing.of(json.loads(parts[PREPROCESSING])) if parts else encoder.preprocessing


def _load(encoder: Any, chosen: Encoder, uri: str, sha256: str) -> None:
    try:
        loaded = public.load(encoder, chosen.name, read_uri(uri), sha256=sha256)
    except (ArtefactError, OSError) as error:
        raise WeightsError(str(error) if isinstance(error, FileNotFoundError) else f"{uri}: {error}") from error
    log.info("%s: %s", uri, loaded)
