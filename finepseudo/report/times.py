"""Where the time went: seconds by kind of trainings and of passes over videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finepseudo.results import Results
from finepseudo.run import training

KINDS = {"launch": "launching", "setup": "set-up", "wait": "waiting for clips", "transfer": "transfer"}
KINDS |= {"compute": "arithmetic", "commit": "commits"}

Seconds = Mapping[str, float]


def trainings(results: Results) -> dict[str, Seconds]:
    """Seconds by kind of each training, by its folder."""
    return {folder: seconds for folder, seconds in results.timing.items() if "compute" in seconds}


def passes(results: Results) -> dict[str, Seconds]:
    """The same of each pass over videos."""
    return {folder: seconds for folder, seconds in results.timing.items() if "predict" in seconds}


def seconds_of(seconds: Seconds) -> float:
    """All kinds of a training together."""
    return sum(seconds.get(kind, 0.0) for kind in KINDS)


def training_rows(results: Results) -> list[dict[str, Any]]:
    """One row a training, with the pieces of a bar as long as its share of the longest one: offset and width in %."""
    found = trainings(results)
    longest = max(map(seconds_of, found.values()), default=0.0) or 1.0
    rows: list[dict[str, Any]] = []
    for folder, seconds in found.items():
        pieces, at = list[tuple[float, float]](), 0.0
        for kind in KINDS:
            pieces.append((at, 100 * seconds.get(kind, 0.0) / longest))
            at += pieces[-1][1]
        rows.append({"name": folder.removeprefix(training("")), "bar": pieces, **seconds})
    return rows
