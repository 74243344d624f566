"""Labels of the next round while this one trains: by which weights, at the same time, and the same at any pace."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.errors import ArtefactError, RecipeError, TrainingError
from finepseudo.recipe import changed, digest
from finepseudo.recipes import find
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import read_history

SMOKE = find("rehearsal_smoke")
RECIPE = replace(
    SMOKE,
    methods=("finepseudo",),
    rounds=replace(SMOKE.rounds, count=2, video_steps=4, frame_rounds=1, frame_steps=2),
    gitdl=replace(SMOKE.gitdl, frame_steps=2, video_steps=0),
    align=replace(SMOKE.align, steps=2),
    supervise=replace(SMOKE.supervise, steps=4),
    label=replace(SMOKE.label, lag=1, fusion="mean"),
    scale=replace(SMOKE.scale, checkpoint_every=1),
)
TRAINING, LABELS = "finepseudo/round-1/video", "labels/finepseudo/round-2"
LIMIT_S = 120


class Refusing(InProcess):
    """Trains nothing."""

    def train(self, stage, run, data, *, stop):
        raise TrainingError(f"asked to train {stage.name}")


class Paced(InProcess):
    """Holds back the second half of round 1 until round 2 is being labelled, or labels until that half is over."""

    def __init__(self, recipe, first):
        super().__init__(recipe)
        self.first, self.labelling, self.trained = first, threading.Event(), threading.Event()
        self.stops = []

    def train(self, stage, run, data, *, stop):
        if stage.name == TRAINING:
            self.stops.append(stop)
            if stop == stage.steps and self.first == "labels":
                assert self.labelling.wait(LIMIT_S), "round 2 is not labelled while round 1 trains"
        super().train(stage, run, data, stop=stop)
        if stage.name == TRAINING and stop == stage.steps:
            self.trained.set()

    def score(self, what, plan, blocks, num_classes, run, data, out):
        if "label/finepseudo/round-2" in plan:
            if self.first == "training":
                assert self.trained.wait(LIMIT_S), "round 1 does not train while round 2 is labelled"
            yield from super().score(what, plan, blocks, num_classes, run, data, out)
            self.labelling.set()
        else:
            yield from super().score(what, plan, blocks, num_classes, run, data, out)


def lineage(run, folder):
    return artefacts.required(run, folder)["lineage"]


def base_of(run):
    return Store(str(Path(run.root).parent / "base"))


def digest_of(run, folder):
    return artefacts.marker_digest(artefacts.required(run, folder))


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """The run at both paces, from one base."""
    folder = tmp_path_factory.mktemp("lag")
    base, found = Store(str(folder / "base")), {}
    for first in ("labels", "training"):
        run, executor = Store(str(folder / first)), Paced(RECIPE, first)
        found[first] = run, ensure_results(run_rounds(RECIPE, run, executor, base)), executor
    return found


def test_round_2_is_labelled_with_f_E_of_the_middle_of_round_1(ends):  # noqa: N802
    run, _, executor = ends["labels"]
    assert executor.stops == [2, 4]
    half = lineage(run, f"train/{TRAINING}/halfway")
    assert half == {**lineage(run, f"train/{TRAINING}/snapshot"), "step": 2}
    made = lineage(run, LABELS)
    assert made["f_E"] == digest_of(run, f"train/{TRAINING}/halfway")
    assert made["f_E"] != digest_of(run, f"train/{TRAINING}/snapshot")
    # f_A is trained in round 1 as well: round 2's labels are by the one before.
    assert made["f_A"] == lineage(run, "labels/finepseudo/round-1")["f_A"]
    # What is trained next goes on from all of round 1.
    after = lineage(run, "train/finepseudo/round-2/video/snapshot")
    assert after["init_digest"] == digest_of(run, f"train/{TRAINING}/snapshot")


def test_the_pace_decides_nothing(ends):
    (one, ours, _), (other, theirs, _) = ends["labels"], ends["training"]
    for number in (1, 2):
        tables = [
            artefacts.read_table(run, f"labels/finepseudo/round-{number}", "labels.parquet") for run in (one, other)
        ]
        assert tables[0].equals(tables[1])
        curves = [read_history(run, f"train/finepseudo/round-{number}/video").curve for run in (one, other)]
        assert curves[0] == curves[1]
        assert len(curves[0]) == 4
    assert ours.measured == theirs.measured


def test_a_pause_in_the_middle_changes_no_training(ends, tmp_path):
    """Round 1 serves a run that labels between its trainings; one without its middle does not serve a run that lags."""
    run, *_ = ends["labels"]
    between, again = changed(RECIPE, {"label.lag": 0}), Store(str(tmp_path / "between"))
    run_rounds(between, again, InProcess(between), base_of(run), kin=[run])
    assert artefacts.committed(again, f"train/{TRAINING}/snapshot") is None
    assert lineage(again, LABELS)["f_E"] == digest_of(run, f"train/{TRAINING}/snapshot")

    alone = Store(str(tmp_path / "alone"))
    shutil.copytree(run.root, alone.root)
    shutil.rmtree(f"{alone.root}/train/{TRAINING}/halfway")
    with pytest.raises(TrainingError, match=f"asked to train {TRAINING}"):
        run_rounds(RECIPE, Store(str(tmp_path / "lags")), Refusing(RECIPE), base_of(run), kin=[alone])


def test_started_again_it_only_looks_up(ends):
    run, results, _ = ends["labels"]
    again = ensure_results(run_rounds(RECIPE, run, Refusing(RECIPE), base_of(run)))
    assert again.measured == results.measured


def test_weights_of_the_middle_that_are_gone_are_said(ends, tmp_path):
    run, *_ = ends["training"]
    shutil.copytree(run.root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/train" / TRAINING / "halfway")
    with pytest.raises(ArtefactError, match="halfway is missing, and .* has trained past it; delete that folder"):
        run_rounds(RECIPE, Store(str(tmp_path / "run")), Refusing(RECIPE), base_of(run))


@pytest.mark.parametrize(("field", "value"), [("rounds.count", 1), ("rounds.video_steps", 1)])
def test_a_middle_there_must_be(field, value):
    with pytest.raises(RecipeError, match="label.lag = 1 labels the next round in the middle of this one: .* got"):
        changed(RECIPE, {field: value})


def test_the_recipe_is_another_one():
    assert digest(RECIPE) != digest(changed(RECIPE, {"label.lag": 0}))
