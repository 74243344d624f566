"""What is committed of a run as curves, in parts that never change: what trackers take.

A part is what a training committed at once, or a round of labels. Only steps that no resume takes back are in parts, so
whoever takes each part once shows each step once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from finepseudo import run as places
from finepseudo.run import Run
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train import checkpoint
from finepseudo.train.engine import schedule
from finepseudo.train.pseudo_labels import LabelState

COUNTS = ("rows", "cache_hits", "clips", "rejected")  # what is kept beside the seconds of a training or a pass
Points = list[dict[str, float]]  # of a step each, which is under `step`


@dataclass(frozen=True)
class Part:
    """Consecutive steps of one series."""

    series: str  # the name of a training, or `labels/<method>`, whose steps are rounds
    last: int  # its last step
    digest: str  # of what is committed
    points: Callable[[], Points]


class Parts:
    """The parts of a run; what is known of a part is not read again."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._known: dict[tuple[Store, str], Part] = {}

    def found(self) -> list[Part]:
        """All that are committed by now, those of a series in the order of their steps."""
        return [*self._trainings(), *self._rounds()]

    def _trainings(self) -> Iterator[Part]:
        for store, folder in self.run.trainings():
            name = folder.removeprefix(places.training(""))
            for part in checkpoint.kept(store, folder):
                yield self._part(store, part, name, checkpoint.last_step(part), partial(_curve, store, part))

    def _rounds(self) -> Iterator[Part]:
        for name in self.run.rounds():
            method, _, number = name.rpartition("/round-")
            points = partial(_labels, self.run, name)
            yield self._part(self.run.store, places.labels(name), places.labels(method), int(number), points)

    def _part(self, store: Store, folder: str, series: str, last: int, points: Callable[[], Points]) -> Part:
        if (store, folder) not in self._known:
            digest = artefacts.marker_digest(artefacts.required(store, folder))
            self._known[store, folder] = Part(series, last, digest, points)
        return self._known[store, folder]


def _curve(store: Store, part: str) -> Points:
    """The committed curve, with the learning rate of each step; at the last one, seconds by kind up to here."""
    stage = artefacts.required(store, part)["lineage"]
    steps, lr, warmup = stage["steps"], stage["lr"], stage["optimiser"]["warmup"]
    points = [
        {**point, "lr": schedule(int(point["step"]) - 1, steps, lr=lr, warmup=warmup)}
        for point in checkpoint.curve_at(store, part)
    ]
    seconds = checkpoint.taken_at(store, part).seconds
    kinds = {f"seconds/{kind}": value for kind, value in seconds.items() if kind not in COUNTS}
    return [*points[:-1], {**points[-1], **kinds}]


def _labels(run: Run, name: str) -> Points:
    state = LabelState.of(run.labels(name))
    step = float(name.rpartition("-")[2])
    return [
        {
            "step": step,
            "coverage": state.coverage,
            "agreement": state.agreement,
            "largest_class_share": state.largest_share,
        }
    ]
