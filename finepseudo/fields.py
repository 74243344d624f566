"""Fields of the dataclasses that a user sets: the bounds that stand in their types, and the check of their values."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Interval

from finepseudo.errors import RecipeError

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]  # of what may be left out
Several = Annotated[int, Ge(2)]
Side = Annotated[int, Ge(8)]  # pixels
Seed = Annotated[int, Ge(0)]
Positive = Annotated[float, Ge(1e-6)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]

T = TypeVar("T")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The type of every field of a dataclass, with the bounds that annotate it."""
    hints = get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def check_fields(part: Any, prefix: str = "") -> None:
    """Check every field of a dataclass, and of the dataclasses in it, against its type, its bound and its choices.

    Args:
        part: an instance, such as a whole recipe.
        prefix: of the names in errors.
    Raises:
        RecipeError: a value is none that its field may have.
        TypeError: a field of numbers has no smallest value in its type.
    """
    for key, hint in _hints(part.__class__).items():
        _check_value(prefix + key, hint, getattr(part, key))


def _check_value(name: str, hint: Any, value: Any) -> None:
    kind, bounds = (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    options, outer = get_args(kind), get_origin(kind) or kind
    if outer is Literal:
        if not any(type(value) is type(option) and value == option for option in options):
            raise RecipeError(f"{name}: expected {', '.join(map(str, options))}, got {value!r}")
        return
    if type(None) in options:
        if value is not None:
            _check_value(name, options[0], value)
        return
    right = isinstance(value, int | float if outer is float else outer)
    if not right or (isinstance(value, bool) and outer is not bool):
        raise RecipeError(f"{name}: expected {outer.__name__}, got {value!r}")
    if outer in (int, float):
        _check_bounds(name, bounds, value)
    elif dataclasses.is_dataclass(outer):
        check_fields(value, f"{name}.")
    for key, item in _items(value):
        _check_value(f"{name}{key}", options[-1] if outer is dict else options[0], item)


def _items(value: Any) -> list[tuple[str, Any]]:
    """What a tuple or a dictionary holds, with what an error calls it."""
    if isinstance(value, dict):
        return [(f".{key}", item) for key, item in cast(dict[str, Any], value).items()]
    return [("", item) for item in cast(tuple[Any, ...], value)] if isinstance(value, tuple) else []


def _check_bounds(name: str, bounds: tuple[Any, ...], value: float) -> None:
    low, high = (
        next((found for item in bounds if (found := getattr(item, side, None)) is not None), None)
        for side in ("ge", "le")
    )
    if low is None:
        raise TypeError(f"{name}: a number needs its smallest value in its type, such as Count or Share have")
    if not low <= value <= (sys.float_info.max if high is None else high):
        bound = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise RecipeError(f"{name}: expected {bound}, got {value!r}")


def from_text(kind: type[T], given: Mapping[str, str], where: str) -> T:
    """A dataclass from options as a command line has them; what is not given has its default.

    Args:
        kind: a dataclass of numbers, words and truth values.
        given: text by field.
        where: what the options are of, for errors.
    Raises:
        RecipeError: there is no such option (the nearest are shown), or its value is none that it may have.
    """
    hints, values = get_type_hints(kind), dict[str, Any]()
    for key, text in given.items():
        if key not in hints:
            choices = f"; the choices are {', '.join(hints)}" if hints else ""
            raise RecipeError(f"{where} has no option {key!r}{nearest(key, hints)}{choices}")
        values[key] = _from_text(f"{where}, option {key}", hints[key], text)
    made = kind(**values)
    check_fields(made, f"{where}, option ")
    return made


def _from_text(name: str, kind: Any, text: str) -> Any:
    truths = {"true": True, "false": False}
    try:
        if kind is bool:
            return truths[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (ValueError, KeyError):
        expected = "true or false" if kind is bool else kind.__name__
        raise RecipeError(f"{name}: expected {expected}, got {text!r}") from None


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint at what may have been meant, for an error; empty where nothing is near."""
    near = difflib.get_close_matches(word, list(choices), n=3, cutoff=0.4)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
