"""Inference with committed snapshots equals the trained module in eval mode; passes come in parts; named weights."""

import functools
import hashlib
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import torch
from training_helpers import CPU, K, batch_of, case, largest_difference, launch, picture, plain_loop, recipe, train
from training_helpers import clips as manifest

from finepseudo.align.gallery import Gallery
from finepseudo.align.score import class_scores
from finepseudo.data.plan import plan_score
from finepseudo.data.transforms import augment, centre
from finepseudo.errors import ArtefactError, WeightsError
from finepseudo.models import public, weights
from finepseudo.models.table import Preprocessing
from finepseudo.recipe import Label, Models
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import plain
from finepseudo.storage.store import Store, located
from finepseudo.train import predict
from finepseudo.train.initial import ensure_initial, preprocessing_of, random_encoder
from finepseudo.train.predict import (
    Pass,
    Predictor,
    Scores,
    embeddings,
    logits,
    nearest,
    part_name,
    read_part,
    sbar,
    similarity,
)
from finepseudo.train.stage import build_objective

VIEWS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Snapshots of a few steps, and the modules that they were taken of, in eval mode."""
    root = tmp_path_factory.mktemp("predict")
    modules, uris = {}, {}
    for kind in ("align", "classify"):
        one = case(root, kind, kind)
        found = plain_loop(one)
        data = weights.to_bytes(found.state, {"lineage": '{"kind": "' + kind + '"}'})
        artefacts.commit(one.store, f"train/{kind}/snapshot", {"weights.safetensors": data}, {})
        modules[kind], uris[kind] = found.objective.eval(), one.store.uri(f"train/{kind}/snapshot")
    return modules, uris


@pytest.fixture(scope="module")
def clips():
    """Views of some videos, one after the other, as the scoring stream gives them."""
    plan = plan_score(manifest(4), np.arange(4), align_frames=6, video_frames=6, clips=VIEWS, block_videos=4)
    rows = plan.rows(0, len(plan))
    return [
        np.stack([np.stack([picture(row["video"], frame) for frame in row[f"frames_{clip}"]]) for row in rows])
        for clip in (0, 1)
    ]


def predictor(trained, how=None, **galleries):
    _, uris = trained
    what = Pass(frame={"f_A": uris["align"]}, video={"f_E": uris["classify"]}, galleries=galleries, clips=VIEWS)
    return Predictor(how or recipe(), K, what, CPU)


def seen(trained, clips):
    """Embeddings and logits of all views, from the trained modules."""
    modules, _ = trained
    how = recipe()
    with torch.inference_mode():
        normal = [centre(torch.from_numpy(clip), how.augment, how.frames.crop, Preprocessing()) for clip in clips]
        return modules["align"].encoder(normal[0]), modules["classify"].encoder(normal[1])


def test_snapshots_answer_as_the_trained_modules_do(trained, clips):
    emb_BTD, logits_BK = seen(trained, clips)
    found = predictor(trained)(*clips)
    assert found.keys() == {"embeddings/f_A", "logits/f_E"}
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found["embeddings/f_A"], emb_BTD[::VIEWS], atol=1e-6)
    np.testing.assert_allclose(found["logits/f_E"], logits_BK.view(-1, VIEWS, K).mean(1), rtol=0, atol=2e-6)
    assert not np.allclose(found["logits/f_E"], logits_BK[::VIEWS], rtol=0, atol=2e-5)


def test_temporal_similarity_is_of_the_moments_of_all_views(trained, clips):
    modules, uris = trained
    found = Predictor(recipe(), K, Pass(similar={"f_D": uris["classify"]}, clips=VIEWS), CPU)(*clips)
    assert found.keys() == {"similarity/f_D"}
    how = recipe()
    with torch.inference_mode():
        clip = centre(torch.from_numpy(clips[1]), how.augment, how.frames.crop, Preprocessing())
        feat_BTF = modules["classify"].encoder.time_features(clip)
    for number, value in enumerate(similarity(found, "f_D").tolist()):
        z_MF = torch.nn.functional.normalize(feat_BTF[number * VIEWS : (number + 1) * VIEWS].flatten(0, 1), dim=1)
        cosine_MM, M = z_MF @ z_MF.T, VIEWS * 6
        assert value == pytest.approx(float(cosine_MM.sum() - cosine_MM.trace()) / (M * (M - 1)), abs=1e-5)


@pytest.mark.parametrize("mean", ["log_odds", "score"])
def test_class_means_are_those_of_the_gallery(trained, clips, mean):
    emb_BTD, _ = seen(trained, clips)
    gallery = Gallery(emb_BTD[1::VIEWS].clone(), torch.tensor([0, 1, 1, 3]), ("a", "b", "c", "d"), K)
    how = replace(recipe(), label=Label(mean=mean))
    found = predictor(trained, how, f_A=gallery)(*clips)
    assert found.keys() == {"sbar/f_A", "logits/f_E"}
    head = trained[0]["align"].score
    sbar_BK = class_scores(emb_BTD, gallery, head, gamma=how.align.gamma, mean=mean)
    expected_NK = sbar_BK.view(-1, VIEWS, K).mean(1)
    np.testing.assert_allclose(found["sbar/f_A"], expected_NK.numpy(), atol=1e-5)
    assert np.isneginf(found["sbar/f_A"][:, [2, 4]]).all()


def test_nearest_members_are_those_of_the_first_view(trained, clips):
    emb_BTD, _ = seen(trained, clips)
    gallery = Gallery(emb_BTD[::VIEWS].clone(), torch.tensor([3, 1, 0, 1]), ("a", "b", "c", "d"), K)
    what = Pass(frame={"f_A": trained[1]["align"]}, galleries={"f_A": gallery}, clips=VIEWS, nearest=2)
    found = Predictor(recipe(), K, what, CPU)(clips[0], None)
    member_NM, near_S_NM = nearest(found, "f_A")
    assert member_NM[:, 0].tolist() == [0, 1, 2, 3], "each is nearest to itself"
    assert member_NM.dtype == np.int32
    assert member_NM.shape == near_S_NM.shape == (4, 2)


def test_views_of_one_video_do_not_reach_another(trained, clips):
    every = predictor(trained)(*clips)
    one = predictor(trained)(*(clip[VIEWS : 2 * VIEWS] for clip in clips))
    for name, value in every.items():
        np.testing.assert_allclose(one[name], value[1:2], atol=1e-5)


def part(trained, clips, run, number, places, bad=()):
    """The results of some of the videos of `clips`, committed; views of `bad` ones could not be decoded."""
    row_B = np.concatenate([np.arange(place * VIEWS, (place + 1) * VIEWS) for place in places])
    columns = {
        "clip_0": clips[0][row_B], "clip_1": clips[1][row_B], "decode_s": np.full(len(row_B), 0.5),
        "error": np.array(["cut short" if row in bad else "" for row in row_B], dtype=object),
    }  # fmt: skip
    assert predictor(trained).write(columns, run, "scores/x", number) == len(places)


def test_scores_are_in_the_order_of_the_plan_whatever_order_the_parts_are_written_in(trained, clips, tmp_path):
    """Two parts of two videos, the second first; one view of one video could not be decoded."""
    run = Store(str(tmp_path))
    part(trained, clips, run, 1, [2, 3])
    part(trained, clips, run, 0, [0, 1], bad=[VIEWS + 1])
    assert run.list("scores/x") == [part_name(0), part_name(1)]
    assert read_part(run, "scores/x", 0)[1] == {1: "cut short"}
    seconds, errors = predict.read_notes(run, "scores/x", 0)
    assert errors == {1: "cut short"}
    assert seconds["decode"] == pytest.approx(0.5 * 2 * VIEWS)
    assert seconds["predict"] > 0
    scores = Scores(run, "scores/x", 2, 2, np.array([7, 1, 5, 3]), {}, {1: "cut short"})
    whole, found = predictor(trained)(*clips), scores.columns()
    assert found["clip"].tolist() == [7, 5, 3]
    np.testing.assert_allclose(logits(found, "f_E"), whole["logits/f_E"][[0, 2, 3]], atol=1e-5)
    np.testing.assert_allclose(embeddings(found, "f_A"), whole["embeddings/f_A"][[0, 2, 3]], atol=1e-5)
    assert [batch["clip"].tolist() for batch in scores.batches(1)] == [[7], [5, 3]]
    assert [batch["clip"].tolist() for batch in scores.batches(2)] == [[7, 5, 3]]


def test_a_last_part_of_which_nothing_decodes_is_no_end_of_the_others(trained, clips, tmp_path):
    run = Store(str(tmp_path))
    part(trained, clips, run, 0, [0, 1])
    part(trained, clips, run, 1, [2], bad=range(2 * VIEWS, 3 * VIEWS))
    scores = Scores(run, "scores/x", 2, 2, np.arange(3), {}, {2: "cut short"})
    assert scores.columns()["clip"].tolist() == [0, 1]
    assert [len(batch["clip"]) for batch in scores.batches(2)] == [2, 0]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Nine videos in parts of three, of which the fifth did not decode; logits are numbers of their clips."""
    run, clip_N = Store(str(tmp_path_factory.mktemp("numbered"))), np.arange(100, 109)
    for number, part_N in enumerate(clip_N.reshape(3, 3)):
        body = {"logits/f_E": np.float32(part_N)[:, None], "sbar/f_A": -np.float32(part_N)[:, None]}
        notes = json.dumps({"seconds": {}, "errors": {"1": "cut short"} if number == 1 else {}})
        run.write(f"scores/x/{part_name(number)}", safetensors.numpy.save(body, {"notes": notes}))
    return Scores(run, "scores/x", 3, 3, clip_N, {}, {104: "cut short"})


@pytest.mark.parametrize(
    ("asked", "expected", "parts"),
    [([108, 101, 104, 7], [101, 108], [0, 1, 2]), ([107, 101], [101, 107], [0, 2]), ([105], [105], [1]), ([], [], [0])],
)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_scores_of_some_clips_are_in_the_order_of_the_plan(numbered, asked, expected, parts, size, monkeypatch):
    read = []
    monkeypatch.setattr(
        predict, "read_part", lambda run, folder, part: read.append(part) or read_part(run, folder, part)
    )
    monkeypatch.setattr(Scores, "batches", functools.partialmethod(Scores.batches, size))
    found = numbered.of(np.array(asked))
    assert sorted(read) == parts, "only their parts"
    assert found["clip"].tolist() == expected
    np.testing.assert_array_equal(logits(found, "f_E")[:, 0], found["clip"])
    np.testing.assert_array_equal(sbar(found, "f_A")[:, 0], -found["clip"])
    assert numbered.columns()["clip"].tolist() == [100, 101, 102, 103, 105, 106, 107, 108]


def test_parts_are_read_side_by_side_a_bounded_number_ahead_and_come_in_order():
    begun, together = [], threading.Barrier(2, timeout=20)

    def slow(number):
        begun.append(number)
        if number < 2:
            together.wait()  # neither ends without the other
        time.sleep(0.02 * (number % 2 == 0))
        return -number

    found = predict.read_ahead(slow, range(100))
    assert next(found) == (0, 0)
    assert len(begun) <= predict.READ_AHEAD
    assert list(found) == [(number, -number) for number in range(1, 100)]


@pytest.mark.parametrize(("enough", "requests"), [(4096, 1), (60, 2)])
def test_notes_are_read_without_the_columns(numbered, monkeypatch, enough, requests):
    monkeypatch.setattr(predict, "NOTES_BYTES", enough)
    read, asked = Store.read_start, []
    monkeypatch.setattr(Store, "read", lambda *_: pytest.fail("read whole"))
    monkeypatch.setattr(Store, "read_start", lambda *what: asked.append(what) or read(*what))
    assert predict.read_notes(numbered.run, numbered.folder, 1) == ({}, {1: "cut short"})
    assert len(asked) == requests


def test_score_head_of_a_snapshot(trained):
    modules, _ = trained
    _, head = predictor(trained).frame["f_A"]
    assert largest_difference(head.state_dict(), modules["align"].score.state_dict()) == 0


def test_snapshot_of_another_encoder_is_refused(trained):
    _, uris = trained
    with pytest.raises(ArtefactError, match="weights do not fit"):
        Predictor(recipe(), K, Pass(frame={"f_A": uris["classify"]}), CPU)
    with pytest.raises(ArtefactError, match="of another shape"):
        Predictor(recipe(), K + 1, Pass(video={"f_E": uris["classify"]}), CPU)


@pytest.fixture
def named(tmp_path):
    """A recipe that names a file of weights, which are not those of its seed."""
    source = random_encoder(recipe().models.encoder("video"), num_classes=K, size=recipe().frames.crop, seed=77)
    data = weights.to_bytes(source, {})
    store = Store(str(tmp_path / "elsewhere"))
    store.write("public.safetensors", data)
    models = Models(video_weights=store.uri("public.safetensors"), video_sha256=hashlib.sha256(data).hexdigest())
    return replace(recipe(), models=models), source


def test_named_weights_are_what_a_stage_starts_from(named, tmp_path):
    how, source = named
    run = Store(str(tmp_path / "run"))
    uri, digest = ensure_initial(how, "video", K, run)
    assert ensure_initial(how, "video", K, run) == (uri, digest)
    one = case(tmp_path / "run", "classify", "named", init=uri, init_digest=digest)
    start = build_objective(one.stage)
    assert largest_difference(start.encoder.state_dict(), source.state_dict()) == 0
    pretrain = case(tmp_path / "run", "gitdl_video", "pretrain", init=uri, init_digest=digest)
    assert largest_difference(build_objective(pretrain.stage).encoder.state_dict(), source.state_dict()) == 0


def test_other_digest_and_other_shape_are_refused(named, tmp_path):
    how, _ = named
    run = Store(str(tmp_path / "run"))
    wrong = replace(how, models=replace(how.models, video_sha256="0" * 64))
    with pytest.raises(WeightsError, match=r"^\S+/public\.safetensors: weights have sha256 \w+, expected 0000"):
        ensure_initial(wrong, "video", K, run)
    gone = replace(how, models=replace(how.models, video_weights=str(tmp_path / "gone")))
    with pytest.raises(WeightsError, match=r"^\S+/gone: no such file$"):
        ensure_initial(gone, "video", K, run)
    same = {"frame_weights": how.models.video_weights, "frame_sha256": how.models.video_sha256}
    another = replace(how, models=replace(how.models, **same))
    with pytest.raises(WeightsError, match=r"public\.safetensors: weights do not fit TinyVTN: "):
        ensure_initial(another, "frame", K, run)
    assert run.list("train/initial/video/snapshot") == []
    ensure_initial(how, "video", K, run)
    with pytest.raises(ArtefactError, match="was made from something else"):
        ensure_initial(wrong, "video", K, run)


def test_a_backbone_that_is_never_trained_needs_weights(tmp_path):
    how = replace(recipe(), models=Models(video="aim_vit_b16"))
    with pytest.raises(
        WeightsError, match=r"^models.video_weights: the backbone of aim_vit_b16 is never trained; name"
    ):
        ensure_initial(how, "video", K, Store(str(tmp_path)))


def test_another_number_of_classes_starts_with_a_classifier_of_its_own(named, tmp_path):
    how, source = named
    uri, _ = ensure_initial(how, "video", K + 1, Store(str(tmp_path / "run")))
    state = weights.read_state(artefacts.read_part(*located(uri), "weights.safetensors"))
    assert state["encoder.fc.weight"].shape[0] == K + 1
    own = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(state[f"encoder.{key}"], value) for key, value in own.items())


ODD = Preprocessing(mean=(0.6, 0.5, 0.4), std=(0.5, 0.25, 0.125))


@pytest.fixture
def odd(named):
    """The same weights, trained with pixels of other means and deviations."""
    how, source = named
    about = {"encoder": "tiny_r2plus1d", "preprocessing": plain(ODD)}
    data = weights.to_bytes(source, {public.KEY: json.dumps(about)})
    store, name = located(how.models.video_weights)
    store.write(name, data)
    sha256 = hashlib.sha256(data).hexdigest()
    return replace(how, models=replace(how.models, video_sha256=sha256)), source


def test_the_preprocessing_of_named_weights_goes_from_snapshot_to_snapshot(odd, clips, tmp_path):
    how, source = odd
    initial, digest = ensure_initial(how, "video", K, Store(str(tmp_path / "run")))
    one = case(tmp_path / "run", "classify", "x", how=how, init=initial, init_digest=digest)
    objective = build_objective(one.stage)
    batch = batch_of(one.plan, 0)
    assert objective.encoder.preprocessing == ODD
    expected = augment(batch.clip_BTHWC, batch.seed_B, how.augment, how.frames.crop, ODD)
    assert torch.equal(objective.clips(batch), expected)
    outcomes = launch(1, tmp_path, train, [one])
    assert outcomes[0][0].error == ""
    snapshot = one.store.uri("train/x/snapshot")
    assert preprocessing_of(snapshot, one.stage.encoder) == ODD
    for uri in (initial, snapshot):
        assert Predictor(how, K, Pass(video={"f_E": uri}), CPU).video["f_E"].preprocessing == ODD
    with torch.inference_mode():
        found = Predictor(how, K, Pass(video={"f_E": initial}, clips=VIEWS), CPU)(clips[0], clips[1])
        clip_BTCHW = centre(torch.from_numpy(clips[1]), how.augment, how.frames.crop, ODD)
        logits_NK = source.eval()(clip_BTCHW).unflatten(0, (-1, VIEWS)).mean(1)
    torch.testing.assert_close(logits(found, "f_E"), logits_NK)


def test_without_another_preprocessing_a_snapshot_has_its_weights_alone(named, tmp_path):
    how, _ = named
    uri, _ = ensure_initial(how, "video", K, Store(str(tmp_path)))
    assert list(artefacts.required(*located(uri))["parts"]) == ["weights.safetensors"]
    assert preprocessing_of(uri, how.models.encoder("video")) == Preprocessing()


def test_random_weights_follow_the_seed(tmp_path):
    states = []
    for seed, name in ((3, "a"), (3, "b"), (4, "c")):
        uri, _ = ensure_initial(replace(recipe(), seed=seed), "frame", K, Store(str(tmp_path / name)))
        store, _, folder = uri.rpartition("/")
        states.append(weights.read_state(artefacts.read_part(Store(store), folder, "weights.safetensors")))
    assert largest_difference(states[0], states[1]) == 0
    assert largest_difference(states[0], states[2]) > 0


def test_new_score_head_only_where_it_is_asked_for(trained, tmp_path):
    """A stage that goes on from L_AV takes the head along; one that brings no head must be given its statistics."""
    modules, uris = trained
    one = case(tmp_path, "align", "on", init=uris["align"])
    goes_on = build_objective(replace(one.stage, score_std=0.0))
    assert largest_difference(goes_on.score.state_dict(), modules["align"].score.state_dict()) == 0
    frame, _ = ensure_initial(recipe(), "frame", K, Store(str(tmp_path)))
    fresh = build_objective(replace(one.stage, init=frame))
    assert (float(fresh.score.mean), float(fresh.score.std)) == pytest.approx((0.4, 0.1))
    with pytest.raises(ArtefactError, match=r"score\."):
        build_objective(replace(one.stage, init=frame, score_std=0.0))
