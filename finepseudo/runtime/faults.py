"""What went wrong in a worker, out of what Ray wraps around it."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayError, RayTaskError

from finepseudo.errors import ClusterError, FinePseudoError
from finepseudo.storage.faults import Kind, kind_of, said

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
    """The error of ours that a worker raised, as it was there, or one that says that a disk is full; else None."""
    # Ray's wrapper is of the error's type as well, but its text is a traceback; the error itself stands behind it.
    every = links(error)
    ours = (item for item in every if type(item).__module__ == FinePseudoError.__module__)
    found: Any = next(ours, None)
    if found is not None:
        return type(found)(str(found))
    full = next((item for item in every if kind_of(item) is Kind.FULL), None)
    if full is not None:
        return ClusterError(
            f"no room is left on a disk of a node ({said(full)}): Ray's temporary folder (RAY_TMPDIR), the "
            "cache of clips (scale.cache_dir) or /dev/shm; free space, then the same command continues"
        )
    return None


def lost(error: BaseException) -> bool:
    """Whether a process or a node was lost, so that to try again may help; not where code of a worker raised."""
    return any(isinstance(link, RayError) and not isinstance(link, RayTaskError) for link in links(error))
