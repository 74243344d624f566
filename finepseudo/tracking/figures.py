"""The values of the metrics, from what a run has committed: nothing is measured for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from finepseudo import metrics
from finepseudo import run as places
from finepseudo.data.manifest import FOLDER
from finepseudo.metrics import Figure
from finepseudo.recipe import Recipe
from finepseudo.run import Run
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.tracking.parts import COUNTS
from finepseudo.train import checkpoint
from finepseudo.train.pseudo_labels import LabelState


class Figures:
    """Of one run; what cannot change any more is read once."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self.run, self.recipe = run, recipe
        self.labels = {"run": run.store.uri()}
        self._final: dict[str, list[Figure]] = {}

    def found(self) -> Iterator[Figure]:
        """All that is committed by now, and the bounds of the guard."""
        label = self.recipe.label
        yield Figure(metrics.MIN_COVERAGE, label.min_coverage, self.labels)
        yield Figure(metrics.MIN_AGREEMENT, label.min_agreement, self.labels)
        yield Figure(metrics.MAX_CLASS, label.max_class_share, self.labels)
        yield Figure(metrics.MAX_REJECTED, self.recipe.data.max_rejected, self.labels)
        if artefacts.committed(self.run.base, FOLDER) is not None:
            yield from self._once(FOLDER, self._prepare())
        for store, folder in self.run.trainings():
            ended = artefacts.committed(store, f"{folder}/snapshot") is not None
            of_training = self._training(store, folder)
            yield from self._once(folder, of_training) if ended else of_training
        for store, folder in self.run.passes():
            yield from self._once(folder, self._pass(folder, places.pass_seconds(store, folder)))
        for name in self.run.rounds():
            yield from self._once(f"round {name}", self._round(name))

    def _once(self, key: str, figures: Iterator[Figure]) -> list[Figure]:
        if key not in self._final:
            self._final[key] = list(figures)
        return self._final[key]

    def _prepare(self) -> Iterator[Figure]:
        usable_N = Run.at(self.run.base).manifest().usable.to_numpy()
        yield from self._rejected(self._of("prepare"), len(usable_N) - int(usable_N.sum()), len(usable_N))

    def _training(self, store: Store, folder: str) -> Iterator[Figure]:
        parts = checkpoint.kept(store, folder)
        if not parts:
            return
        name, step = folder.removeprefix(places.training("")), checkpoint.last_step(parts[-1])
        taken, stage = checkpoint.taken_at(store, parts[-1]), self._of(name)
        planned = artefacts.required(store, places.training_plan(name))["lineage"]["spec"]["rows"]
        steps = artefacts.required(store, parts[-1])["lineage"]["steps"]
        yield Figure(metrics.STEPS, step, stage)
        yield Figure(metrics.CLIPS, planned * step / steps, stage)
        yield from self._seconds(stage, {**taken.seconds, "launch": places.launch_seconds(store, folder)})
        yield Figure(metrics.CACHE_HITS, taken.seconds["cache_hits"] / max(1, taken.seconds["rows"]), stage)
        yield from self._rejected(stage, taken.rejected, planned)

    def _pass(self, folder: str, seconds: Mapping[str, float]) -> Iterator[Figure]:
        if "clips" not in seconds:
            return  # no clip was looked at, or an older version did
        yield Figure(metrics.CLIPS, seconds["clips"], self._of(folder))
        yield from self._seconds(self._of(folder), seconds)
        yield from self._rejected(self._of(folder), seconds["rejected"], seconds["clips"])

    def _round(self, name: str) -> Iterator[Figure]:
        state, labels = LabelState.of(self.run.labels(name)), {**self.labels, "round": name}
        yield Figure(metrics.COVERAGE, state.coverage, labels)
        yield Figure(metrics.AGREEMENT, state.agreement, labels)
        yield Figure(metrics.LARGEST, state.largest_share, labels)

    def _seconds(self, stage: dict[str, str], seconds: Mapping[str, float]) -> Iterator[Figure]:
        for kind, value in seconds.items():
            if kind not in COUNTS:
                yield Figure(metrics.SECONDS, value, {**stage, "kind": kind})
        if seconds["decode"]:
            yield Figure(metrics.DECODE_RATE, seconds["rows"] / seconds["decode"], stage)

    def _rejected(self, stage: dict[str, str], rejected: float, asked: float) -> Iterator[Figure]:
        yield Figure(metrics.REJECTED, rejected, stage)
        yield Figure(metrics.REJECTED_SHARE, rejected / max(1, asked), stage)

    def _of(self, stage: str) -> dict[str, str]:
        return {**self.labels, "stage": stage}
