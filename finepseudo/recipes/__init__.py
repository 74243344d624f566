"""Recipes by name: one file per data set, one function per recipe. No torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from finepseudo.errors import RecipeError
from finepseudo.fields import nearest
from finepseudo.recipe import Recipe
from finepseudo.recipes.public import (
    diving48,
    finediving,
    finegym99,
    finegym288,
    hmdb51,
    kinetics400,
    something_v2,
    ucf101,
)
from finepseudo.recipes.rehearsal import rehearsal, rehearsal_frozen, rehearsal_long, rehearsal_persons, rehearsal_smoke

RECIPES: dict[str, Callable[[], Recipe]] = {
    "rehearsal": rehearsal,
    "rehearsal_frozen": rehearsal_frozen,
    "rehearsal_long": rehearsal_long,
    "rehearsal_persons": rehearsal_persons,
    "rehearsal_smoke": rehearsal_smoke,
    "diving48": diving48,
    "finediving": finediving,
    "finegym99": finegym99,
    "finegym288": finegym288,
    "hmdb51": hmdb51,
    "kinetics400": kinetics400,
    "something_v2": something_v2,
    "ucf101": ucf101,
}


def find(name: str) -> Recipe:
    """The recipe of a name, or of `file.py:function` outside the package.

    Raises RecipeError: there is none; the nearest names are shown.
    """
    if ":" in name:
        return _from_file(*name.rsplit(":", 1))
    if name not in RECIPES:
        there = f"there are {', '.join(RECIPES)}; or give file.py:function"
        raise RecipeError(f"no recipe {name!r}{nearest(name, RECIPES)}; {there}")
    return RECIPES[name]()


def _from_file(file: str, function: str) -> Recipe:
    path = Path(file)
    if not path.is_file():
        raise RecipeError(f"{file}: no such file (from the recipe {file}:{function})")
    spec = importlib.util.spec_from_file_location(f"finepseudo_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{file}: not a Python file (from the recipe {file}:{function}); its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look for their module there
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise RecipeError(f"{file} has no function {function!r}; it has {', '.join(there) or 'none'}")
    recipe = make()
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{file}:{function} must return a finepseudo.recipe.Recipe, got {type(recipe).__name__}")
    return recipe
