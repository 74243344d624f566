"""The main job as a user starts it: what a run leaves behind, what a second start does, what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, RUN_LIMIT_S, call

from finepseudo import predict
from finepseudo.data.plan import Plan
from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.recipes import find
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import read_history

STAGES = (
    "pretrain/frame",
    "pretrain/video",
    "align/frame",
    "supervise/video",
    "finepseudo/round-1/video",
    "supervised/round-1/video",
)


def learned(stdout):
    """What a run prints of its results, without Ray's own remarks on how many processes it has started."""
    return [line for line in stdout.splitlines() if "(raylet)" not in line]


def test_results_hold_every_figure(smoke):
    results = smoke.results
    for method in ("supervised", "finepseudo", "stage_2"):
        for figures in (results.measured[method].f_E, results.measured[method].fused):
            assert 0 <= figures.top1.value <= figures.top5.value <= 1
            assert figures.videos == 20
    (labels,) = results.rounds["finepseudo"]
    assert labels.quality.accepted == labels.quality.unlabelled == 30
    assert labels.quality.coverage == 1.0
    assert {"p_E", "p_A", "p"} == labels.quality.precision_all.keys()
    assert {"pooled_cosine", "timestamp_cosine", "dtw", "score"} == results.pairs.scores.keys()
    assert results.manifest.usable == {"train": 40, "test": 20}
    for stage in STAGES:
        seconds = results.timing[f"train/{stage}"]
        assert {"launch", "setup", "wait", "transfer", "compute", "commit", "decode"} <= seconds.keys()


def test_ray_and_one_plain_process_find_the_same(smoke, tmp_path):
    recipe = find("rehearsal_smoke")
    plain = ensure_results(run_rounds(recipe, Store(str(tmp_path)), InProcess(recipe)))
    assert replace(plain, timing={}) == replace(smoke.results, timing={})


def test_other_videos_by_the_pool_and_in_this_process_are_named_the_same(smoke, tmp_path):
    videos = sorted((smoke.folder / "data/videos").iterdir())[:5]
    command = [sys.executable, ROOT / "jobs/predict.py", *videos, "--run", smoke.folder]
    command += ["--to", tmp_path / "rows.jsonl", "--pool", "--scale.object-store-mib", "256"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == predict([str(video) for video in videos], str(smoke.folder))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"], "no parts are left"


@pytest.mark.parametrize("stage", STAGES)
def test_committed_history_is_the_plan(smoke, stage):
    run = Store(str(smoke.folder))
    plan = Plan.load(run, f"plans/train/{stage}")
    history = read_history(run, f"train/{stage}")
    every = 4  # steps between two commits
    assert history.blocks == [[0, at, min(at + every, plan.blocks), 1] for at in range(0, plan.blocks, every)]
    assert [point["step"] for point in history.curve] == list(range(1, plan.blocks + 1))
    assert history.rejected == []


def test_unlabelled_videos_reach_training_only_with_pseudo_labels(smoke):
    run = Store(str(smoke.folder))
    split = json.loads((smoke.folder / "split/split-seed0.json").read_text())
    labelled = set(split["labelled"])
    test = {row["vid_name"] for row in json.loads((smoke.folder / "data/test.json").read_text())}
    for stage in STAGES:
        plan = Plan.load(run, f"plans/train/{stage}")
        rows = plan.rows(0, len(plan))
        used = {row["video_id"] for row in rows}
        assert not used & test
        if stage.startswith("pretrain"):
            assert {row["label"] for row in rows} == {None}
        elif stage.startswith(("align", "supervise")):
            assert used <= labelled
        else:
            assert used - labelled


def test_log_and_page_are_left_for_people(smoke):
    assert "results:" in smoke.stdout
    assert (smoke.folder / "report.html").stat().st_size > 10_000
    assert {str(at.parent.relative_to(smoke.folder)) for at in smoke.folder.rglob("*.tfevents.*")} == {
        f"tensorboard/{name}" for name in (*STAGES, "labels/finepseudo")
    }
    (log,) = (smoke.folder / "logs").iterdir()
    text = log.read_text()
    assert "pretrain/frame: training steps 0 to 12 of 12" in text
    assert "left" in text
    assert "Traceback" not in smoke.stderr


def test_same_command_again_only_looks_up(smoke):
    before = {path: path.stat().st_mtime_ns for path in (smoke.folder / "train").rglob("committed.json")}
    again = call(smoke.folder)
    assert again.returncode == 0, again.stderr[-4000:]
    assert {path: path.stat().st_mtime_ns for path in (smoke.folder / "train").rglob("committed.json")} == before
    assert "training steps" not in again.stderr
    assert learned(again.stdout) == learned(smoke.stdout)


@pytest.mark.long
def test_finished_run_is_evaluated_again_with_more_clips(smoke):
    before = smoke.results
    done = call(smoke.folder, "--evaluate.clips", 2, job="evaluate")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "training steps" not in done.stderr
    assert smoke.results.snapshots == before.snapshots
    assert len(list((smoke.folder / "results").iterdir())) == 2
    (smoke.folder / "results.json").write_bytes(before.to_json())  # as the other tests know it


@pytest.mark.long
def test_a_run_without_room_ends_with_one_clear_line(tmp_path):
    no_room = call(tmp_path / "run", "--scale.train-gpus", 1, "--scale.resources-deadline-s", 1)
    assert no_room.returncode == 75
    assert "ClusterError: the cluster has no room for the run after 1 s: no node has 1 CPU, 1 GPU" in no_room.stderr
    assert "Traceback" not in no_room.stderr
