"""Looks at a run directory while the driver works, and tells everybody outside. It never stops or delays a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from finepseudo import metrics
from finepseudo.metrics import Figure
from finepseudo.progress import Told
from finepseudo.recipe import Recipe
from finepseudo.run import Run
from finepseudo.tracking import mlflow_runs, wandb_runs
from finepseudo.tracking.event_files import write_events
from finepseudo.tracking.figures import Figures
from finepseudo.tracking.parts import Part, Parts

log = logging.getLogger("finepseudo")

EVERY_S = 30.0
LAST_S = 30.0  # that the last look may take; a run does not wait longer for those who watch it
TRACKERS = {"MLflow": mlflow_runs, "Weights & Biases": wandb_runs}

Publish = Callable[[Iterable[Figure]], None]


@contextmanager
def watched(run: Run, recipe: Recipe, publish: Publish) -> Iterator[None]:
    """Within the block: metrics by `publish`, TensorBoard's files in the run directory, MLflow and W&B where asked for.

    Whatever cannot be told is one warning, and tried again at the next look.
    """
    watch, over = _Watch(run, recipe, publish), threading.Event()

    def look() -> None:
        while not over.wait(EVERY_S):
            watch.look()
        watch.look()
        watch.close()

    watch.begin()
    thread, hearing = threading.Thread(target=look, daemon=True), _Hearing(watch)
    thread.start()
    log.addHandler(hearing)
    try:
        yield
    finally:
        log.removeHandler(hearing)
        over.set()
        thread.join(timeout=LAST_S)
        watch.end()


class _Watch:
    def __init__(self, run: Run, recipe: Recipe, publish: Publish) -> None:
        self.run, self.publish = run, publish
        self.labels = {"run": run.store.uri()}
        self.figures, self.parts = Figures(run, recipe), Parts(run)
        made = {name: module.from_environment(run.store, recipe) for name, module in TRACKERS.items()}
        self.trackers = {name: tracker for name, tracker in made.items() if tracker is not None}
        self._there, self._refused = 0, set[str]()

    def begin(self) -> None:
        self._tell(Figure(metrics.ACTIVE, 1, self.labels), self._now())

    def end(self) -> None:
        self._tell(Figure(metrics.ACTIVE, 0, self.labels))

    def look(self) -> None:
        self._try("metrics", lambda: self.publish(self.figures.found()))
        self._try("committed parts", self._take)

    def close(self) -> None:
        for name, tracker in self.trackers.items():
            self._try(name, tracker.close)

    def hear(self, told: Told) -> None:
        stage = {**self.labels, "stage": told.name}
        loss = [] if told.loss is None else [Figure(metrics.LOSS, told.loss, stage)]
        done = Figure(metrics.DONE, told.done / told.total, stage)
        self._tell(done, Figure(metrics.LEFT, told.left_s, stage), *loss, self._now())

    def _take(self) -> None:
        parts = self.parts.found()
        if len(parts) > self._there:
            self._there = len(parts)
            self._tell(self._now())
        self._try("TensorBoard's files", lambda: write_events(self.run.store, parts))
        for name, tracker in self.trackers.items():
            self._try(name, partial(self._track, tracker, parts))

    def _track(self, tracker: mlflow_runs.Tracker | wandb_runs.Tracker, parts: Sequence[Part]) -> None:
        for part in parts:
            tracker.take(part)

    def _tell(self, *figures: Figure) -> None:
        self._try("metrics", lambda: self.publish(figures))

    def _now(self) -> Figure:
        return Figure(metrics.PROGRESS, time.time(), self.labels)

    def _try(self, what: str, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # noqa: BLE001  a dashboard that is down is no reason to stop a training
            if what not in self._refused:
                self._refused.add(what)
                log.warning("%s cannot be kept up to date, the run goes on: %s: %s", what, type(error).__name__, error)


class _Hearing(logging.Handler):
    """Passes on the progress that the log is told of."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        """Keep to the records that say how far something is."""
        told = getattr(record, "progress", None)
        if isinstance(told, Told):
            self.watch.hear(told)
