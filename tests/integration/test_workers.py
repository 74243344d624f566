"""Training workers and scoring actors that are killed, and workers that share a step: real Ray, real processes."""

import contextlib
import logging
import os
import re
import signal
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from conftest import ROOT, short_recipe
from prometheus_client.parser import text_string_to_metric_families

from finepseudo import progress
from finepseudo.data import child
from finepseudo.data.manifest import Manifest
from finepseudo.data.plan import Plan, plan_classify, samples
from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.prepare import ensure_manifest, ensure_split
from finepseudo.driver.rounds import run_rounds
from finepseudo.driver.steps import Steps, ensure_trained
from finepseudo.errors import StorageError
from finepseudo.recipe import CrossEntropy, Models
from finepseudo.recipes import find
from finepseudo.run import Run, data_store
from finepseudo.runtime.executor import RayExecutor, on_ray, ray  # which sets the token before Ray is imported
from finepseudo.runtime.gauges import Gauges
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.tracking import watch
from finepseudo.train.checkpoint import committed_step, read_history
from finepseudo.train.initial import ensure_initial
from finepseudo.train.predict import Pass
from finepseudo.train.stage import stage_of

STEPS = 40
KINDS = ("setup", "wait", "transfer", "compute", "commit", "decode")  # of seconds
DASHBOARD = "cluster/observability/grafana-dashboard.json"


@pytest.fixture(scope="module")
def base():
    """The smoke recipe with two blocks a step, which one or two workers can share."""
    recipe = find("rehearsal_smoke")
    scale = replace(recipe.scale, checkpoint_every=4, steps_per_block=2, collective_timeout_s=30)
    return replace(recipe, optimiser=replace(recipe.optimiser, blocks_per_step=2), scale=scale)


@pytest.fixture(scope="module")
def ground(base, tmp_path_factory):
    """A live cluster with two training workers' room, and a manifest."""
    run = Store(str(tmp_path_factory.mktemp("workers")))
    wide = replace(base, scale=replace(base.scale, train_workers=2))
    with on_ray(wide) as executor:
        yield run, ensure_manifest(base, run, executor), executor.board


def make_stage(run, manifest, base, name):
    row_N = manifest.rows("train")
    plan = plan_classify(
        manifest, samples(row_N, manifest.truth(row_N)), frames=8, augment=base.augment, steps=STEPS, batch=4,
        label_share=1.0, blocks_per_step=2, seed=5,
    )  # fmt: skip
    where = f"plans/train/{name}"
    plan.ensure(run, where)
    return stage_of(
        base, "video", CrossEntropy(), folder=f"train/{name}", plan=where, plan_fingerprint=plan.fingerprint,
        steps=STEPS, lr=1e-3, num_classes=manifest.num_classes,
    )  # fmt: skip


def train(name, recipe, ground):
    run, manifest, board = ground
    stage = make_stage(run, manifest, recipe, name)
    digest = ensure_trained(stage, recipe, run, data_store(recipe, run), RayExecutor(recipe, board))
    history = read_history(run, stage.folder)
    taken = sorted(block for _, *of in history.blocks for block in range(*of))
    assert taken == list(range(Plan.load(run, stage.plan).blocks))
    return digest, history, [point["loss"] for point in history.curve]


@pytest.fixture(scope="module")
def undisturbed(base, ground):
    return train("one", base, ground)


def processes(title):
    """Processes of this cluster by the title that they give themselves; other tests have clusters at the same time."""
    session, found = ray.get_runtime_context().get_session_name(), []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(title in part for part in process.info["cmdline"] or []):
                raylet = process.parent()
                if raylet and any(session in part for part in raylet.cmdline()):
                    found.append(process)
    return found


def kill_once(title, ready, count):
    """Kill one process of that title as soon as `ready()`; remembers whether it did."""
    killed = threading.Event()

    def watch():
        ends = time.monotonic() + 240
        while time.monotonic() < ends and not killed.is_set():
            victims = processes(title)
            if ready() and len(victims) >= count:
                os.kill(victims[-1].pid, signal.SIGKILL)
                killed.set()
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    return killed


@pytest.mark.long
def test_killed_worker_resumes_at_the_commit_with_the_same_end(base, ground, undisturbed):
    run = ground[0]
    killed = kill_once("ray::RayTrainWorker", lambda: committed_step(run, "train/killed") >= 4, 1)
    digest, _, losses = train("killed", base, ground)
    assert killed.is_set()
    assert len(run.list("train/killed/timing")) >= 2, "the workers were not started again"
    assert losses == undisturbed[2]
    assert digest == undisturbed[0]


@pytest.mark.long
def test_who_hears_of_progress_may_die_without_a_training_noticing(base, ground, undisturbed):
    run = ground[0]
    killed = kill_once("ray::_Board", lambda: committed_step(run, "train/unheard") >= 4, 1)
    digest, _, losses = train("unheard", base, ground)
    assert killed.is_set()
    assert len(run.list("train/unheard/timing")) == 1, "the workers were started again"
    assert (digest, losses) == (undisturbed[0], undisturbed[2])
    import ray  # not before the cluster is there: it reads at import how it proves who it is

    assert ray.get(ground[2].take.remote(), timeout=60) is not None, "it is there again"


@pytest.mark.long
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_two_workers_take_the_same_steps_as_one(base, ground, undisturbed, zero_stage):
    recipe = replace(base, scale=replace(base.scale, train_workers=2, zero_stage=zero_stage))
    _, history, losses = train(f"two-{zero_stage}", recipe, ground)
    # Of the two blocks of a step, each worker took one.
    assert all((first % 2, stride) == (rank, 2) for rank, first, _, stride in history.blocks)
    # Sums in another order differ in the last bit, and Adam makes more of it with every step: how much, depends on the
    # processor. A step that averaged wrongly would show in the next loss.
    assert losses[:6] == pytest.approx(undisturbed[2][:6], abs=1e-5)
    assert losses[6:10] == pytest.approx(undisturbed[2][6:10], abs=2e-3)


def scored(recipe, ground, name, clips):
    """One pass of the pool over the training videos."""
    run, manifest, board = ground
    split = ensure_split(recipe, run, data_store(recipe, run), manifest)
    steps = Steps(recipe, run, run, manifest, split, RayExecutor(recipe, board))
    frame = ensure_initial(recipe, "frame", manifest.num_classes, run)[0]
    return steps.score(name, manifest.rows("train"), Pass(frame={"f_A": frame}, clips=clips))


def test_an_error_of_ours_comes_back_as_it_was_raised(ground, base):
    """Not as Ray's wrapper, whose text is a traceback."""

    def refuse(group):
        raise StorageError(f"{group}: the store refuses")

    with pytest.raises(StorageError, match="^one: the store refuses$") as caught:
        RayExecutor(base, ground[2]).spread(refuse, ["one"], "refusing")
    assert type(caught.value) is StorageError


def test_killed_scorer_costs_no_video(base, ground):
    two = replace(base, scale=replace(base.scale, score_workers=2))
    whole = scored(two, ground, "whole", 2)
    killed = kill_once("MapWorker(MapBatches(_Scorer))", lambda: True, 1)
    again = scored(two, ground, "killed", 2)
    assert killed.is_set()
    for name, value in whole.columns().items():
        if not name.endswith("_s"):
            assert (again.columns()[name] == value).all(), name


def endpoint():
    """Values at Ray's metrics endpoint of this node, by name and labels; all names there."""
    import ray  # not before finepseudo.runtime, which says how Ray authenticates

    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    ours = [sample for family in families for sample in family.samples if sample.name.startswith("ray_finepseudo_")]
    of = {(one.name, *(one.labels[key] for key in ("stage", "kind") if key in one.labels)): one.value for one in ours}
    return of, {sample.name for family in families for sample in family.samples}


def seen_at_endpoint(*wanted, shown=frozenset()):
    """What the endpoint shows as soon as it shows all of it: what is told together need not come together."""
    ends = time.monotonic() + 90
    while True:
        found, names = endpoint()
        if (set(wanted) <= found.keys() and shown <= names) or time.monotonic() > ends:
            return found, names
        time.sleep(1)


def test_metrics_are_at_rays_endpoint_while_a_run_works(ground, base, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "finepseudo")
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(watch, "EVERY_S", 1.0)
    run, _, board = ground
    told = ("run_active", "progress_timestamp_seconds", "guard_max_rejected_ratio")
    of_run = [(f"ray_finepseudo_{name}",) for name in told] + [("ray_finepseudo_rejected_clips", "prepare")]
    of_work = [(f"ray_finepseudo_{name}", "counting") for name in ("progress_ratio", "left_seconds")]
    # Those of Ray's own that the dashboard shows; that of GPUs is not there without one.
    of_ray = set(re.findall(r"\bray_(?:node|object)_\w+", (ROOT / DASHBOARD).read_text()))
    of_gpus = {"ray_node_gpus_utilization"}
    began = time.time()
    with watch.watched(Run.at(run), base, Gauges().publish):
        RayExecutor(base, board).spread(len, ["a"] * 40, "counting")
        found, names = seen_at_endpoint(*of_run, *of_work, shown=of_ray - of_gpus)
    assert found["ray_finepseudo_run_active",] == 1
    assert began <= found["ray_finepseudo_progress_timestamp_seconds",] <= time.time()
    assert 0 < found["ray_finepseudo_progress_ratio", "counting"] < 1
    assert found["ray_finepseudo_left_seconds", "counting"] >= 0
    assert found["ray_finepseudo_guard_max_rejected_ratio",] == base.data.max_rejected
    assert found["ray_finepseudo_rejected_clips", "prepare"] == 0
    assert of_ray - names == of_gpus


@pytest.mark.long
def test_seconds_of_a_training_are_at_rays_endpoint(ground, base, undisturbed, monkeypatch):
    monkeypatch.setattr(watch, "EVERY_S", 1.0)
    run, seconds = ground[0], undisturbed[1].seconds
    of_seconds = [("ray_finepseudo_stage_seconds", "one", kind) for kind in ("launch", *KINDS)]
    told = ("committed_steps", "stage_clips", "decode_clips_per_second", "cache_hit_ratio")
    of_stage = [(f"ray_finepseudo_{name}", "one") for name in told]
    with watch.watched(Run.at(run), base, Gauges().publish):
        found, _ = seen_at_endpoint(*of_stage, *of_seconds)
    assert found["ray_finepseudo_committed_steps", "one"] == STEPS
    assert found["ray_finepseudo_stage_clips", "one"] == STEPS * 2 * 4
    for kind in KINDS:
        assert found["ray_finepseudo_stage_seconds", "one", kind] == pytest.approx(seconds[kind])
    assert 0.5 < found["ray_finepseudo_stage_seconds", "one", "launch"] < 300
    assert found["ray_finepseudo_decode_clips_per_second", "one"] > 1
    assert found["ray_finepseudo_cache_hit_ratio", "one"] == seconds["cache_hits"] / seconds["rows"]


@contextlib.contextmanager
def in_its_place(data, path, content):
    """Another file where a video was."""
    intact = data.read(path)
    data.write(path, content(intact))
    try:
        yield
    finally:
        data.write(path, intact)


@pytest.mark.long
def test_undecodable_videos_are_recorded_and_bounded(base, ground):
    run, manifest, board = ground
    data, row = data_store(base, run), manifest.rows("train")[0]
    (victim,) = manifest.clips.slice(row, 1).to_pylist()
    with in_its_place(data, victim["path"], lambda intact: intact[: len(intact) // 2]):
        off = replace(base, scale=replace(base.scale, cache_gib=0), data=replace(base.data, max_rejected=0.5))
        stage = make_stage(run, manifest, off, "damaged")
        ensure_trained(stage, off, run, data, RayExecutor(off, board))
        rejected = read_history(run, stage.folder).rejected
        assert {row["video_id"] for row in rejected} == {victim["video_id"]}
        assert all("not the file that was probed" in row["error"] for row in rejected)
        scores = scored(off, ground, "damaged", 1)
        assert list(scores.rejected) == [row]
        assert row not in scores.columns()["clip"]


def who_opens(path):
    """Processes that open videos for others, and have this one open now."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            opens = b"finepseudo.data.child" in (process / "cmdline").read_bytes()
            if opens and any(os.readlink(handle) == path for handle in (process / "fd").iterdir()):
                yield int(process.name)


@pytest.mark.long
def test_a_video_on_which_every_decoder_dies_is_recorded_and_a_training_goes_on(base, ground, tmp_path):
    """A decoder that has the video open is killed. The file is so large that it stays open while it is decoded."""
    (first, manifest, board), run = ground, Store(str(tmp_path))
    data, row = data_store(base, first), manifest.rows("train")[0]
    (victim,) = manifest.clips.slice(row, 1).to_pylist()
    box = (child.WHOLE + 8).to_bytes(4, "big") + b"free" + bytes(child.WHOLE)
    killed, over = set(), threading.Event()

    def kill():
        while not over.wait(0.001):
            for pid in who_opens(data.uri(victim["path"])):
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with in_its_place(data, victim["path"], lambda intact: intact + box):
        known = child.Child(60).probe(data.uri(victim["path"]))
        clips = manifest.clips.to_pylist()
        clips[row] |= {"sha256": known["sha256"], "bytes": known["bytes"]}
        clips = artefacts.table_bytes(pa.Table.from_pylist(clips, manifest.clips.schema))
        parts = {name: artefacts.read_part(first, "manifest", name) for name in ("labels.parquet", "classes.json")}
        artefacts.commit(run, "manifest", {**parts, "clips.parquet": clips}, {})
        scale = replace(base.scale, cache_gib=0, decode_deadline_s=300)  # so that none dies of that
        recipe = replace(base, scale=scale, data=replace(base.data, max_rejected=0.5))
        stage = make_stage(run, Manifest.load(run), recipe, "deadly")
        thread = threading.Thread(target=kill)
        thread.start()
        try:
            ensure_trained(stage, recipe, run, data, RayExecutor(recipe, board))
        finally:
            over.set()
            thread.join()
    history = read_history(run, stage.folder)
    assert {row["video_id"] for row in history.rejected} == {victim["video_id"]}
    assert all("decoder crashed" in row["error"] for row in history.rejected)
    assert len(history.rejected) > child.TRIES, "it is asked for again"
    assert child.TRIES <= len(killed) < len(history.rejected), "and not opened again"
    assert len(history.curve) == STEPS


def ended(recipe, folder, executor, base=None):
    """Figures of a run, and digests of the weights that it ends with; what the base has is not trained again."""
    return replace(ensure_results(run_rounds(recipe, Store(str(folder)), executor, base)), timing={})


@pytest.mark.long
def test_fixmatch_ends_the_same_on_ray_and_in_one_process(ground, short, tmp_path):
    """Clips with and without a label in one stream, two forwards in one step."""
    recipe, stage_2 = replace(short_recipe(), methods=("fixmatch",)), Store(str(short.folder))
    ours = ended(recipe, tmp_path / "ray", RayExecutor(recipe, ground[2]), stage_2)
    plain = ended(recipe, tmp_path / "plain", InProcess(recipe), stage_2)
    assert ours == plain
    curve = read_history(Store(str(tmp_path / "ray")), "train/fixmatch/round-1/video").curve
    assert [point["step"] for point in curve] == list(range(1, 9))
    assert all(0 <= point["accepted"] <= 1 for point in curve)


@pytest.mark.long
def test_stored_features_end_the_same_on_ray_and_in_one_process(ground, tmp_path, caplog):
    """Features by the pool, trainings on them by streams."""
    caplog.set_level(logging.INFO, "finepseudo")
    models = Models(frozen="tiny_vtn", frame="feature_vtn", video="feature_transformer")
    recipe = short_recipe()
    recipe = replace(recipe, models=models, frames=replace(recipe.frames, frozen=20))
    ours = ended(recipe, tmp_path / "ray", RayExecutor(recipe, ground[2]))
    assert "features: 60 clips x 20 frames x 128 numbers of 2 bytes = 0.3 MiB" in caplog.text
    plain = ended(recipe, tmp_path / "plain", InProcess(recipe))
    assert ours == plain


@pytest.mark.long
def test_the_pool_labels_while_a_training_goes_on(ground, short, tmp_path):
    """And so ends as one plain process does, where one comes after the other."""
    recipe, stage_2 = short_recipe(), Store(str(short.folder))
    rounds = replace(recipe.rounds, count=2, video_steps=120)
    recipe = replace(recipe, label=replace(recipe.label, lag=1), rounds=rounds)
    ours = ended(recipe, tmp_path / "ray", RayExecutor(recipe, ground[2]), stage_2)
    made = [f"{name}/committed.json" for name in ("halfway", "snapshot")]
    half, end = ((tmp_path / "ray/train/finepseudo/round-1/video" / name).stat().st_mtime for name in made)
    labelled = (tmp_path / "ray/labels/finepseudo/round-2/committed.json").stat().st_mtime
    assert half < labelled < end
    plain = ended(recipe, tmp_path / "plain", InProcess(recipe), stage_2)
    assert ours == plain
