"""The generated data set: deterministic, well-formed, and free of short cuts."""

import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace

import av
import decord
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finepseudo import rehearsal
from finepseudo.recipe import Rehearsal
from finepseudo.rehearsal import scene
from finepseudo.rehearsal.ids import person_of
from finepseudo.rehearsal.motion import Timeline, poses
from finepseudo.rehearsal.scene import LUMA

SPEC = Rehearsal()
FIRST = rehearsal.video_ids(SPEC, "train")[0][0]
DIGEST = """
import hashlib, sys
from finepseudo import rehearsal
from finepseudo.recipe import Rehearsal
spec = Rehearsal(seed=int(sys.argv[1]))
name = rehearsal.video_ids(spec, "train")[0][0]
print(name, hashlib.sha256(rehearsal.video(spec, "train", name)[0]).hexdigest())
"""


def digest_elsewhere(seed):
    return subprocess.run([sys.executable, "-c", DIGEST, str(seed)], check=True, capture_output=True, text=True).stdout


def some_ids(spec, split, count):
    ids = rehearsal.video_ids(spec, split)
    return [ids[i] for i in np.linspace(0, len(ids) - 1, count).astype(int)]


def test_same_seed_same_bytes_also_in_another_process():
    data, truth = rehearsal.video(SPEC, "train", FIRST)
    again, truth_again = rehearsal.video(SPEC, "train", FIRST)
    assert data == again
    assert truth == truth_again
    here = digest_elsewhere(0)
    assert here.split()[0] == FIRST
    assert here == digest_elsewhere(0)
    assert here.split()[1] == hashlib.sha256(data).hexdigest()


def test_another_seed_is_another_data_set():
    other = Rehearsal(seed=1)
    ids, other_ids = dict(rehearsal.video_ids(SPEC, "train")), dict(rehearsal.video_ids(other, "train"))
    assert not ids.keys() & other_ids.keys()
    assert rehearsal.video(SPEC, "train", FIRST)[0] != rehearsal.video(other, "train", next(iter(other_ids)))[0]


def test_adding_clips_or_classes_changes_no_other():
    few = Rehearsal(words=("TP-U", "TP-F"), train_per_class=3, test_per_class=2)
    many = Rehearsal(words=("TP-U", "TP-F", "KW-U"), train_per_class=5, test_per_class=4)
    for split in rehearsal.SPLITS:
        before, after = dict(rehearsal.video_ids(few, split)), dict(rehearsal.video_ids(many, split))
        assert before.items() <= after.items()
        for name in before:
            assert rehearsal.nuisance(few, split, name) == rehearsal.nuisance(many, split, name)
    name = next(iter(before))
    assert rehearsal.video(few, "test", name) == rehearsal.video(many, "test", name)


def test_look_leaves_time_alone():
    lengths = {rehearsal.nuisance(replace(SPEC, look=look), "train", FIRST)["length"] for look in range(4)}
    assert len(lengths) == 1


PERSONS = Rehearsal(words=("TP-U", "BP-U", "TP-S"), persons=4, strangers=3, look=2, rates=4.0)


def of_persons(split):
    """Nuisance values of the clips by person."""
    found = {}
    for name, _ in rehearsal.video_ids(PERSONS, split):
        found.setdefault(person_of(PERSONS, split, name), []).append(rehearsal.nuisance(PERSONS, split, name))
    return found


def test_a_person_has_one_body_one_gym_and_one_tempo():
    by_person = of_persons("train")
    assert sorted(by_person) == [f"0/person-{n}" for n in range(4)]
    looks = {"scale", "azimuth", "trunk", "left_r", "trunk_g", "head_b", "ground_r", "blocks"}
    for clips in by_person.values():
        assert all(len({clip[key] for clip in clips}) == 1 for key in looks)
        assert len({clip["place_x"] for clip in clips}) == len({clip["noise"] for clip in clips}) == len(clips)
    assert len({clips[0]["scale"] for clips in by_person.values()}) == 4
    within = np.mean([np.std([clip["active"] for clip in clips]) for clips in by_person.values()])
    assert within < 0.5 * np.std([clip["active"] for clips in by_person.values() for clip in clips])


def test_strangers_are_half_of_the_test_clips_and_nowhere_else():
    by_person = of_persons("test")
    strange = {name: len(clips) for name, clips in by_person.items() if "stranger" in name}
    assert len(strange) == 3
    count = sum(map(len, by_person.values()))
    assert abs(sum(strange.values()) - count / 2) < 4 * np.sqrt(count / 4)
    assert len(by_person) == 7


def test_rates_fall_evenly_in_the_ratio_and_leave_the_test_clips_alone():
    counts = [np.bincount([label for _, label in rehearsal.video_ids(PERSONS, split)]) for split in rehearsal.SPLITS]
    assert counts[0].tolist() == [80, 40, 20]
    assert counts[1].tolist() == [40, 40, 40]
    whole, few = (dict(rehearsal.video_ids(replace(PERSONS, rates=rates), "train")) for rates in (1.0, 4.0))
    assert few.items() <= whole.items()


def test_backwards_is_the_same_tuck_turned_the_other_way():
    turns = {}
    for element in "TB":
        F = 40
        phase_F = np.full(F, rehearsal.PHASES.index(element))
        truth = rehearsal.Truth(phase_F, np.zeros(F, int), np.linspace(0, 1, F))
        pose_FA, turn_F, spin_F = poses(Timeline(truth, "U", np.arange(F), {}))
        turns[element] = (pose_FA, turn_F)
        assert not spin_F.any()
    np.testing.assert_array_equal(turns["T"][0], turns["B"][0])
    np.testing.assert_allclose(turns["T"][1], -turns["B"][1])
    assert turns["T"][1][-1] == pytest.approx(2 * np.pi)


@pytest.mark.parametrize(("apparatus", "pixels"), [("X", 13 * 15), ("Y", 5 * 30 + 8 * 4)])
def test_an_apparatus_stands_on_the_floor_beside_the_gymnast_and_changes_nothing_else(apparatus, pixels, monkeypatch):
    spec = Rehearsal(words=("TP-U", f"TP-U{apparatus}"), persons=3, look=1)
    assert rehearsal.letters(spec.words[1]) == ("T", "P", "U")
    sides, colours = set(), set()
    for name, label in rehearsal.video_ids(spec, "train")[:40]:
        here = scene.make_scene(spec, "train", name)
        with monkeypatch.context() as patch:
            patch.setattr(scene, "apparatus_of", lambda *_: "")
            without = scene.make_scene(spec, "train", name)
        changed_HW = (here.background_HWC != without.background_HWC).any(2)
        assert changed_HW.sum() == (pixels if label else 0)
        assert here.nuisance == without.nuisance
        if label:
            y, x = np.nonzero(changed_HW)
            assert y.max() == here.margin + round(here.floor) - 1
            middle = (x.min() + x.max() + 1) / 2 - here.background_HWC.shape[1] / 2
            assert 23 <= abs(middle) <= 32
            assert len(set(map(tuple, here.background_HWC[y, x]))) == 1
            sides.add(middle > 0)
            colours.add(tuple(here.background_HWC[y[0], x[0]]))
    assert sides == {True, False}
    assert len(colours) > 10


def test_ids_are_unique_and_their_order_does_not_tell_the_class():
    train, test = (rehearsal.video_ids(SPEC, split) for split in rehearsal.SPLITS)
    assert len({name for name, _ in train + test}) == 14 * (80 + 40)
    labels = np.array([label for _, label in train])
    assert np.bincount(labels).tolist() == [80] * 14
    # neighbours share a class as often as chance has it (1,119 pairs, 4 standard errors)
    assert abs((labels[1:] == labels[:-1]).mean() - 1 / 14) < 4 * np.sqrt(1 / 14 * 13 / 14 / 1119)


def test_file_is_h264_of_the_right_form_and_size():
    for name, _ in some_ids(SPEC, "train", 24):
        data, truth = rehearsal.video(SPEC, "train", name)
        assert 10_000 <= len(data) <= 55_000
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.average_rate) == (112, 112, 25)
            assert "creation_time" not in container.metadata | stream.metadata
            assert sum(1 for _ in container.decode(stream)) == len(truth["phase_F"])


def test_decord_reads_what_was_drawn():
    clip = rehearsal.clip(SPEC, "train", FIRST)
    reader = decord.VideoReader(io.BytesIO(rehearsal.encode_mp4(clip.frames, 25)), num_threads=1)
    read = reader.get_batch(range(len(reader))).asnumpy()
    assert read.shape == clip.frames.shape
    error = np.abs(read.astype(int) - clip.frames).mean((1, 2, 3))
    assert error.max() < 6
    # a frame later or earlier fits worse where the figure moves
    moved = np.abs(read[1:].astype(int) - clip.frames[:-1]).mean()
    assert moved > error.mean()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="'TPX-U'"):
        rehearsal.letters("TPX-U")
    with pytest.raises(ValueError, match="'valid'"):
        rehearsal.video_ids(SPEC, "valid")
    with pytest.raises(ValueError, match="'nobody'"):
        rehearsal.clip(SPEC, "train", "nobody")
    with pytest.raises(ValueError, match="even height and width"):
        rehearsal.encode_mp4(np.zeros((2, 9, 8, 3), np.uint8), 25)
    with pytest.raises(ValueError, match="uint8 frames"):
        rehearsal.encode_mp4(np.zeros((2, 8, 8, 3)), 25)


@pytest.mark.parametrize("time", [1, 2])
def test_truth_follows_the_class_word(time):
    spec = replace(SPEC, time=time)
    for name, label in rehearsal.video_ids(spec, "train"):
        truth, word = rehearsal.truth(spec, "train", name), rehearsal.letters(spec.words[label])
        assert len(truth.phase_F) == rehearsal.nuisance(spec, "train", name)["length"]
        steps = np.flatnonzero(np.diff(truth.element_F, prepend=-2))  # where an element begins
        seen = [(int(truth.element_F[i]), rehearsal.PHASES[truth.phase_F[i]]) for i in steps if truth.element_F[i] >= 0]
        assert seen == list(enumerate(word))
        assert truth.progress_F.min() >= 0
        assert truth.progress_F.max() <= 1
        phases = truth.phase_F.tolist()
        assert rehearsal.PHASES.index("crouch") in phases
        same = (np.diff(truth.element_F) == 0) & (np.diff(truth.phase_F) == 0)
        assert (np.diff(truth.progress_F)[same] >= 0).all()


@pytest.mark.parametrize("time", [1, 2])
def test_an_action_goes_on_from_0_to_1_part_by_part(time):
    spec = Rehearsal(time=time)
    for name, label in some_ids(spec, "train", 8):
        truth, parts = rehearsal.truth(spec, "train", name), len(spec.words[label].replace("-", "")) + 1
        through_F = rehearsal.through_action(truth)
        assert (np.diff(through_F) >= 0).all()
        phases = [rehearsal.PHASES[code] for code in truth.phase_F]
        for at, (phase, element, progress) in enumerate(zip(phases, truth.element_F, truth.progress_F, strict=True)):
            known = {"idle": 0, "rest": 1, "crouch": progress / parts}
            assert through_F[at] == pytest.approx(known.get(phase, (element + 1 + progress) / parts))


def test_annotations_in_the_form_of_diving48():
    spec = Rehearsal(train_per_class=3, test_per_class=2)
    files = {name: json.loads(data) for name, data in rehearsal.annotations(spec).items()}
    assert files["vocab.json"] == list(spec.words)
    assert len(files["vocab.json"]) == 14
    for split, count in (("train", 42), ("test", 28)):
        rows = files[f"{split}.json"]
        assert len(rows) == count
        assert [(row["vid_name"], row["label"]) for row in rows] == rehearsal.video_ids(spec, split)
        assert set(rows[0]) == {"vid_name", "label", "start_frame", "end_frame"}
        row = rows[0]
        assert (row["start_frame"], row["end_frame"]) == (0, len(rehearsal.truth(spec, split, row["vid_name"]).phase_F))


@pytest.mark.parametrize("look", [0, 1, 2, 3])
@pytest.mark.parametrize("time", [0, 1, 2])
def test_every_level_renders(look, time):
    spec = Rehearsal(look=look, time=time, size=64)
    for name, _ in some_ids(spec, "train", 3):
        clip = rehearsal.clip(spec, "train", name)
        F = len(clip.frames)
        assert clip.frames.shape == (F, 64, 64, 3)
        assert clip.frames.dtype == np.uint8
        assert len(clip.truth.phase_F) == len(clip.truth.element_F) == len(clip.truth.progress_F) == F
        assert clip.nuisance == rehearsal.nuisance(spec, "train", name)
        assert clip.nuisance["length"] == F
        data, truth = rehearsal.video(spec, "train", name)
        assert data
        assert {len(values) for values in truth.values()} == {F}


def test_wild_colours_stand_out_from_the_background():
    spec = replace(SPEC, look=2)
    for name, _ in rehearsal.video_ids(spec, "train")[:300]:
        n = rehearsal.nuisance(spec, "train", name)
        luma = {part: sum(w * n[f"{part}_{c}"] for w, c in zip(LUMA, "rgb", strict=True)) for part in
                ("ground", "left", "trunk", "head")}  # fmt: skip
        for part in ("left", "trunk", "head"):
            assert abs(luma[part] - luma["ground"]) > 45


def test_figure_has_the_size_of_the_spec():
    """Standing, 60 to 65 % of the frame's height."""
    spec = Rehearsal(words=("T-U",), look=0, time=1)
    names = [name for name, _ in rehearsal.video_ids(spec, "train")]
    name = next(name for name in names if rehearsal.nuisance(spec, "train", name)["idle_before"] > 2)
    first = rehearsal.clip(spec, "train", name).frames[0].astype(int)
    figure = (np.abs(first - first[0, 0]).max(-1) > 30) & (np.arange(112) > 20) & (np.arange(112) < 92)
    figure &= ~figure.all(1, where=(np.arange(112) > 20) & (np.arange(112) < 92))[:, None]  # the floor line
    rows = np.flatnonzero(figure.any(1))
    assert 0.58 <= (rows[-1] - rows[0] + 1) / 112 <= 0.66


def table(spec, split, features):
    ids = rehearsal.video_ids(spec, split)
    return np.array([features(name) for name, _ in ids]), np.array([label for _, label in ids])


def accuracy(model, x, y):
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    return (cross_val_predict(model, x, y, cv=folds) == y).mean()


def models():
    forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0, n_jobs=1)
    return forest, make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))


@pytest.mark.parametrize(("look", "time", "persons"), [(1, 1, 0), (3, 2, 6)])
def test_no_nuisance_value_tells_the_class(look, time, persons):
    """Under independence hits are binomial(1120, 1/14): 4 standard errors are one false alarm in 30,000."""
    spec = Rehearsal(look=look, time=time, persons=persons)
    x, y = table(spec, "train", lambda name: list(rehearsal.nuisance(spec, "train", name).values()))
    x = x[:, x.std(0) > 0]
    assert x.shape[1] > 20
    chance = 1 / len(spec.words)
    bound = chance + 4 * np.sqrt(chance * (1 - chance) / len(y))
    for model in models():
        assert accuracy(model, x, y) < bound


def test_the_leak_check_can_fail():
    """What the class is made of is found by the same classifiers: the share of each phase; and a leaking length."""

    def histogram(name):
        counts = np.bincount(rehearsal.truth(SPEC, "train", name).phase_F, minlength=len(rehearsal.PHASES))
        return counts / counts.sum()

    x, y = table(SPEC, "train", histogram)
    for model in models():
        assert accuracy(model, x, y) > 4 / 14
    x, y = table(SPEC, "train", lambda name: list(rehearsal.nuisance(SPEC, "train", name).values()))
    x[:, 0] += 3 * y  # three frames longer from class to class
    bound = 1 / 14 + 4 * np.sqrt(1 / 14 * 13 / 14 / len(y))
    assert max(accuracy(model, x, y) for model in models()) > bound
