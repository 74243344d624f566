"""Recipes by name: one file per data set, one function per recipe. No torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from finepseudo.errors import RecipeError
from finepseudo.fields import nearest
from finepseudo.recipe import Recipe
from finepseudo.recipes.diving48 import (
    DIVING48,
    diving48_5pct,
    diving48_5pct_vit,
    diving48_10pct,
    diving48_10pct_vit,
    diving48_20pct,
    diving48_20pct_vit,
)
from finepseudo.recipes.finediving import FINEDIVING, finediving_5pct
from finepseudo.recipes.finegym import GYM99, GYM288, gym99_5pct, gym99_10pct, gym288_5pct
from finepseudo.recipes.hmdb51 import HMDB51, hmdb51
from finepseudo.recipes.kinetics400 import KINETICS400, k400_1pct, k400_10pct
from finepseudo.recipes.published import Published
from finepseudo.recipes.rehearsal import rehearsal, rehearsal_frozen, rehearsal_long, rehearsal_persons, rehearsal_smoke
from finepseudo.recipes.something_v2 import SOMETHING_V2, ssv2_1pct, ssv2_10pct
from finepseudo.recipes.source import source
from finepseudo.recipes.ucf101 import UCF101, ucf101

Make = Callable[[], Recipe]

SETS: list[tuple[Published, list[Make]]] = [
    (
        DIVING48,
        [diving48_5pct, diving48_10pct, diving48_20pct, diving48_5pct_vit, diving48_10pct_vit, diving48_20pct_vit],
    ),
    (GYM99, [gym99_5pct, gym99_10pct]),
    (GYM288, [gym288_5pct]),
    (FINEDIVING, [finediving_5pct]),
    (KINETICS400, [k400_1pct, k400_10pct]),
    (SOMETHING_V2, [ssv2_1pct, ssv2_10pct]),
    (UCF101, [ucf101]),
    (HMDB51, [hmdb51]),
]
"""The public data sets, and the recipes of each."""
GENERATED: list[Make] = [rehearsal, rehearsal_persons, rehearsal_frozen, rehearsal_long, rehearsal_smoke]
RECIPES: dict[str, Make] = {make.__name__: make for make in [*GENERATED, *(make for _, made in SETS for make in made)]}
PUBLISHED: dict[str, Published] = {make.__name__: published for published, made in SETS for make in made}
"""Sizes of a recipe's data set as published, by the name of the recipe."""


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


def copy_recipe(name: str, target: Path) -> str:
    """Write a recipe to a new file that stands alone; what names it there, `file.py:function`.

    Raises RecipeError: no such recipe, or the file is there already, does not end in .py, or cannot be written.
    """
    function = name.rpartition(":")[2]
    if target.suffix != ".py":
        raise RecipeError(f"{target}: expected the name of a file that ends in .py")
    body = source(find(name), str(target), function, (RECIPES[name].__doc__ or "") if name in RECIPES else "")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(body)
    except FileExistsError:
        raise RecipeError(f"{target}: is there already, and is left alone; choose another name") from None
    except OSError as error:
        raise RecipeError(f"{target}: cannot be written: {error.strerror}") from None
    return f"{target}:{function}"


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
