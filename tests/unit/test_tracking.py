"""What is seen of a run from outside: values are the committed ones, each step is there once, nothing stops a run."""

import json
import logging
import os
import shutil
import struct
import sys
import time
from collections import Counter
from dataclasses import replace

import mlflow
import pyarrow as pa
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_helpers import DyingStore, case, launch, train
from wandb.proto.wandb_internal_pb2 import Record

from finepseudo import metrics
from finepseudo import run as places
from finepseudo.data.plan import Plan
from finepseudo.progress import tell
from finepseudo.run import Run
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.tracking import mlflow_runs, wandb_runs, watch
from finepseudo.tracking.event_files import write_events
from finepseudo.tracking.figures import Figures
from finepseudo.tracking.parts import Part, Parts
from finepseudo.tracking.watch import watched
from finepseudo.train.checkpoint import read_history
from finepseudo.train.engine import schedule
from finepseudo.train.pseudo_labels import LabelState

NAME = "supervise/video"


def labels(accepted=(True, True, False, True), label=(0, 1, 1, 1), agree=(True, False, False, False)):
    return pa.table({"accepted": accepted, "label": label, "agree": agree})


def commit_round(store, number, table):
    parts = {"labels.parquet": artefacts.table_bytes(table), "fusion.json": b"{}"}
    seconds = {"decode": 2.0, "predict": 3.0, "start": 1.0, "total": 9.0, "rows": 8.0, "clips": 4.0, "rejected": 1.0}
    parts["seconds.json"] = json.dumps(seconds).encode()
    artefacts.commit(store, f"labels/finepseudo/round-{number}", parts, {})


@pytest.fixture
def one(tmp_path):
    return begun(tmp_path / "run")


def curves(store, series):
    """Of TensorBoard's own reader: every step and value by tag."""
    found = EventAccumulator(store.uri(f"tensorboard/{series}"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def check_curves(one, found):
    history = read_history(one.store, one.stage.folder)
    assert [step for step, _ in found["loss"]] == [point["step"] for point in history.curve]
    assert [value for _, value in found["loss"]] == pytest.approx([point["loss"] for point in history.curve])
    stage = one.stage
    rates = [schedule(step, stage.steps, lr=stage.lr, warmup=stage.optimiser.warmup) for step in range(stage.steps)]
    assert [value for _, value in found["lr"]] == pytest.approx(rates)
    for kind in ("setup", "wait", "transfer", "compute", "commit", "decode"):
        assert found[f"seconds/{kind}"][-1] == (stage.steps, pytest.approx(history.seconds[kind]))
    assert not {"seconds/rows", "seconds/cache_hits", "step"} & found.keys()


def test_killed_and_resumed_training_shows_each_step_once(one, tmp_path):
    """The first look sees a history behind which the checkpoint is missing; the resume commits at other steps."""
    dying = replace(one, store=DyingStore(one.store.root, at_write="checkpoints/00000006/"))
    assert launch(1, tmp_path, train, [dying]) == [-9]
    assert len(one.store.list(f"train/{NAME}/history")) == 2
    parts = Parts(Run.at(one.store))
    write_events(one.store, parts.found())
    assert [step for step, _ in curves(one.store, NAME)["loss"]] == [1, 2, 3]
    before = one.store.list(f"tensorboard/{NAME}")
    other = replace(one, recipe=replace(one.recipe, scale=replace(one.recipe.scale, checkpoint_every=2)))
    assert launch(1, tmp_path, train, [other])[0][0].text == ""
    write_events(one.store, parts.found())
    assert before[0] in one.store.list(f"tensorboard/{NAME}"), "what was written stays as it is"
    check_curves(one, curves(one.store, NAME))
    # By a driver that is started anew: there is nothing to do.
    again = Parts(Run.at(one.store)).found()
    write_events(one.store, [replace(part, points=lambda: pytest.fail("read again")) for part in again])
    check_curves(one, curves(one.store, NAME))


def begun(root):
    """A training that is about to begin, in the place where a run has it."""
    made = case(root, "classify", NAME)
    made.plan.ensure(made.store, places.training_plan(NAME))
    return made


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A run with one training and two rounds of labels."""
    root = tmp_path_factory.mktemp("once")
    one = begun(root / "run")
    assert launch(1, root, train, [replace(one, bad=(5,))])[0][0].text == ""
    artefacts.commit(one.store, f"train/{NAME}/timing/0", {}, {"launch_s": 1.5})
    commit_round(one.store, 1, labels())
    commit_round(one.store, 2, labels(agree=(True,) * 4))
    artefacts.commit(one.store, "labels/timebalance/targets", {"labels.parquet": b"no labels of a round"}, {})
    return one


@pytest.fixture
def finished(once, tmp_path):
    """A copy of it."""
    shutil.copytree(once.store.root, tmp_path / "run")
    return replace(once, store=Store(str(tmp_path / "run")))


def test_files_of_a_training_that_is_made_again_are_replaced(finished):
    parts = Parts(Run.at(finished.store)).found()
    write_events(finished.store, parts)
    write_events(finished.store, [replace(part, digest="other") for part in parts])
    assert all(name.endswith(".other") for name in finished.store.list(f"tensorboard/{NAME}"))
    check_curves(finished, curves(finished.store, NAME))


def test_rounds_of_labels_are_curves_over_rounds(finished):
    write_events(finished.store, Parts(Run.at(finished.store)).found())
    assert curves(finished.store, "labels/finepseudo") == {
        "coverage": [(1, 0.75), (2, 0.75)],
        "agreement": [(1, 0.25), (2, 1.0)],
        "largest_class_share": [(1, pytest.approx(2 / 3)), (2, pytest.approx(2 / 3))],
    }


def test_label_state_of_nothing_accepted():
    assert LabelState.of(labels(accepted=(False,) * 4)) == LabelState(0.0, 0.25, 0, 0.0)


def values(figures):
    return {(one.metric.name, *list(one.labels.values())[1:]): one.value for one in figures}


def test_figures_are_what_was_committed(finished):
    found = list(Figures(Run.at(finished.store), finished.recipe).found())
    assert {one.labels["run"] for one in found} == {finished.store.uri()}
    assert all(tuple(one.labels) == one.metric.labels for one in found)
    value, plan = values(found), Plan.load(finished.store, finished.stage.plan)
    seconds = read_history(finished.store, finished.stage.folder).seconds
    assert value["finepseudo_committed_steps", NAME] == finished.stage.steps
    assert value["finepseudo_stage_clips", NAME] == len(plan)
    assert value["finepseudo_stage_seconds", NAME, "launch"] == 1.5
    for kind in ("setup", "wait", "transfer", "compute", "commit", "decode"):
        assert value["finepseudo_stage_seconds", NAME, kind] == seconds[kind]
    assert value["finepseudo_decode_clips_per_second", NAME] == 4.0, "a row takes 0.25 s"
    assert value["finepseudo_cache_hit_ratio", NAME] == 0.0
    assert value["finepseudo_rejected_clips", NAME] == 1
    assert value["finepseudo_rejected_ratio", NAME] == 1 / len(plan)
    assert value["finepseudo_rejected_clips", "prepare"] == value["finepseudo_rejected_ratio", "prepare"] == 0
    labelled = "labels/finepseudo/round-2"
    assert value["finepseudo_stage_seconds", labelled, "total"] == 9.0
    assert ("finepseudo_stage_seconds", labelled, "clips") not in value
    assert value["finepseudo_decode_clips_per_second", labelled] == 4.0
    assert value["finepseudo_rejected_ratio", labelled] == 0.25
    assert value["finepseudo_label_coverage_ratio", "finepseudo/round-1"] == 0.75
    assert value["finepseudo_label_agreement_ratio", "finepseudo/round-1"] == 0.25
    assert value["finepseudo_label_largest_class_ratio", "finepseudo/round-1"] == pytest.approx(2 / 3)
    bounds = finished.recipe.label
    assert value["finepseudo_guard_min_coverage_ratio",] == bounds.min_coverage
    assert value["finepseudo_guard_min_agreement_ratio",] == bounds.min_agreement
    assert value["finepseudo_guard_max_class_ratio",] == bounds.max_class_share
    assert value["finepseudo_guard_max_rejected_ratio",] == finished.recipe.data.max_rejected
    live = {metrics.ACTIVE, metrics.PROGRESS, metrics.DONE, metrics.LEFT, metrics.LOSS}
    assert {one.metric for one in found} == set(metrics.METRICS) - live


def test_half_a_training_counts_what_is_committed(one, tmp_path):
    dying = replace(one, store=DyingStore(one.store.root, at_write="checkpoints/00000006/"))
    assert launch(1, tmp_path, train, [dying]) == [-9]
    figures = Figures(Run.at(one.store), one.recipe)
    half = values(figures.found())
    assert half["finepseudo_committed_steps", NAME] == 3
    assert half["finepseudo_stage_clips", NAME] == len(one.plan) / 2
    assert launch(1, tmp_path, train, [one])[0][0].text == ""
    assert values(figures.found())["finepseudo_committed_steps", NAME] == 6


def test_watch_hears_progress_looks_at_the_end_and_says_who_is_active(finished, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "finepseudo")  # as the jobs have it
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told, began = [], time.time()
    with watched(Run.at(finished.store), finished.recipe, told.extend):
        assert values(told)["finepseudo_run_active",] == 1
        first = values(told)["finepseudo_progress_timestamp_seconds",]
        assert began <= first <= time.time()
        logging.getLogger("finepseudo").info("no progress")
        assert values(told)["finepseudo_progress_timestamp_seconds",] == first
        tell("align/frame", 3, 4, 7.5, 0.25)
        tell("evaluate", 1, 2, 1.0)
        assert not finished.store.list("tensorboard"), "it is not time for a look"
    value = values(told)
    assert value["finepseudo_progress_ratio", "align/frame"] == 0.75
    assert value["finepseudo_left_seconds", "align/frame"] == 7.5
    assert value["finepseudo_loss", "align/frame"] == 0.25
    assert ("finepseudo_loss", "evaluate") not in value
    assert first < value["finepseudo_progress_timestamp_seconds",] <= time.time()
    assert value["finepseudo_run_active",] == 0
    assert value["finepseudo_committed_steps", NAME] == 6
    check_curves(finished, curves(finished.store, NAME))
    tell("align/frame", 4, 4, 0.0)
    assert values(told) == value, "nobody listens any more"


def test_a_commit_is_progress_and_is_told_while_the_run_works(finished, monkeypatch):
    monkeypatch.setattr(watch, "EVERY_S", 0.02)
    told = []

    def times():
        return [one.value for one in told if one.metric is metrics.PROGRESS]

    def until(condition):
        ends = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < ends
            time.sleep(0.02)

    with watched(Run.at(finished.store), finished.recipe, told.extend):
        until(lambda: finished.store.list("tensorboard/labels/finepseudo"))
        seen = len(times())
        time.sleep(0.2)
        assert len(times()) == seen, "nothing was committed"
        commit_round(finished.store, 3, labels())
        until(lambda: len(times()) == seen + 1)


def test_nothing_that_fails_outside_ends_a_run_and_each_is_said_once(finished, monkeypatch, caplog):
    monkeypatch.setattr(watch, "EVERY_S", 0.01)
    monkeypatch.setattr(watch, "write_events", lambda *_: 1 / 0)
    caplog.set_level(logging.WARNING, "finepseudo")
    calls = Counter()

    def refuse(figures):
        calls["publish"] += 1
        raise ConnectionError("no such place")

    with watched(Run.at(finished.store), finished.recipe, refuse):
        ends = time.monotonic() + 20
        while calls["publish"] < 5 and time.monotonic() < ends:
            time.sleep(0.01)
    assert calls["publish"] >= 5, "it is tried again"
    assert [record.getMessage() for record in caplog.records] == [
        "metrics cannot be kept up to date, the run goes on: ConnectionError: no such place",
        "TensorBoard's files cannot be kept up to date, the run goes on: ZeroDivisionError: division by zero",
    ]


def test_who_does_not_answer_holds_a_run_up_for_a_bounded_time(finished, monkeypatch):
    monkeypatch.setattr(watch, "LAST_S", 0.1)
    monkeypatch.setattr(watch, "write_events", lambda *_: time.sleep(5))
    began = time.monotonic()
    with watched(Run.at(finished.store), finished.recipe, lambda figures: None):
        pass
    assert time.monotonic() - began < 3


def test_an_error_of_the_run_passes_through(finished):
    told = []
    with pytest.raises(KeyError), watched(Run.at(finished.store), finished.recipe, told.extend):
        raise KeyError
    assert values(told)["finepseudo_run_active",] == 0
    assert finished.store.list(f"tensorboard/{NAME}")


# MLflow


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An MLflow store of files, and its client."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "dives")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient((tmp_path / "mlruns").as_uri())


def logged(server):
    """Of the one run there: its tags, and every step and value by curve."""
    (experiment,) = [one for one in server.search_experiments() if one.name == "dives"]
    (run,) = server.search_runs([experiment.experiment_id])
    history = {key: server.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return run, {key: [(metric.step, metric.value) for metric in found] for key, found in history.items()}


def test_mlflow_has_the_committed_curves_once_in_one_run_whoever_starts_again(finished, server):
    parts = Parts(Run.at(finished.store)).found()
    first = mlflow_runs.from_environment(finished.store, finished.recipe)
    first.take(parts[0])
    first.take(parts[0])
    # Killed while it sent the next part: the server has one curve of it, and lacks the others.
    run, _ = logged(server)
    torn = parts[1].points()[0]
    server.log_metric(run.info.run_id, f"{NAME}/loss", torn["loss"], step=int(torn["step"]))
    again = mlflow_runs.from_environment(finished.store, finished.recipe)
    for part in parts:
        again.take(part)
    run, found = logged(server)
    assert run.data.tags["finepseudo.run"] == finished.store.uri()
    assert run.info.run_name == "tiny"
    own = {key.removeprefix(f"{NAME}/"): curve for key, curve in found.items() if key.startswith(NAME)}
    check_curves(finished, own)
    assert found["labels/finepseudo/coverage"] == [(1, 0.75), (2, 0.75)]
    elsewhere = mlflow_runs.from_environment(Store(finished.store.uri("other")), finished.recipe)
    elsewhere.take(parts[0])
    with pytest.raises(ValueError, match="too many values"):
        logged(server)


def test_a_part_that_was_sent_in_half_is_completed(finished, server, monkeypatch):
    monkeypatch.setattr(mlflow_runs, "BATCH", 4)
    tracker = mlflow_runs.from_environment(finished.store, finished.recipe)
    send, sent = tracker.client.log_batch, []

    def drop_the_second(*args, **kwargs):
        sent.append(args)
        if len(sent) == 2:
            raise ConnectionError
        send(*args, **kwargs)

    tracker.client.log_batch = drop_the_second
    parts = Parts(Run.at(finished.store)).found()
    with pytest.raises(ConnectionError):
        tracker.take(parts[0])
    for part in parts:
        tracker.take(part)
    check_curves(finished, {key.removeprefix(f"{NAME}/"): curve for key, curve in logged(server)[1].items()})


def test_mlflow_only_where_it_is_asked_for(one, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "finepseudo")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow_runs.from_environment(one.store, one.recipe) is None
    assert not caplog.records
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert mlflow_runs.from_environment(one.store, one.recipe) is None
    (record,) = caplog.records
    assert "mlflow is not installed" in record.getMessage()


def test_mlflow_that_does_not_answer_is_one_warning(finished, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "finepseudo")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with watched(Run.at(finished.store), finished.recipe, lambda figures: None):
        pass
    (record,) = [record for record in caplog.records if record.name == "finepseudo"]
    assert record.getMessage().startswith("MLflow cannot be kept up to date, the run goes on: ")
    check_curves(finished, curves(finished.store, NAME))


# Weights & Biases

KEY = "0123456789abcdef" * 2 + "deadbeef"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where W&B writes offline."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    kept = {"DIR": "", "CONFIG_DIR": "config", "CACHE_DIR": "cache", "DATA_DIR": "data"}
    for name, value in kept.items():
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / value))
    for name, value in {"MODE": "offline", "PROJECT": "dives", "API_KEY": KEY, "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()  # what an earlier test's environment said is forgotten
    yield tmp_path
    wandb.teardown()


def records(path):
    """Of W&B's file of a run: those of a LevelDB log, each in one piece or several, in blocks of 32 KiB."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := (1 << 15) - at % (1 << 15)) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # the only piece, or the last one
            yield Record.FromString(whole)
            whole = b""


def written(folder):
    """Of each of W&B's runs, in turn: what it says of itself, and every step and value by curve."""
    wandb.teardown()  # what is under way is written
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        found, about = {}, None
        for record in records(path):
            about = record.run if record.HasField("run") else about
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            own = {key: value for key, value in items.items() if not key.startswith("_")}
            for key, value in own.items():
                step = next(step for name, step in own.items() if name.endswith("/step"))
                found.setdefault(key, []).append((step, value))
        yield about, found


def begun_tracker(run, recipe):
    tracker = wandb_runs.from_environment(run, recipe)
    assert tracker is not None
    return tracker


def test_wandb_has_the_committed_curves_once_in_one_run_whoever_starts_again(finished, folder):
    parts = Parts(Run.at(finished.store)).found()
    for seen in (parts[:1] * 2, [*parts, *parts]):
        tracker = begun_tracker(finished.store, finished.recipe)
        for part in seen:
            tracker.take(part)
        tracker.close()
    elsewhere = begun_tracker(Store(finished.store.uri("other")), finished.recipe)
    elsewhere.take(parts[0])
    elsewhere.close()
    (killed, half), (again, whole), (other, _) = written(folder)
    assert killed.run_id == again.run_id != other.run_id
    assert (again.project, again.display_name) == ("dives", "tiny")
    assert finished.store.uri() in [json.loads(item.value_json) for item in again.config.update]
    assert [step for step, _ in half[f"{NAME}/loss"]] == [1, 2, 3]
    own = {key.removeprefix(f"{NAME}/"): curve for key, curve in whole.items() if key.startswith(NAME)}
    assert own.pop("step") == [(step, step) for step in range(1, 7)]
    check_curves(finished, own)
    assert whole["labels/finepseudo/coverage"] == [(1, 0.75), (2, 0.75)]


def test_a_watched_run_is_in_wandb_which_is_waited_for(finished, folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    closed, close = [], wandb_runs.Tracker.close
    monkeypatch.setattr(wandb_runs.Tracker, "close", lambda self: closed.append(self.id) or close(self))
    with watched(Run.at(finished.store), finished.recipe, lambda figures: None):
        pass
    ((about, found),) = written(folder)
    assert closed == [about.run_id]
    assert [step for step, _ in found[f"{NAME}/loss"]] == [1, 2, 3, 4, 5, 6]


def test_wandb_is_not_sent_what_it_has(finished, folder, monkeypatch):
    begin = wandb.init

    def resumed(**options):
        assert options["resume"] == "allow"
        run = begin(**options)
        run.summary[f"{NAME}/step"] = 3
        return run

    monkeypatch.setattr(wandb, "init", resumed)
    tracker = begun_tracker(finished.store, finished.recipe)
    for part in Parts(Run.at(finished.store)).found():
        tracker.take(part)
    tracker.close()
    ((_, found),) = written(folder)
    assert [step for step, _ in found[f"{NAME}/loss"]] == [4, 5, 6]
    assert [step for step, _ in found["labels/finepseudo/coverage"]] == [1, 2]


@pytest.mark.parametrize("environment", [{}, {"API_KEY": KEY}, {"PROJECT": "dives", "MODE": "disabled"}])
def test_wandb_only_where_it_is_asked_for(one, folder, monkeypatch, caplog, environment):
    caplog.set_level(logging.WARNING, "finepseudo")
    for name in ("MODE", "PROJECT", "API_KEY"):
        monkeypatch.delenv(f"WANDB_{name}")
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert wandb_runs.from_environment(one.store, one.recipe) is None
    assert not caplog.records


@pytest.mark.parametrize("asked", ["WANDB_PROJECT", "WANDB_MODE"])
def test_wandb_that_is_not_installed_is_one_warning(one, folder, monkeypatch, caplog, asked):
    caplog.set_level(logging.WARNING, "finepseudo")
    monkeypatch.delenv("WANDB_MODE" if asked == "WANDB_PROJECT" else "WANDB_PROJECT")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert wandb_runs.from_environment(one.store, one.recipe) is None
    (record,) = caplog.records
    assert record.getMessage() == f"{asked} is set, but wandb is not installed: pip install wandb"


def test_wandb_without_a_key_is_one_warning_and_no_question(one, folder, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "finepseudo")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_runs.from_environment(one.store, one.recipe) is None
    (record,) = caplog.records
    assert "W&B has no key: set WANDB_API_KEY" in record.getMessage()


def test_wandb_that_does_not_answer_is_one_warning_without_the_key(finished, folder, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_runs, "ANSWER_S", 3.0)
    with watched(Run.at(finished.store), finished.recipe, lambda figures: None):
        pass
    warned = [one for one in caplog.records if one.name == "finepseudo" and one.levelno >= logging.WARNING]
    (record,) = warned
    assert record.getMessage().startswith("Weights & Biases cannot be kept up to date, the run goes on: ")
    check_curves(finished, curves(finished.store, NAME))
    assert KEY not in caplog.text + "".join(capfd.readouterr())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_parts_are_read_where_a_run_shares_its_pre_training(finished, tmp_path):
    shared = Run.at(Store(str(tmp_path / "own")), finished.store)
    artefacts.commit(shared.store, places.training_plan(NAME), {}, {})
    parts = Parts(shared).found()
    assert {part.series for part in parts} == {NAME}
    assert [type(part) for part in parts] == [Part, Part]
