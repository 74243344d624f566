"""One training of one encoder: all that its workers need to know, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finepseudo.data.plan import derive
from finepseudo.models import weights
from finepseudo.models.table import Encoder, Part
from finepseudo.recipe import AdamW, PixelAugment, Pixels, Recipe, part_of
from finepseudo.storage import artefacts
from finepseudo.storage.store import located
from finepseudo.train.initial import preprocessing_of, random_encoder
from finepseudo.train.objectives import OBJECTIVES, Loss, Objective

# What moves a training to another place, or ends it early, does not change its weights.
_BESIDE = ("folder", "plan", "init", "max_rejected")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training: an encoder, a loss, an optimiser, a plan, and the weights that it starts from."""

    folder: str  # where it leaves history, checkpoints and snapshot, below the run
    plan: str  # folder of the committed plan
    plan_fingerprint: str
    encoder: Encoder
    num_classes: int
    loss: Loss
    pixels: Pixels
    augment: PixelAugment
    optimiser: AdamW
    steps: int
    lr: float
    seed: int
    layer_decay: float = 1.0  # of that rate, from a layer to the one below it
    init: str = ""  # URI of the snapshot folder to start from; empty: seeded random weights
    init_digest: str = ""
    score_mean: float = 0.0
    score_std: float = 0.0
    """Mean and deviation of D over the labelled pairs, for a new score head; 0: the head comes with the snapshot."""
    stored: int = 0  # C, of the features that it sees instead of pixels; 0: pixels
    max_rejected: float = 0.02  # largest share of the plan's rows that may turn out to be undecodable

    @property
    def name(self) -> str:
        return self.folder.partition("/")[2]

    def lineage(self) -> dict[str, Any]:
        """What decides the weights that come out: every field but the places; f_A does not ask how many classes.

        Sections are dataclasses here, so a field that an older training lacks counts as equal while it has its default.
        """
        beside = (*_BESIDE, *(("num_classes",) if self.encoder.part == "frame" else ()))
        beside = beside if self.stored else (*beside, "stored")
        beside = beside if self.layer_decay != 1 else (*beside, "layer_decay")
        fields = {key: value for key, value in vars(self).items() if key not in beside}
        return {**fields, "objective": type(self.loss).__name__}


def stage_of(recipe: Recipe, part: Part, loss: Loss, **others: Any) -> Stage:
    """A training of f_A or f_E as the recipe describes it; `others` are the fields of Stage that it does not."""
    return Stage(
        encoder=recipe.models.encoder(part),
        loss=loss,
        pixels=part_of(Pixels, recipe.frames),
        augment=part_of(PixelAugment, recipe.augment),
        optimiser=part_of(AdamW, recipe.optimiser),
        layer_decay=getattr(recipe.optimiser, f"{part}_layer_decay"),
        seed=recipe.seed,
        stored=recipe.models.stored,
        max_rejected=recipe.data.max_rejected,
        **others,
    )


def build_objective(stage: Stage) -> Objective:
    crop, size = stage.pixels.crop, stage.stored or stage.pixels.crop
    encoder = random_encoder(stage.encoder, num_classes=stage.num_classes, size=size, seed=stage.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive("head", stage.seed, stage.encoder.part))
        objective = OBJECTIVES[type(stage.loss)](encoder, stage.loss, stage.augment, crop)
    if stage.score_std:
        objective.standardise(stage.score_mean, stage.score_std)
    if stage.init:
        _load_snapshot(objective, stage, new_head=bool(stage.score_std))
    return objective


def _load_snapshot(objective: Objective, stage: Stage, *, new_head: bool) -> None:
    """Weights of an earlier stage. Which names may differ follows from the two stages, and from nothing else."""
    data = artefacts.read_part(*located(stage.init), "weights.safetensors")
    new = ("projection.", "score.") if new_head else ("projection.",)
    missing = {name for name in objective.state_dict() if name.startswith(new)}
    weights.load_bytes(objective, data, sha256=None, allow_missing=missing)
    objective.encoder.preprocessing = preprocessing_of(stage.init, stage.encoder)
