"""What made an artefact, as plain JSON values that a later run compares with what it asks for. Standard library only.

A marker keeps every value, defaults included. A field that did not exist when an artefact was made counts as equal
while it has its default: a new field orphans nothing. A default that changes is a difference like any other.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, cast

_ABSENT = object()


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists; a whole number in a float field is written as a float."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: float(part) if kind is float and isinstance(part, int) else plain(part)
            for name, kind in _types(type(value)).items()
            for part in [getattr(value, name)]
        }
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in cast(list[Any], value)]
    return value


def chosen(value: Any) -> Any:
    """As `plain`, without the fields of dataclasses that have their default: what names a configuration for long."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return plain(value)
    body: dict[str, Any] = plain(value)
    nested = {name: chosen(getattr(value, name)) for name in body if dataclasses.is_dataclass(getattr(value, name))}
    return {name: nested.get(name, part) for name, part in body.items() if not _is_default(value, name)}


def fingerprint(body: Any) -> str:
    """Twelve hexadecimal digits of any value that `plain` takes."""
    return hashlib.sha256(json.dumps(plain(body), sort_keys=True).encode()).hexdigest()[:12]


def differences(asked: Any, committed: Any, prefix: str = "") -> list[str]:
    """`field: committed -> asked` for every field in which what is asked for differs from what was committed.

    Args:
        asked: a dataclass, or a mapping whose values may be dataclasses.
        committed: JSON values, as `plain` wrote them.
    """
    changed: list[str] = []
    wanted = cast(dict[str, Any], dict(cast(Mapping[str, Any], asked)) if isinstance(asked, Mapping) else vars(asked))
    for key in sorted(wanted.keys() | committed.keys()):
        mine, theirs = wanted.get(key, _ABSENT), committed.get(key, _ABSENT)
        nested = isinstance(mine, Mapping) or dataclasses.is_dataclass(mine)
        if theirs is _ABSENT and _is_default(asked, key):
            continue
        if nested and isinstance(theirs, Mapping):
            changed += differences(mine, theirs, f"{prefix}{key}.")
        elif mine is _ABSENT or theirs is _ABSENT or plain(mine) != theirs:
            changed.append(f"{prefix}{key}: {_shown(theirs)} -> {_shown(mine)}")
    return changed


def _is_default(owner: Any, key: str) -> bool:
    if not dataclasses.is_dataclass(owner):
        return False
    item = {item.name: item for item in dataclasses.fields(owner)}[key]
    default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
    return default is not dataclasses.MISSING and chosen(getattr(owner, key)) == chosen(default)


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    """The type of every field of a dataclass, without the bounds that annotate it."""
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def _shown(value: Any) -> str:
    return repr("(absent)" if value is _ABSENT else plain(value))
