"""One prediction for a recipe: by its own sizes and what it asks for, from unit costs that fit it."""

from __future__ import annotations

from dataclasses import dataclass

from finepseudo.costs.model import Cluster, Model, Sizes
from finepseudo.costs.units import Known, UnitCosts, units_for
from finepseudo.recipe import Recipe
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
        scale = self.model.recipe.scale
        return 2 * scale.train_workers * scale.train_gpus + scale.score_workers * scale.score_gpus

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
