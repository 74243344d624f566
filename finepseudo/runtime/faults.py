"""What went wrong in a worker, out of what Ray wraps around it."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayError, RayTaskError

from finepseudo.errors import FinePseudoError

INSIDE = ("cause", "controller_failure", "health_check_failure")  # where Ray's errors keep what they are about


def links(error: BaseException) -> list[BaseException]:
    """An error and all that it was raised from, the innermost last."""
    seen: list[BaseException] = [error]
    for link in seen:
        nested = [link.__cause__, *(getattr(link, name, None) for name in INSIDE)]
        nested += getattr(link, "worker_failures", {}).values()
        seen += [item for item in nested if isinstance(item, BaseException) and item not in seen]
    return seen


def own(error: BaseException) -> FinePseudoError | None:
    """The error of ours that a worker raised, as it was there; None if it was another's."""
    # Ray's wrapper is of the error's type as well, but its text is a traceback; the error itself stands behind it.
    ours = (item for item in links(error) if type(item).__module__ == FinePseudoError.__module__)
    found: Any = next(ours, None)
    return type(found)(str(found)) if found is not None else None


def lost(error: BaseException) -> bool:
    """Whether a process or a node was lost, so that to try again may help; not where code of a worker raised."""
    return any(isinstance(link, RayError) and not isinstance(link, RayTaskError) for link in links(error))
