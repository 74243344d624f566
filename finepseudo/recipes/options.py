"""A recipe as the command line that makes it of a named one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from finepseudo.errors import RecipeError
from finepseudo.recipe import OUTSIDE, Recipe
from finepseudo.recipes import find


def options(made: Recipe, leave: tuple[str, ...] = ()) -> list[str]:
    """The recipe's name, and the fields that are others than in the recipe of that name, but for some.

    A recipe of a user's own file is known by its name alone, so nothing is said of its fields.
    """
    try:
        named = find(made.name)
    except RecipeError:
        return [made.name]
    plain: list[str] = []
    chosen: list[str] = []  # a part that may be absent is a word of its own, which comes behind all options
    for name, kind, words in _differing(made, named, ""):
        if name.partition(".")[0] in OUTSIDE or name in leave:
            continue
        (chosen if kind else plain).extend(([kind] if kind and kind not in chosen else []) + words)
    return [made.name, *plain, *chosen]


def _differing(made: Any, named: Any, prefix: str, kind: str = "") -> Iterator[tuple[str, str, list[str]]]:
    for item in dataclasses.fields(made):
        name, value, other = f"{prefix}{item.name}", getattr(made, item.name), getattr(named, item.name, None)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            within = kind or (f"{name}:{_dashed(type(value).__name__)}" if "None" in str(item.type) else "")
            yield from _differing(value, other if type(other) is type(value) else type(value)(), f"{name}.", within)
        elif dataclasses.is_dataclass(other):
            yield name, f"{name}:none", []
        elif value != other:
            yield name, kind, words(name, value)


def _dashed(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).strip("-").replace("_", "-")


def words(field: str, value: Any) -> list[str]:
    """A field of a recipe, such as `align.margin`, with its value, as the command line takes it."""
    name = _dashed(field)
    if isinstance(value, bool):
        section, _, own = name.rpartition(".")
        return [f"--{name}" if value else f"--{section}.no-{own}"]
    return [f"--{name}", *map(_word, value if isinstance(value, tuple | list) else [value])]


def _word(value: Any) -> str:
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
