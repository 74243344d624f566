"""The whole story in one plain process, without Ray: what is trained, what is looked up, what is refused."""

import hashlib
import json
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import manifest

from finepseudo import rehearsal
from finepseudo.costs.resources import workers
from finepseudo.data import sampling
from finepseudo.data.batch import make_batch
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder
from finepseudo.data.plan import Plan, plan_score
from finepseudo.data.stream import BlockReader
from finepseudo.driver.evaluate import ensure_results, frame_truth
from finepseudo.driver.executor import InProcess
from finepseudo.driver.prepare import ensure_manifest, ensure_split, generate
from finepseudo.driver.rounds import pretrain, run_rounds
from finepseudo.driver.steps import Steps, both, side_by_side
from finepseudo.errors import ArtefactError, DecodeError, ManifestError, StorageError, TrainingError
from finepseudo.models import weights
from finepseudo.recipe import Data, Split
from finepseudo.recipes import find
from finepseudo.report.page import write_report
from finepseudo.report.summary import summary
from finepseudo.results import FrameTruth, frame_quality
from finepseudo.run import Run, data_store, pass_left_out
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, located
from finepseudo.train.initial import random_encoder

SMOKE = find("rehearsal_smoke")
RECIPE = replace(
    SMOKE,
    methods=("supervised", "pseudo_video", "finepseudo"),
    rounds=replace(SMOKE.rounds, video_steps=4, frame_rounds=1, frame_steps=4),
    gitdl=replace(SMOKE.gitdl, frame_steps=4, video_steps=4),
    align=replace(SMOKE.align, steps=4),
    supervise=replace(SMOKE.supervise, steps=4),
)
TRAININGS = {
    "pretrain/frame",
    "pretrain/video",
    "align/frame",
    "supervise/video",
    "supervised/round-1/video",
    "pseudo_video/round-1/video",
    "finepseudo/round-1/video",
    "finepseudo/round-1/frame",
}


class Watched(InProcess):
    """Remembers what it was asked for."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.trained, self.passes = set(), Counter()

    def train(self, stage, run, data, *, stop):
        self.trained.add(stage.name)
        super().train(stage, run, data, stop=stop)

    def score(self, what, plan, blocks, num_classes, run, data, out):
        self.passes[plan.removeprefix("plans/score/").rpartition("-")[0]] += 1
        return super().score(what, plan, blocks, num_classes, run, data, out)


def whole(recipe, run, base=None):
    executor = Watched(recipe)
    results = ensure_results(run_rounds(recipe, Store(str(run)), executor, base and Store(str(base))))
    return results, executor


def every_row(run, training):
    plan = Plan.load(run, f"plans/train/{training}")
    return plan.rows(0, len(plan))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver") / "run"
    return folder, *whole(RECIPE, folder)


def test_every_stage_is_made_once(first):
    _, results, executor = first
    assert executor.trained == TRAININGS
    # One labelling pass serves the first round of both methods that label.
    assert executor.passes == {
        "embed/pretrained": 1,
        "embed/aligned": 1,
        "referees": 1,
        "label/round-1": 1,
        "embed/finepseudo/round-1": 1,
        "evaluate": 1,
    }
    assert set(results.measured) == {"stage_2", *RECIPE.methods}
    assert {name: len(rounds) for name, rounds in results.rounds.items()} == {
        "supervised": 0,
        "pseudo_video": 1,
        "finepseudo": 1,
    }
    assert set(results.gains) == {
        f"{part}, over {other}" for part in ("f_E", "fused") for other in ("supervised", "pseudo_video")
    }


def test_results_name_the_snapshots_that_every_method_ended_with(first):
    folder, results, _ = first
    assert results.snapshots["finepseudo"].f_A == "train/finepseudo/round-1/frame/snapshot"
    assert results.snapshots["pseudo_video"].f_A == results.snapshots["stage_2"].f_A == "train/align/frame/snapshot"
    run = Run.at(Store(str(folder)))
    assert run.results() == results
    assert run.snapshot("supervised", "video") == str(folder / "train/supervised/round-1/video/snapshot")
    assert Path(run.snapshot("finepseudo", "frame"), "weights.safetensors").is_file()
    with pytest.raises(ArtefactError, match="no snapshots of 'fixmatch'; it has stage_2, supervised"):
        run.snapshot("fixmatch", "frame")


def test_started_again_it_only_looks_up(first):
    folder, results, _ = first
    again, executor = whole(RECIPE, folder)
    assert again == results
    assert (executor.trained, executor.passes) == (set(), {})


def test_pretraining_goes_on_from_named_weights_unless_it_has_no_steps(first, tmp_path):
    folder, *_ = first
    shutil.copytree(folder / "data", tmp_path / "run/data")
    source = random_encoder(RECIPE.models.encoder("frame"), num_classes=2, size=RECIPE.frames.crop, seed=77)
    backbone = {f"backbone.{key}": value for key, value in source.backbone.state_dict().items()}
    data = weights.to_bytes(backbone, {})
    (tmp_path / "w.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    named = replace(RECIPE.models, frame_weights=str(tmp_path / "w.safetensors"), frame_sha256=digest)
    recipe, run = replace(RECIPE, models=named), Store(str(tmp_path / "run"))
    executor = Watched(recipe)
    manifest = ensure_manifest(recipe, run, executor)
    split = ensure_split(recipe, run, data_store(recipe, run), manifest)
    steps = Steps(recipe, run, run, manifest, split, executor, may_train=True)

    start = pretrain(steps, "frame", 0)
    assert executor.trained == set()
    assert start.uri.endswith("train/initial/frame/snapshot")
    begun = weights.read_state(artefacts.read_part(*located(start.uri), "weights.safetensors"))
    assert all(torch.equal(begun[f"encoder.{key}"], value) for key, value in backbone.items())

    end = pretrain(steps, "frame", 4)
    assert executor.trained == {"pretrain/frame"}
    assert artefacts.required(*located(end.uri))["lineage"]["init_digest"] == start.digest
    # Four steps of warming up move the backbone a little from where it began, and not from anywhere else.
    ended = weights.read_state(artefacts.read_part(*located(end.uri), "weights.safetensors"))
    moved = max(float((ended[key] - begun[key]).abs().max()) for key in begun if key.endswith("fc.weight"))
    assert 0 < moved < 0.02


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("supervised_2x", {"supervised_2x/video"}),
        ("fixmatch", {"fixmatch/round-1/video"}),
        ("timebalance", {"pretrain/invariant", "timebalance/invariant", "timebalance/round-1/video"}),
    ],
)
def test_another_method_later_trains_itself_alone(first, tmp_path, method, trained):
    folder, results, _ = first
    shutil.copytree(folder, tmp_path / "run")
    more, executor = whole(replace(RECIPE, methods=(*RECIPE.methods, method)), tmp_path / "run")
    assert executor.trained == trained
    assert more.measured["finepseudo"] == results.measured["finepseudo"]
    assert more.rounds[method] == []


def test_fixmatch_has_the_steps_and_the_start_of_the_others(first, tmp_path):
    """Two rounds over D_l and D_u, of which it knows no label."""
    folder, _, _ = first
    twice = replace(RECIPE, methods=("fixmatch",), rounds=replace(RECIPE.rounds, count=2, frame_rounds=0))
    found, executor = whole(twice, tmp_path / "run", folder)
    assert executor.trained == {"fixmatch/round-1/video", "fixmatch/round-2/video"}
    assert found.snapshots["fixmatch"].digest_f_A == found.snapshots["stage_2"].digest_f_A
    run = Store(str(tmp_path / "run"))
    markers = [artefacts.required(run, f"train/fixmatch/round-{number}/video/snapshot")["lineage"] for number in (1, 2)]
    assert markers[0]["init_digest"] == found.snapshots["stage_2"].digest_f_E
    assert markers[1]["init_digest"] != markers[0]["init_digest"]
    split = json.loads((folder / "split/split-seed0.json").read_text())
    for number, marker in enumerate(markers, 1):
        rows = every_row(run, f"fixmatch/round-{number}/video")
        assert (marker["steps"], len(rows)) == (4, 4 * 8)
        real = [row["video_id"] for row in rows if row["label"] is not None]
        assert set(real) <= set(split["labelled"])
        assert {row["video_id"] for row in rows if row["label"] is None}.isdisjoint(split["labelled"])
        assert len(real) == 0.25 * len(rows), "the share of the other methods"


def test_timebalance_learns_what_two_teachers_say(first, tmp_path):
    """Teachers of the same supervision from two pre-trainings; targets for all of D_u, made once for all rounds."""
    folder, _, _ = first
    shutil.copytree(folder, tmp_path / "base")
    base, run = Store(str(tmp_path / "base")), Store(str(tmp_path / "run"))
    twice = replace(RECIPE, methods=("timebalance",), rounds=replace(RECIPE.rounds, count=2, frame_rounds=0))
    found, executor = whole(twice, run.root, base.root)
    rounds = [f"timebalance/round-{number}/video" for number in (1, 2)]
    assert executor.trained == {"pretrain/invariant", "timebalance/invariant", *rounds}
    assert executor.passes["label/timebalance"] == 1
    assert artefacts.committed(base, "train/pretrain/invariant/snapshot"), "shared by all label seeds"

    def lineage(store, name):
        return artefacts.required(store, f"train/{name}/snapshot")["lineage"]

    assert lineage(run, rounds[0])["init_digest"] == found.snapshots["stage_2"].digest_f_E
    ours, theirs = lineage(run, "timebalance/invariant"), lineage(base, "supervise/video")
    assert {key for key in ours if ours[key] != theirs[key]} == {"init_digest", "plan_fingerprint"}
    table = artefacts.read_table(run, "labels/timebalance/targets", "labels.parquet")
    p_NK = np.array(table["top_p"].to_pylist())
    assert p_NK.shape == (found.split.unlabelled, 5)
    assert p_NK.sum(1) == pytest.approx(np.ones(len(p_NK)), abs=1e-5)
    assert table["label"].to_pylist() == [top[0] for top in table["top"].to_pylist()]
    for name in rounds:
        taught = [row for row in every_row(run, name) if row["top"] is not None]
        assert len(taught) == 0.75 * 4 * 8
        assert {row["weight"] for row in taught} == {1.0}
    again, executor = whole(twice, run.root, base.root)
    assert (executor.trained, executor.passes) == (set(), {})
    assert again.measured == found.measured


def test_run_and_data_may_move(first, tmp_path):
    folder, results, _ = first
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere/data", tmp_path / "videos")
    moved = replace(RECIPE, data=replace(RECIPE.data, root=str(tmp_path / "videos")))
    again, executor = whole(moved, tmp_path / "elsewhere")
    assert executor.trained == set()
    assert replace(again, timing={}) == replace(results, timing={})
    run = Run.at(Store(str(tmp_path / "elsewhere")))
    assert run.data().root == str(tmp_path / "videos")
    assert "No examples could be shown" not in Path(write_report(run)).read_text()


def test_no_more_trainings_at_a_time_than_the_cluster_was_asked_to_hold(first, tmp_path):
    """Three methods have one to begin with, and one of these is made in the base."""
    shutil.copytree(first[0], tmp_path / "base")

    class Counting(InProcess):
        here, most, lock = 0, 0, threading.Lock()

        def train(self, stage, run, data, *, stop):
            with self.lock:
                self.here += 1
                self.most = max(self.most, self.here)
            super().train(stage, run, data, stop=stop)
            with self.lock:
                self.here -= 1

    recipe = replace(RECIPE, methods=("supervised", "fixmatch", "timebalance"),
                     rounds=replace(RECIPE.rounds, video_steps=3))  # fmt: skip
    executor = Counting(recipe)
    run_rounds(recipe, Store(str(tmp_path / "run")), executor, Store(str(tmp_path / "base")))
    assert executor.most == sum(some.count for some in workers(recipe) if some.kind == "training") == 2


def test_an_ablation_shares_what_it_does_not_change(first, tmp_path):
    folder, results, _ = first
    other = replace(RECIPE, align=replace(RECIPE.align, margin=0.2), methods=("supervised",))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("committed.json")}
    found, executor = whole(other, tmp_path / "run", folder)
    assert executor.trained == {"align/frame"}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("committed.json")} == before
    assert found.snapshots["supervised"].digest_f_E == results.snapshots["supervised"].digest_f_E
    assert found.snapshots["stage_2"].digest_f_A != results.snapshots["stage_2"].digest_f_A
    assert found.snapshots["supervised"].f_E == str(folder / "train/supervised/round-1/video/snapshot")


def test_frames_have_the_truth_of_the_moment_that_was_embedded(first):
    folder, results, _ = first
    story = run_rounds(RECIPE, Store(str(folder)), InProcess(RECIPE), train=False)
    spec, ids = RECIPE.data.rehearsal, [video_id for video_id, _ in rehearsal.video_ids(SMOKE.data.rehearsal, "test")]
    found = frame_truth(story.steps, ids)
    decoder = Decoder(Store(str(folder / "data")), 32, 32, ClipCache("", 0), Child(60))
    plan = plan_score(story.steps.manifest, story.steps.manifest.rows_of(ids), align_frames=12, video_frames=12,
                      clips=1, block_videos=4)  # fmt: skip
    for row, phase_T, progress_T in zip(plan.rows(0, 3), found.phase_NT, found.progress_NT, strict=False):
        truth = rehearsal.truth(spec, "test", row["video_id"])
        every_F = decoder.clips({**row}, [np.arange(row["num_frames"])])[0].astype(int)
        (shown_T,) = decoder.clips(row, [row["frames_0"]])
        nearest_T = [int(np.abs(every_F - frame).sum((1, 2, 3)).argmin()) for frame in shown_T.astype(int)]
        assert (truth.phase_F[nearest_T] == phase_T).all()
        assert np.abs(rehearsal.through_action(truth)[nearest_T] - progress_T).max() < 0.05
        assert (np.diff(progress_T) >= 0).all()
    assert frame_truth(story.steps, ["nobody"]) is None
    assert set(results.frames) == {"pretrained", "aligned"}
    assert results.frames["pretrained"] != results.frames["aligned"]
    assert {quality.videos for quality in results.frames.values()} == {20}
    assert all(0 < quality.phase_chance < quality.phase.high <= 1 for quality in results.frames.values())


@pytest.mark.parametrize("name", ["pretrained", "aligned"])
def test_frames_are_measured_with_the_truth_of_their_own_videos(first, name):
    folder, results, _ = first
    run, spec = Run.at(Store(str(folder))), SMOKE.data.rehearsal
    embedded, labelled = run.embeddings(name), set(run.labelled())
    halves = [embedded.among(labelled), embedded.among(set(embedded.video_ids) - labelled)]
    truths = []
    for split, half in zip(("train", "test"), halves, strict=True):
        every = [rehearsal.truth(spec, split, video_id) for video_id in half.video_ids]
        shown = [sampling.spread(len(truth.phase_F), RECIPE.frames.align) for truth in every]
        phases = [truth.phase_F[at_T] for truth, at_T in zip(every, shown, strict=True)]
        progress = [rehearsal.through_action(truth)[at_T] for truth, at_T in zip(every, shown, strict=True)]
        truths.append(FrameTruth(np.stack(phases), np.stack(progress)))
    label_N = run.manifest().truth(run.manifest().rows_of(halves[1].video_ids))
    assert results.frames[name] == frame_quality(halves[0].emb_NTD, halves[1].emb_NTD, label_N, tuple(truths))


def test_pseudo_labels_weigh_their_confidence_in_the_next_plan(first):
    folder, _, _ = first
    run = Run.at(Store(str(folder)))
    rows = {row["video_id"]: row for row in run.labels("finepseudo/round-1").to_pylist()}
    labelled = set(json.loads((folder / "split/split-seed0.json").read_text())["labelled"])
    planned = every_row(Store(str(folder)), "finepseudo/round-1/video")
    pseudo = [row for row in planned if row["video_id"] not in labelled]
    assert pseudo
    for row in pseudo:
        label = rows[row["video_id"]]
        assert (row["label"], row["weight"]) == (label["label"], label["confidence"])
        assert row["weight"] < 1
    assert {row["weight"] for row in planned if row["video_id"] in labelled} == {1.0}


def test_the_data_layer_alone_is_five_lines(first):
    """As docs/architecture.md has them."""
    folder, _, _ = first
    text = (Path(__file__).parents[2] / "docs/architecture.md").read_text()
    (code,) = [block for block in text.split("```") if "make_batch" in block]
    code = code.removeprefix("python\n").replace("runs/demo", str(folder))
    assert len(code.strip().splitlines()) == 5
    names = {kind.__name__: kind for kind in (Run, Store, plan_score, Decoder, ClipCache, BlockReader, make_batch)}
    exec(code, names)
    batch = names["batch"]
    assert batch.clip_BTHWC.shape == (8, 24, 48, 48, 3)
    assert batch.errors == {}
    assert float(batch.clip_BTHWC.float().std()) > 10


def test_without_training_a_missing_stage_is_an_error(first, tmp_path):
    folder, _, _ = first
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/train/supervised")
    with pytest.raises(ArtefactError, match=r"train/supervised/round-1/video is not trained yet; jobs/run.py trains"):
        run_rounds(RECIPE, Store(str(tmp_path / "run")), InProcess(RECIPE), train=False)


def test_videos_that_vanish_are_left_out_up_to_a_share(first, tmp_path, caplog):
    folder, _, _ = first
    shutil.copytree(folder, tmp_path / "run")
    run = Store(str(tmp_path / "run"))
    off = replace(RECIPE, scale=replace(RECIPE.scale, cache_gib=0))
    run.delete("results")
    clips = Run.at(run).manifest()
    gone = clips.clips["path"].take(clips.rows("test")).to_pylist()
    run.delete(f"data/{gone[0]}")
    found, _ = whole(off, tmp_path / "run")
    assert found.measured["finepseudo"].f_E.videos == 19
    (counted,) = [seconds for name, seconds in found.timing.items() if name.startswith("results/")]
    assert (counted["clips"], counted["rejected"]) == (50, 1)
    assert "left out" in caplog.text
    assert gone[0] in caplog.text
    (kept,) = [pass_left_out(run, folder) for _, folder in Run.at(run).passes() if folder.startswith("results/")]
    assert [clips.clips["path"][row].as_py() for row in kept] == gone[:1]
    assert "unreadable" in kept[next(iter(kept))]
    run.delete("results")
    intact = run.read(f"data/{gone[1]}")
    run.delete(f"data/{gone[1]}")
    with pytest.raises(DecodeError, match=r"evaluate: 2 of 50 videos .* more than data.max_rejected = 0.02"):
        whole(off, tmp_path / "run")
    run.write(f"data/{gone[1]}", intact)
    again, _ = whole(off, tmp_path / "run")
    assert again.measured["finepseudo"].f_E.videos == 19, "what is mended counts again"


def test_methods_that_label_need_something_to_label(tmp_path):
    recipe, store = find("rehearsal"), Store(str(tmp_path))
    clips = manifest(6, labels=[number % 2 for number in range(6)])
    all_labelled = replace(recipe, split=replace(recipe.split, label_fraction=1.0))
    with pytest.raises(ManifestError, match=r"no unlabelled video is left for finepseudo: 6 training videos"):
        ensure_split(all_labelled, store, store, clips)
    assert store.list() == []
    assert not len(ensure_split(replace(all_labelled, methods=("supervised",)), store, store, clips).unlabelled)


def test_side_by_side_waits_for_all_before_it_fails():
    ended = []

    def fails():
        raise TrainingError("first")

    with pytest.raises(TrainingError, match="first"):
        side_by_side([fails, lambda: ended.append(1)])
    with pytest.raises(TrainingError, match="first"):
        both(fails, lambda: ended.append(2))
    assert ended == [1, 2]
    assert side_by_side([lambda: 1, lambda: 2]) == [1, 2]
    assert both(lambda: 1, lambda: "2") == (1, "2")


def test_a_collection_with_a_few_labels_and_no_test_split(tmp_path):
    """What a user has: some named clips, parts of files among them, a folder of others, and nothing to measure on."""
    data, spec = Store(str(tmp_path / "data")), SMOKE.data.rehearsal
    generate(spec, data, InProcess(SMOKE))
    videos = json.loads(data.read("train.json"))
    labelled = [row for label in range(5) for row in [row for row in videos if row["label"] == label][:2]]
    lines = ["file,label,start_frame,end_frame"]
    lines += [f"videos/{row['vid_name']}.mp4,{spec.words[row['label']]},2,{row['end_frame'] - 1}" for row in labelled]
    data.write("mine.csv", "\n".join(lines).encode())
    recipe = replace(
        SMOKE,
        methods=("finepseudo",),
        data=Data(root=data.root, train="mine.csv", test="", vocab="", unlabelled="videos"),
        split=Split(label_fraction=1.0),
        gitdl=replace(SMOKE.gitdl, frame_steps=4, video_steps=0),
    )
    store = Store(str(tmp_path / "run"))
    found = ensure_results(run_rounds(recipe, store, InProcess(recipe)))
    assert sorted(found.classes) == sorted(spec.words)
    assert (found.split.labelled, found.split.unlabelled) == (10, 50)
    assert (found.measured, found.gains, found.pairs.scores, found.frames) == ({}, {}, {}, {})
    (one,) = found.rounds["finepseudo"]
    assert (one.quality.unlabelled, one.quality.known, one.quality.precision_all["p"]) == (50, 0, None)
    rows = {row["video_id"]: row for row in every_row(store, "align/frame")}
    part = rows[f"videos~{labelled[0]['vid_name']}"]
    assert (part["start"], part["file_frames"] - part["num_frames"]) == (2, 3)
    page = store.read(write_report(Run.at(store)).removeprefix(f"{store.uri()}/")).decode()
    assert "the share of right ones is not known (accuracies estimated without their truth: p_A" in page
    assert "accepted, truth not known" in page
    assert "not known</b>" in page
    assert "No method was evaluated." in page
    printed = summary(found)
    assert "pair test: not possible, the held-out videos with a label are missing" in printed
    assert "finepseudo's last round gave 50 of 50 unlabelled videos a label; the share of right ones is not" in printed


class Dies(InProcess):
    """Is killed, as it were, after two groups."""

    def spread(self, task, groups, name):
        super().spread(task, groups[:2], name)
        raise KeyboardInterrupt


def test_a_killed_preparation_goes_on_behind_what_it_has_probed(first, tmp_path, monkeypatch):
    folder, _, _ = first
    recipe, store = replace(SMOKE, data=replace(SMOKE.data, root=str(folder / "data"))), Store(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        ensure_manifest(recipe, store, Dies(recipe))
    assert len(store.list("probes")) == 2
    probed, probe = [], Child.probe
    monkeypatch.setattr(Child, "probe", lambda self, uri, **how: probed.append(uri) or probe(self, uri, **how))
    made = ensure_manifest(recipe, store, InProcess(recipe))
    assert len(probed) == 60 - 2 * 28
    assert store.list("probes") == []
    assert made.fingerprint == Run.at(Store(str(folder))).manifest().fingerprint


def test_files_that_are_mended_after_a_failure_are_probed_again(first, tmp_path):
    folder, _, _ = first
    data, store = Store(str(tmp_path / "data")), Store(str(tmp_path / "run"))
    recipe = replace(SMOKE, data=Data(root=data.root, train="t.csv", test="", vocab=""))
    names = [path.name for path in sorted((folder / "data/videos").iterdir())[:2]]
    data.write("t.csv", "\n".join(["path,label", f"{names[0]},x", f"{names[1]},y"]).encode())
    with pytest.raises(ManifestError, match="no usable video in split 'train'"):
        ensure_manifest(recipe, store, InProcess(recipe))
    for name in names:
        data.write(name, (folder / "data/videos" / name).read_bytes())
    assert ensure_manifest(recipe, store, InProcess(recipe)).summary()["usable"] == {"train": 2}


def test_a_store_that_refuses_ends_the_preparation_and_rejects_nothing(first, tmp_path, monkeypatch):
    folder, _, _ = first
    recipe, store = replace(SMOKE, data=replace(SMOKE.data, root=str(folder / "data"))), Store(str(tmp_path))
    refused = StorageError("x.mp4: the store refuses")
    with monkeypatch.context() as patched:
        patched.setattr(Child, "probe", lambda self, uri, **how: (_ for _ in ()).throw(refused))
        with pytest.raises(StorageError, match="the store refuses"):
            ensure_manifest(recipe, store, InProcess(recipe))
    assert store.list("manifest") == []
    assert ensure_manifest(recipe, store, InProcess(recipe)).summary()["rejected"] == 0
