"""The weights that an encoder starts from when nothing is pre-trained here: named by the recipe, or random."""

from __future__ import annotations

from typing import Any

from finepseudo.data.plan import derive
from finepseudo.models import weights
from finepseudo.models.encoders import build
from finepseudo.models.table import Encoder, Part
from finepseudo.recipe import Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, read_uri


def random_encoder(encoder: Encoder, *, num_classes: int, size: int, seed: int) -> Any:
    return build(encoder, num_classes=num_classes, size=size, seed=derive("weights", seed, encoder.part))


def ensure_initial(recipe: Recipe, part: Part, num_classes: int, run: Store) -> tuple[str, str]:
    """URI and digest of a committed snapshot of the weights that the recipe names, or of random ones.

    Raises ArtefactError where the file is not the one that the recipe names, or does not fit the encoder.
    """
    folder = f"train/initial/{part}/snapshot"
    uri, sha256 = getattr(recipe.models, f"{part}_weights"), getattr(recipe.models, f"{part}_sha256")
    chosen = recipe.models.encoder(part)
    lineage = {"encoder": chosen, "sha256": sha256, "seed": recipe.seed, "classes": num_classes}

    def make() -> dict[str, bytes]:
        encoder = random_encoder(chosen, num_classes=num_classes, size=recipe.frames.crop, seed=recipe.seed)
        if uri:
            weights.load_bytes(encoder, read_uri(uri), sha256=sha256)
        state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
        return {"weights.safetensors": weights.to_bytes(state, {})}

    marker = artefacts.ensure(run, folder, lineage, make)
    return run.uri(folder), artefacts.marker_digest(marker)
