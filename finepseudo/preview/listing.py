"""The recipes there are, one a line: data set, labels, encoders, and what each would cost as its set is published."""

from __future__ import annotations

from collections.abc import Sequence

from finepseudo.costs.model import Sizes
from finepseudo.costs.predict import Predicted, hours_text, predict, predict_published
from finepseudo.costs.units import Known
from finepseudo.errors import RecipeError
from finepseudo.recipe import Recipe
from finepseudo.recipes import PUBLISHED, RECIPES

TITLES = ("recipe", "data set", "labels", "f_A", "f_E", "GPUs", "predicted", "money")


def listing(known: Known) -> str:
    """A table, and what its figures are worth."""
    rows: list[tuple[str, ...]] = [TITLES]
    sources: dict[str, None] = {}
    for name, make in RECIPES.items():
        recipe, published = make(), PUBLISHED.get(name)
        found = _predicted(recipe, name, known)
        cost = ("", "not known", "")
        if found is not None:
            cost = (f"{found.gpus:g}", hours_text(found.hours), f"{found.money:.2f}")
            sources[f"{found.costs.machine}: {found.costs.source}"] = None
        title = published.name if published else "generated"
        models = recipe.models
        rows.append((name, title, f"{100 * recipe.split.label_fraction:g} %", models.frame, models.video, *cost))
    said = "\n".join(f"  {source}" for source in sources)
    return f"{_table(rows)}\n\npredicted by arithmetic, never run but for the rehearsals; unit costs of\n{said}"


def _predicted(recipe: Recipe, name: str, known: Known) -> Predicted | None:
    try:
        if name in PUBLISHED:
            return predict_published(recipe, PUBLISHED[name], known)
        return predict(recipe, known, Sizes())
    except RecipeError:  # no unit costs of its encoders
        return None


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([f"{text:<{width}}" for text, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)
