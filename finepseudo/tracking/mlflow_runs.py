"""MLflow, where MLFLOW_TRACKING_URI is set: the same curves as in TensorBoard, in one MLflow run a run directory.

The MLflow run is found by the address of the run directory, so a run that is started again goes on in it; and what the
server has of a curve decides what it is sent, so that each step is there once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

from finepseudo.recipe import Recipe, digest
from finepseudo.storage.store import Store
from finepseudo.tracking.parts import Part

log = logging.getLogger("finepseudo")

TAG = "finepseudo.run"
BATCH = 1000  # metrics that MLflow takes at once


def from_environment(run: Store, recipe: Recipe) -> Tracker | None:
    """None where it is not asked for, or not installed, which is a warning."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that does not answer: the next look tries again.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        import mlflow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        log.warning("MLFLOW_TRACKING_URI is set, but mlflow is not installed: pip install mlflow-skinny")
        return None
    return Tracker(run, recipe)


class Tracker:
    """Of one run directory."""

    def __init__(self, run: Store, recipe: Recipe) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        self.client = MlflowClient()
        self.place, self.tags = run.uri(), {TAG: run.uri(), "finepseudo.recipe": digest(recipe)}
        self.name = recipe.name
        self._run, self._taken, self._last = "", set[tuple[str, str]](), dict[str, int]()

    def take(self, part: Part) -> None:
        """Send what the server does not have of a part."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        if (part.series, part.digest) in self._taken:
            return
        self._run = self._run or self._found() or self._made()
        new = [Metric(key, value, int(time.time() * 1000), step) for key, value, step in self._new(part)]
        try:
            for first in range(0, len(new), BATCH):
                self.client.log_batch(self._run, metrics=new[first : first + BATCH])
        except BaseException:
            self._last.clear()  # some of it may be there: the server is asked again
            raise
        self._last |= {metric.key: metric.step for metric in new}
        self._taken.add((part.series, part.digest))

    def close(self) -> None:
        """Nothing is open: what was sent is there."""

    def _new(self, part: Part) -> Iterator[tuple[str, float, int]]:
        for point in part.points():
            for tag, value in point.items():
                key = f"{part.series}/{tag}"
                if key not in self._last:
                    there = self.client.get_metric_history(self._run, key)
                    self._last[key] = max((metric.step for metric in there), default=-1)
                if tag != "step" and point["step"] > self._last[key]:
                    yield key, value, int(point["step"])

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "finepseudo")
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def _found(self) -> str:
        place = self.place.replace("'", "\\'")
        runs = self.client.search_runs([self._experiment()], f"tags.`{TAG}` = '{place}'", max_results=1)
        return runs[0].info.run_id if runs else ""

    def _made(self) -> str:
        return self.client.create_run(self._experiment(), tags=self.tags, run_name=self.name).info.run_id
