"""Features of frames, stored once, in the place of pixels: what a clip's rows are, and a whole run on them."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import training_helpers as helpers
from clips import manifest
from test_driver import SMOKE, Watched
from training_helpers import CPU, Outcome, case, largest_difference, launch, losses, recipe, snapshot

from finepseudo import rehearsal
from finepseudo.classifier import Classifier
from finepseudo.data import features, sampling
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder
from finepseudo.data.manifest import FOLDER, Manifest
from finepseudo.data.plan import Plan, plan_score
from finepseudo.data.stream import BlockReader
from finepseudo.driver.evaluate import ensure_results, frame_truth
from finepseudo.driver.executor import InProcess
from finepseudo.driver.export import export_classifier
from finepseudo.driver.predict import predict_videos
from finepseudo.driver.rounds import run_rounds
from finepseudo.errors import ArtefactError
from finepseudo.recipe import Models
from finepseudo.recipes import find
from finepseudo.report.page import write_report
from finepseudo.run import Run
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.loop import run_stage
from finepseudo.train.predict import Pass, Predictor, pooled

C, F, BLOCK = 12, 20, 5
MODELS = Models(frozen="tiny_vtn", frame="feature_vtn", video="feature_transformer")


def table(number, count, width=C):
    """Of some clips: feature c of stored frame f of clip n is a number that nothing else is."""
    values = np.arange(count * F * width, dtype=np.float64).reshape(count, F, width)
    return (1000 * number + values).astype(np.float16)


def stored(root, videos, row_N, rejected=None, width=C, make=table):
    """Tables of features of some clips, and the manifest of these, committed in a folder."""
    run, digests = Store(str(root)), []
    for number, first in enumerate(range(0, len(row_N), BLOCK)):
        feat_NFC = make(number, min(BLOCK, len(row_N) - first), width)
        digests.append(features.write(run, "features/x", number, feat_NFC).hex())
    clips = features.stored_clips(videos, row_N, F, BLOCK, digests, rejected or {})
    parts = {"clips.parquet": artefacts.table_bytes(clips), "labels.parquet": b"", "classes.json": b"[]"}
    artefacts.commit(run, "features/x/manifest", parts, {})
    return run, replace(videos, clips=clips, folder="features/x/manifest")


def taken(run, row, *wanted):
    return features.taken(run.child("features/x"), row, [np.array(index_T) for index_T in wanted])


def rows_of(made, row_N, frames=4):
    plan = plan_score(made, np.asarray(row_N), align_frames=frames, video_frames=0, clips=1, block_videos=4)
    return plan.rows(0, len(plan))


def test_a_clip_is_its_rows_of_its_table(tmp_path):
    row_N = np.array([0, 2, 3, 4, 5, 7, 8])
    run, made = stored(tmp_path, manifest(9), row_N)
    rows = rows_of(made, row_N)
    for place, row in enumerate(rows):
        number, within = divmod(place, BLOCK)
        feat_FC = table(number, min(BLOCK, len(row_N) - number * BLOCK))[within]
        assert (row["video"], row["num_frames"], row["path"]) == (row_N[place], F, features.table_name(number))
        assert list(row["frames_0"]) == list(sampling.spread(F, 4))
        first_TC, second_TC = taken(run, row, [0, 7, 7], [F - 1])
        np.testing.assert_array_equal(first_TC, feat_FC[[0, 7, 7]])
        np.testing.assert_array_equal(second_TC, feat_FC[[F - 1]])
        assert first_TC.dtype == np.float16


def test_what_has_no_features_stays_what_it_was(tmp_path):
    videos = manifest(6, status=["rejected", *["ok"] * 5], reason=["gone: x", *[""] * 5])
    _, made = stored(tmp_path, videos, np.arange(1, 6), {3: "cut short"})
    before, after = videos.clips.to_pylist(), made.clips.to_pylist()
    assert after[0] == before[0]
    assert (after[3]["status"], after[3]["reason"]) == ("rejected", "cut short")
    assert list(made.rows("train")) == [1, 2, 4, 5]
    assert made.clips.schema == videos.clips.schema
    assert [row["video_id"] for row in after] == [row["video_id"] for row in before]
    assert made.fingerprint != videos.fingerprint


def test_a_table_that_is_damaged_or_gone_is_named(tmp_path):
    run, made = stored(tmp_path, manifest(7), np.arange(7))
    first, *_, last = rows_of(made, range(7))
    path = tmp_path / "features/x" / first["path"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"features/x/0000000.npy is damaged: expected sha256 .*made again"):
        taken(run, first, [0])
    (tmp_path / "features/x" / last["path"]).unlink()
    with pytest.raises(ArtefactError, match=r"0000001.npy: no such file, though it is committed"):
        taken(run, last, [0])


def test_a_table_of_an_object_store_is_copied_to_the_node_once(tmp_path):
    _, made = stored(tmp_path, manifest(7), np.arange(7))
    far = Store(f"memory://{tmp_path.name}")
    (row, *_) = rows_of(made, range(7))
    data = (tmp_path / "features/x" / row["path"]).read_bytes()
    far.write(row["path"], data)
    (found_TC,) = features.taken(far, row, [np.array([3])])
    far.delete(row["path"])
    features._mapped.cache_clear()
    np.testing.assert_array_equal(features.taken(far, row, [np.array([3])])[0], found_TC)
    far.write("other.npy", data[:-2])
    with pytest.raises(ArtefactError, match=r"memory://.*other.npy is damaged"):
        features.taken(far, {**row, "path": "other.npy", "sha256": hashlib.sha256(b"x").hexdigest()}, [np.array([3])])


def test_the_mean_of_stored_features_is_what_a_probe_sees(tmp_path):
    how = replace(recipe(), models=MODELS)
    what = Pass(pooled={"probe": ""}, clips=2)
    feat_BTC = np.random.default_rng(0).normal(size=(6, 4, 128)).astype(np.float16)
    found = Predictor(how, 3, what, CPU)(feat_BTC, feat_BTC)
    expected = feat_BTC.astype(np.float32).mean(1).reshape(3, 2, 128).mean(1)
    np.testing.assert_allclose(pooled(found, "probe"), expected, atol=1e-6)


# --- the laws of a training hold for them


def by_class(number, count, width):
    rng = np.random.default_rng(number)
    phase_NF1 = np.linspace(0, 3, F)[:, None] * (1 + np.arange(count) % 3)[:, None, None]
    return (np.sin(phase_NF1 + np.arange(width)) + rng.normal(0, 0.1, (count, F, width))).astype(np.float16)


def training(root, kind, name):
    """A training on stored features, whose plan is committed beside their manifest."""
    _, made = stored(root, helpers.clips(), np.arange(12), width=128, make=by_class)
    return case(root, kind, name, how=replace(recipe(), models=MODELS), made=made)


def train_stored(session, cases):
    """Run trainings in this process, from the real tables."""
    outcomes = []
    for one in cases:
        k, plan = one.recipe.optimiser.blocks_per_step, Plan.load(one.store, one.stage.plan)
        reader = BlockReader.of(one.recipe, one.store.child("features/x"), plan)

        def stream(start, stop, reader=reader, k=k):
            for block in range(start * k, stop * k):
                if block % session.world == session.rank:
                    yield reader.read([block])

        outcome = Outcome()
        try:
            run_stage(one.stage, one.recipe.scale, one.store, session, stream, stop=one.stop)
        except Exception as error:  # noqa: BLE001  what it is, the test says
            outcome.text = repr(error)
        outcomes.append(outcome)
    return outcomes


@pytest.mark.parametrize("kinds", [("align",), pytest.param(("gitdl_frame", "classify"), marks=pytest.mark.long)])
def test_resume_and_world_size_change_nothing(kinds, tmp_path):
    count = len(kinds)
    wholes, halves, wides = ([training(tmp_path, kind, f"{kind}-{n}") for kind in kinds] for n in range(3))
    alone = [*wholes, *(replace(half, stop=3) for half in halves), *halves]
    (of_one,) = launch(1, tmp_path, train_stored, alone)
    assert [outcome.text for outcome in of_one] == [""] * 3 * count
    both = launch(2, tmp_path, train_stored, wides)
    assert [[outcome.text for outcome in of_rank] for of_rank in both] == [[""] * count] * 2
    for whole, half, wide in zip(wholes, halves, wides, strict=True):
        assert largest_difference(snapshot(half), snapshot(whole)) == 0
        assert (losses(whole) - losses(wide)).abs().max() < 1e-4
        assert largest_difference(snapshot(wide), snapshot(whole)) < 5e-3


# --- a whole run

RECIPE = replace(
    SMOKE,
    name="frozen",
    methods=("frozen_probe", "finepseudo"),
    models=MODELS,
    frames=replace(SMOKE.frames, frozen=F),
    gitdl=replace(SMOKE.gitdl, frame_steps=2, video_steps=0),
    align=replace(SMOKE.align, steps=2),
    supervise=replace(SMOKE.supervise, steps=2),
    rounds=replace(SMOKE.rounds, video_steps=2),
)
PARTS = 3  # of 25 clips of 20 frames


class Dies(InProcess):
    """Is killed, as it were, when it has made a part of the features."""

    def score(self, what, plan, blocks, num_classes, run, data, out):
        yield next(iter(super().score(what, plan, blocks[:1], num_classes, run, data, out)))
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was killed among the features, and whose videos were gone from then on."""
    folder = tmp_path_factory.mktemp("frozen") / "run"
    store, executor = Store(str(folder)), Watched(RECIPE)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(RECIPE, store, Dies(RECIPE))
    (kept,) = folder.glob("features/*/0000000.npy")
    before = kept.stat().st_mtime_ns
    with pytest.raises(ArtefactError, match="is not trained yet"):  # the features, and nothing else
        run_rounds(RECIPE, store, executor, train=False)
    assert kept.stat().st_mtime_ns == before
    shutil.move(folder / "data/videos", folder / "elsewhere")
    results = ensure_results(run_rounds(RECIPE, store, executor))
    return folder, results, executor


def test_no_video_is_opened_again(whole):
    folder, results, executor = whole
    assert executor.passes == {
        "features": 1, "embed/pretrained": 1, "embed/aligned": 1, "referees": 1, "label/round-1": 1, "evaluate": 1,
        "frozen_probe": 1,
    }  # fmt: skip
    assert len(list(folder.glob("features/*/*.npy"))) == PARTS
    assert set(results.measured) == {"frozen_probe", "stage_2", "finepseudo"}
    assert results.measured["finepseudo"].f_E.videos == results.measured["frozen_probe"].f_E.videos == 20
    assert results.measured["frozen_probe"].fused is None
    assert "f_E, over frozen_probe" in results.gains
    assert "fused, over frozen_probe" not in results.gains


def test_other_videos_go_through_the_frozen_backbone_too(whole, tmp_path):
    folder, results, _ = whole
    table = pq.read_table(folder / results.predictions).to_pydict()
    export_classifier(Classifier.at(Store(str(folder))), Store(str(tmp_path / "out")), programs=False)
    classifier = Classifier.at(Store(str(tmp_path / "out")))
    videos = [str(folder / f"elsewhere/{video_id}.mp4") for video_id in table["video_id"]]
    rows = predict_videos(classifier, videos, Store(str(tmp_path / "work")), InProcess(classifier.recipe))
    found = {Path(row["video"]).stem: row["top"][0]["label"] for row in rows}
    expected = [results.classes[label] for label in table[results.prediction]]
    assert found == dict(zip(table["video_id"], expected, strict=True))


def test_the_page_shows_frames_beside_what_was_found_from_features(whole):
    folder, *_ = whole
    run = Run.at(Store(str(folder)))
    assert "<img class=" not in Path(write_report(run)).read_text()
    shutil.move(folder / "elsewhere", folder / "data/videos")
    page = Path(write_report(run)).read_text()
    shutil.move(folder / "data/videos", folder / "elsewhere")
    assert page.count("<img class=") >= 4
    assert ">frozen_probe<" in page


def test_features_are_those_of_the_backbone_on_the_frames_that_stand_for_the_action(whole):
    folder, *_ = whole
    run = Run.at(Store(str(folder)))
    seen, where = run.seen()
    videos, initial = run.manifest(), run.store.uri("train/initial/frozen/snapshot")
    (row,), (video,) = (rows_of(one, [23], F) for one in (seen, videos))
    shutil.move(folder / "elsewhere", folder / "data/videos")
    decoder = Decoder(run.data(), 32, 32, ClipCache("", 0), Child(60))
    (clip_THWC,) = decoder.clips(video, [video["frames_0"]])
    shutil.move(folder / "data/videos", folder / "elsewhere")
    predictor = Predictor(RECIPE, 5, Pass(frozen=initial), CPU)
    feat_BTC = predictor._frame_features(predictor.frozen, clip_THWC[None])
    (found_TC,) = features.taken(where, row, [np.arange(F)])
    np.testing.assert_allclose(found_TC.astype(float), feat_BTC[0].numpy().astype(float), atol=2e-3)
    assert found_TC.std() > 0.01


def test_frames_have_the_truth_of_the_moment_whose_features_were_embedded(whole):
    folder, *_ = whole
    story = run_rounds(RECIPE, Store(str(folder)), InProcess(RECIPE), train=False)
    spec, ids = RECIPE.data.rehearsal, [video_id for video_id, _ in rehearsal.video_ids(SMOKE.data.rehearsal, "test")]
    found = frame_truth(story.steps, ids)
    for video_id, phase_T in zip(ids, found.phase_NT, strict=True):
        truth = rehearsal.truth(spec, "test", video_id)
        at_T = sampling.spread(len(truth.phase_F), F)[sampling.spread(F, RECIPE.frames.align)]
        assert (truth.phase_F[at_T] == phase_T).all()


def test_another_run_of_the_same_data_uses_the_features(whole, tmp_path):
    folder, *_ = whole
    other = replace(RECIPE, split=replace(RECIPE.split, seed=3), methods=("frozen_probe",))
    executor = Watched(other)
    story = run_rounds(other, Store(str(tmp_path / "run")), executor, Store(str(folder)))
    found = ensure_results(story)
    assert "features" not in executor.passes
    assert executor.trained == {"align/frame", "supervise/video"}
    assert not list((tmp_path / "run").glob("features/*/*.npy"))
    assert Manifest.load(Store(str(tmp_path / "run")), story.steps.manifest.folder).num_classes == 5
    assert Run.at(Store(str(tmp_path / "run")), Store(str(folder))).seen()[1] == story.steps.data
    assert set(found.measured) == {"frozen_probe", "stage_2"}


def test_the_manifest_of_videos_stays_beside_that_of_features(whole):
    folder, *_ = whole
    run = Run.at(Store(str(folder)))
    seen, _ = run.seen()
    assert run.manifest().folder == FOLDER
    assert list(seen.label.to_pylist()) == list(run.manifest().label.to_pylist())
    assert find("rehearsal_frozen").models == MODELS
