"""What an operator says of a classifier that is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from finepseudo.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What is served, and within which limits."""

    classifier: str
    """Folder that jobs/export.py wrote: a path, or a URI such as s3://bucket/classifier."""
    root: str = ""
    """Folder, or URI, of videos that a request may name instead of sending one; without it, none may be named."""
    body_mib: int = 256
    """Largest video, in MiB, sent or named."""
    seconds: float = 60.0
    """Longest time of a request: to send the video, to wait, and to be answered."""
    waiting: int = 8
    """Requests of a replica that may wait for the one that it answers; more are refused at once."""
    replicas: int = 1
    """Processes that answer, one video at a time each, with a decoder of its own."""
    cpus: float = 1.0
    """Processors that a replica asks Ray for."""

    def __post_init__(self) -> None:
        least = {"body_mib": 1, "seconds": 1, "waiting": 0, "replicas": 1, "cpus": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not bound <= value < float("inf"):
                raise RecipeError(f"--{name.replace('_', '-')}: expected at least {bound}, got {value!r}")
        if not self.classifier:
            raise RecipeError("--classifier: expected the folder that jobs/export.py wrote, got an empty name")


def options_from(args: Mapping[str, Any]) -> ServeOptions:
    """Of a file of configuration. Raises RecipeError: an unknown field, or a value out of its bounds."""
    known = [item.name for item in fields(ServeOptions)]
    if wrong := sorted(set(args) - set(known)) or ({"classifier"} - set(args)):
        raise RecipeError(f"args of the application: {', '.join(wrong)}; expected classifier and any of {known[1:]}")
    return ServeOptions(**args)
