"""One prediction for a recipe: by its own sizes and what it asks for, from unit costs that fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finepseudo.costs.model import Cluster, Model, Sizes
from finepseudo.costs.resources import needed
from finepseudo.costs.units import Known, UnitCosts, units_for
from finepseudo.recipe import Recipe, changed
from finepseudo.recipes.published import Published


@dataclass(frozen=True)
class Predicted:
    """What a run would take, videos being probed."""

    model: Model
    costs: UnitCosts
    probing_hours: float  # before that: every video looked at once, by as many processes as decode

    @property
    def hours(self) -> float:
        return self.model.seconds / 3600

    @property
    def gpus(self) -> float:
        return needed(self.model.recipe).get("GPU", 0.0)

    @property
    def slowest(self) -> str:
        """The group of workers that has most to do."""
        return max(self.model.held, key=lambda group: self.model.work[group] / self.model.held[group])

    @property
    def money(self) -> float:
        return sum(self.model.money.values())


def predict(recipe: Recipe, known: Known, sizes: Sizes, frames: float = 0.0) -> Predicted:
    """Raises RecipeError: no unit costs fit, or nothing says how many videos there are.

    Args:
        frames: of a clip; 0: as many as the files had that unit costs were measured on.
    """
    costs = units_for(recipe, known)
    costs = costs.of_length(frames) if frames else costs
    model = Model(recipe, sizes, costs, Cluster.of(recipe))
    videos = model.sizes.videos + model.sizes.tests
    probing = videos * costs.decode_kept_s / model.held["decode"] / 3600
    return Predicted(model, costs, 0.0 if recipe.data.rehearsal else probing)


def predict_published(recipe: Recipe, published: Published, known: Known) -> Predicted:
    """By the sizes of a data set as it is published."""
    return predict(recipe, known, Sizes(published.train, published.test, published.classes), published.frames)


def comparison_hours(whole: Predicted, variants: Sequence[Recipe]) -> float:
    """Hours of runs one after the other that share what the whole one pre-trains; other trainings count in each.

    Args:
        whole: one run of them, its pre-training included.
    """

    def seconds(recipe: Recipe, sizes: Sizes) -> float:
        shared = changed(recipe, {"gitdl.frame_steps": 0, "gitdl.video_steps": 0})
        return Model(shared, sizes, whole.costs, Cluster.of(recipe)).seconds

    model, sizes = whole.model, whole.model.sizes
    own = replace(sizes, labelled=sizes.labelled if model.recipe.split.labelled else 0)  # the share of each variant
    pretraining = model.seconds - seconds(model.recipe, sizes)
    return (pretraining + sum(seconds(recipe, own) for recipe in variants)) / 3600


def hours_text(hours: float) -> str:
    """For people."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
