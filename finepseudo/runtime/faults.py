"""What went wrong in a worker, out of what Ray wraps around it."""

from __future__ import annotations

from finepseudo.errors import FinePseudoError


def links(error: BaseException) -> list[BaseException]:
    """An error and all that it was raised from, the innermost last."""
    seen: list[BaseException] = [error]
    for link in seen:
        nested = [link.__cause__, getattr(link, "cause", None), *getattr(link, "worker_failures", {}).values()]
        seen += [item for item in nested if isinstance(item, BaseException) and item not in seen]
    return seen


def own(error: BaseException) -> FinePseudoError | None:
    """The error of ours that a worker raised, as it was there; None if it was another's."""
    found = next((item for item in links(error) if isinstance(item, FinePseudoError)), None)
    if found is None:
        return None
    kind = next(kind for kind in type(found).__mro__ if kind.__module__ == FinePseudoError.__module__)
    return kind(str(getattr(found, "cause", None) or found))
