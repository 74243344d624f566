"""The runs of a comparison: the recipe over label seeds, its ablations, and its budgets of labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finepseudo.errors import RecipeError
from finepseudo.recipe import METHODS, Recipe, changed

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "no_L_AT": {"align.triplet_weight": 0.0},
    "no_L_Score": {"align.score_weight": 0.0},
    "no_GITDL": {"gitdl.frame_steps": 0, "gitdl.video_steps": 0},
    "mean": {"label.fusion": "mean"},
}
"""Fields of the recipe that each changes."""
OPEN_WORLD: Mapping[str, Mapping[str, Any]] = {
    "open": {"label.known": 0.05},
    "open_unfiltered": {"label.known": 0.0},
    "closed": {"split.drop_novel": True},
}
"""What becomes of the novel classes' clips: filtered by known-ness, taken for known ones, or not there."""
METHOD_ABLATIONS = {"f_E only": "pseudo_video", "f_A only": "pseudo_align"}
"""What alone makes the pseudo-labels, and the method that it is: nothing of these is run twice."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One run of a comparison."""

    folder: str  # of the run, below that of the comparison
    recipe: Recipe
    seed: int  # of the labels
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of the recipe that it changes beside the seed
    ablation: str = ""
    budget: float | None = None  # share of labelled videos
    world: str = ""  # one of OPEN_WORLD
    kin: str = ""  # folder of the run that it shares trainings with


def variants(
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    ablations: bool = False,
    budgets: Sequence[float] = (),
    novel: Sequence[str] = (),
) -> list[Variant]:
    """What to run, in this order, over the seeds: every method, each ablation of finepseudo, every method by budget,
    and finepseudo in an open world where the classes of `novel` have no label.

    The budget that is the recipe's own is the run with every method.
    Raises RecipeError: no seed, or one twice; a budget that is no share; budgets where a list says which clips keep
        their label.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(f"--seeds: expected at least one, each once, got {', '.join(map(str, seeds)) or 'none'}")
    if wrong := [budget for budget in budgets if not 0 < budget <= 1]:
        raise RecipeError(f"--budgets: expected shares above 0 and up to 1, such as 0.05, got {wrong[0]:g}")
    if budgets and recipe.split.labelled:
        raise RecipeError(
            f"--budgets sets split.label_fraction, but split.labelled = {recipe.split.labelled!r} says which clips "
            "keep their label; give one of them"
        )
    whole = dataclasses.replace(recipe, methods=tuple(METHODS))
    ours = dataclasses.replace(recipe, methods=("finepseudo",))
    kinds = [_Kind("", whole, {})]
    if ablations:
        kinds += [_Kind(f"{name}/", ours, fields, {"ablation": name}, kin="") for name, fields in ABLATIONS.items()]
    for budget in sorted({*budgets} - {recipe.split.label_fraction}):
        kinds.append(_Kind(f"labels-{budget:g}/", whole, {"split.label_fraction": budget}, {"budget": budget}))
    for world, fields in OPEN_WORLD.items() if novel else ():
        kin = None if world == "open" else "open/"
        kinds.append(_Kind(f"{world}/", ours, {"split.novel": tuple(novel), **fields}, {"world": world}, kin))
    return [kind.of(seed) for kind in kinds for seed in seeds]


@dataclass(frozen=True)
class _Kind:
    """Runs that differ in their seed alone."""

    before: str  # their folders, before the seed's
    recipe: Recipe
    fields: Mapping[str, Any]
    what: Mapping[str, Any] = field(default_factory=dict[str, Any])  # that a variant says of itself
    kin: str | None = None  # as `before`, of those that they share trainings with

    def of(self, seed: int) -> Variant:
        name = f"seed-{seed}"
        return Variant(
            folder=f"{self.before}{name}",
            recipe=changed(self.recipe, {**self.fields, "split.seed": seed}),
            seed=seed,
            fields=self.fields,
            kin="" if self.kin is None else f"{self.kin}{name}",
            **self.what,
        )
