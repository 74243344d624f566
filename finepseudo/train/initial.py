"""The weights that an encoder starts from when nothing is pre-trained here: named by the recipe, or random."""

from __future__ import annotations

from typing import Literal

from finepseudo.data.plan import derive
from finepseudo.models import weights
from finepseudo.models.encoders import FrameEncoder, VideoEncoder, build
from finepseudo.recipe import Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, read_uri

Part = Literal["frame", "video"]


def build_encoder(recipe: Recipe, part: Part, num_classes: int) -> FrameEncoder | VideoEncoder:
    """f_A (`frame`) or f_E (`video`) with seeded random weights."""
    classes = {"num_classes": num_classes} if part == "video" else {}
    name = getattr(recipe.models, part)
    return build(name, size=recipe.frames.crop, seed=derive("weights", recipe.seed, part), **classes)


def ensure_initial(recipe: Recipe, part: Part, num_classes: int, run: Store) -> tuple[str, str]:
    """URI and digest of a committed snapshot of the weights that the recipe names, or of random ones.

    Raises:
        ArtefactError: the file is not the one that the recipe names, or does not fit the encoder.
    """
    folder = f"train/initial/{part}/snapshot"
    uri, sha256 = getattr(recipe.models, f"{part}_weights"), getattr(recipe.models, f"{part}_sha256")
    lineage = {"encoder": getattr(recipe.models, part), "sha256": sha256, "seed": recipe.seed, "classes": num_classes}

    def make() -> dict[str, bytes]:
        encoder = build_encoder(recipe, part, num_classes)
        if uri:
            weights.load_bytes(encoder, read_uri(uri), sha256=sha256)
        state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
        return {"weights.safetensors": weights.to_bytes(state, {})}

    marker = artefacts.ensure(run, folder, lineage, make)
    return run.uri(folder), artefacts.marker_digest(marker)
