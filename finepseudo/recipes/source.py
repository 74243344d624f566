"""A recipe as Python that makes it: what `jobs/recipes.py cp` writes for a user to edit."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, cast

from finepseudo import recipe as recipes
from finepseudo.errors import RecipeError
from finepseudo.recipe import Recipe

WIDTH = 120
ALWAYS = {"split", "label_fraction"}  # shown though they have their default: what a copy is edited for first


def source(made: Recipe, file: str, function: str, doc: str) -> str:
    """A file that stands alone: one function, which constructs the recipe from every field that is not as by default.

    Args:
        file: its name, for the command in it.
        function: name of the function.
        doc: what the recipe's own function says; in the command that it opens with, `file:function` takes the place of
            the recipe's name.
    Raises RecipeError: no function can have this name, or a part of it is of a class of another file.
    """
    if not function.isidentifier():
        raise RecipeError(f"{function!r}: a recipe that is copied needs a name that a function can have")
    told = inspect.cleandoc(doc or f"{made.name}.").replace("\\", "\\\\").replace('"""', "'''")
    told = textwrap.indent(told.replace(f"jobs/run.py {made.name} ", f"jobs/run.py {file}:{function} "), "    ").strip()
    names = sorted({part.__name__ for part in _kinds(made)})
    named = f"from finepseudo.recipe import {', '.join(names)}"
    if len(named) > WIDTH:
        named = "\n".join(["from finepseudo.recipe import (", *(f"    {name}," for name in names), ")"])
    title = f"The recipe {made.name}, to edit: fields that are not here have the defaults of finepseudo.recipe."
    end = "\n    " if "\n" in told else ""
    head = f'"""{title}"""\n\n{named}\n\n\ndef {function}() -> Recipe:\n    """{told}{end}"""\n'
    return head + "\n".join(_call(made, "    return ")) + "\n"


def _chosen(part: Any) -> Iterator[tuple[str, Any]]:
    """Fields that are not as they are by default, and those of ALWAYS."""
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if value != default or item.name in ALWAYS:
            yield item.name, value


def _kinds(part: Any) -> Iterator[type]:
    """Classes that the source of a dataclass names."""
    yield type(part)
    for _, value in _chosen(part):
        if dataclasses.is_dataclass(value):
            yield from _kinds(value)


def _call(part: Any, before: str, after: str = "") -> Iterator[str]:
    """Lines that construct a dataclass: on one where it fits, else a field on each."""
    kind = type(part).__name__
    if getattr(recipes, kind, None) is not type(part):
        raise RecipeError(f"{kind} is a class of another file than finepseudo/recipe.py: copy that file instead")
    fields = list(_chosen(part))
    if not any(dataclasses.is_dataclass(value) for _, value in fields):
        given = ", ".join(f"{name}={_literal(value)}" for name, value in fields)
        line = f"{before}{kind}({given}){after}"
        if len(line) <= WIDTH:
            yield line
            return
    indent = " " * (len(before) - len(before.lstrip()))
    yield f"{before}{kind}("
    for name, value in fields:
        start = f"{indent}    {name}="
        yield from _call(value, start, ",") if dataclasses.is_dataclass(value) else _value(value, start)
    yield f"{indent}){after}"


def _value(value: Any, before: str) -> Iterator[str]:
    """Lines of a field that is no dataclass; of many values one on each."""
    line = f"{before}{_literal(value)},"
    if len(line) <= WIDTH or not isinstance(value, tuple):
        yield line
        return
    indent = " " * (len(before) - len(before.lstrip()))
    yield f"{before}("
    yield from (f"{indent}    {_literal(item)}," for item in cast(tuple[Any, ...], value))
    yield f"{indent}),"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        pairs = cast(Mapping[str, Any], value).items()
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in pairs) + "}"
    if isinstance(value, tuple):
        items = [_literal(item) for item in cast(tuple[Any, ...], value)]
        return f"({', '.join(items)}{',' * (len(items) == 1)})"
    return repr(value)
