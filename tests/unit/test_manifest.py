"""From annotations and files to usable rows, or rejected ones with their reasons."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from finepseudo import rehearsal
from finepseudo.data.formats import read_annotations
from finepseudo.data.manifest import build_manifest
from finepseudo.data.probe import Prober
from finepseudo.data.split import SplitLists, make_split
from finepseudo.errors import ManifestError
from finepseudo.recipe import Data, Rehearsal
from finepseudo.storage import Store

SPEC = Rehearsal(words=("TW-U", "TP-F"), train_per_class=3, test_per_class=1, size=48, look=0)
REAL = Path(__file__).parents[3] / "shared/data/videos"


@pytest.fixture(scope="module")
def movie():
    return rehearsal.video(SPEC, "train", rehearsal.video_ids(SPEC, "train")[0][0])[0]


@pytest.fixture
def prober():
    made = Prober(20)
    yield made
    made.close()


def test_good_and_bad_files_are_told_apart(tmp_path, movie, prober):
    def file(name, data):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    good = prober.probe(file("good.mp4", movie))
    assert good.keys() == {"num_frames", "fps", "height", "width", "bytes", "sha256"}
    assert (good["height"], good["width"], good["fps"], good["bytes"]) == (48, 48, 25.0, len(movie))
    assert prober.probe(file("empty.mp4", b""))["error"].startswith("empty")
    assert prober.probe(file("text.mp4", b"this is no video " * 99))["error"].startswith("undecodable")
    assert prober.probe(file("cut.mp4", movie[: len(movie) // 2]))["error"].startswith("undecodable")
    assert prober.probe(str(tmp_path / "missing.mp4"))["error"].startswith("unreadable")
    assert prober.probe(file("again.mp4", movie)) == good


def test_hanging_file_ends_at_the_deadline(tmp_path, movie):
    os.mkfifo(tmp_path / "hangs.mp4")
    (tmp_path / "good.mp4").write_bytes(movie)
    patient = Prober(20)
    patient.probe(str(tmp_path / "good.mp4"))
    patient.deadline_s = 0.5
    assert patient.probe(str(tmp_path / "hangs.mp4")) == {"error": "deadline: not decoded within 0.5 s"}
    patient.deadline_s = 20
    assert patient.probe(str(tmp_path / "good.mp4"))["num_frames"] > 20
    patient.close()


def test_crashing_decoder_rejects_one_file(tmp_path, movie, prober):
    os.mkfifo(tmp_path / "hangs.mp4")
    (tmp_path / "good.mp4").write_bytes(movie)
    prober.probe(str(tmp_path / "good.mp4"))
    child = prober._child.pid
    threading.Thread(target=lambda: (time.sleep(0.3), os.kill(child, signal.SIGKILL))).start()
    assert prober.probe(str(tmp_path / "hangs.mp4")) == {"error": "decoder crashed: exit status -9"}
    assert "error" not in prober.probe(str(tmp_path / "good.mp4"))


@pytest.mark.skipif(not REAL.exists(), reason="the folder of real videos is not beside this checkout")
def test_real_videos(prober):
    files = [path for path in sorted(REAL.rglob("*")) if path.suffix in (".mp4", ".avi", ".mkv")]
    found = {path.name: prober.probe(str(path)) for path in files}
    assert found.pop("av1_video.mkv")["error"].startswith("undecodable")
    assert {name: probe["error"] for name, probe in found.items() if "error" in probe} == {}
    assert len(found) > 10
    assert found["v_SoccerJuggling_g23_c01.avi"]["width"] == 320


def annotated(tmp_path, train, test=None, vocab=(["T"], ["P"])):
    (tmp_path / "train.json").write_text(json.dumps(train))
    (tmp_path / "test.json").write_text(json.dumps(test or [{"vid_name": "t", "label": 0}]))
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    return read_annotations(Store(str(tmp_path)), Data())


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            [{"vid_name": "a", "label": 2}],
            r"train.json, entry 0, field label: expected an integer from 0 to 1 .* got 2",
        ),
        ([{"vid_name": "a", "label": "0"}], "field label"),
        ([{"vid_name": "a", "label": True}], "field label"),
        ([{"vid_name": "a/b", "label": 0}], r"entry 0, field vid_name: .* got 'a/b'"),
        ([{"vid_name": "..", "label": 0}], "field vid_name"),
        ([{"vid_name": "a", "label": 0}, {"vid_name": "a", "label": 1}], "'a' occurs twice"),
        ([{"vid_name": "t", "label": 0}], r"'t' occurs twice \(train and test\)"),
        ([{"name": "a", "label": 0}], "entry 0: expected vid_name and label"),
        ([], "expected a non-empty JSON list"),
        ({"a": 1}, "expected a non-empty JSON list"),
    ],
)
def test_wrong_annotations_name_file_entry_and_field(tmp_path, train, message):
    with pytest.raises(ManifestError, match=message):
        annotated(tmp_path, train)


def test_missing_and_broken_annotation_files(tmp_path):
    with pytest.raises(ManifestError, match=r"vocab.json: no such annotation file; set --data.root"):
        read_annotations(Store(str(tmp_path)), Data())
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ManifestError, match="vocab.json: not JSON"):
        read_annotations(Store(str(tmp_path)), Data())


def good_probe(frames=30):
    return {"num_frames": frames, "fps": 25.0, "height": 48, "width": 48, "bytes": 9, "sha256": "ab"}


def test_rejected_rows_keep_their_reason_and_unlabelled_views_no_label(tmp_path):
    rows, names = annotated(tmp_path, [{"vid_name": name, "label": 1} for name in ("a", "b", "c")])
    probes = {"a": good_probe(), "b": {"error": "empty: 0 bytes"}, "c": good_probe(7), "t": good_probe()}
    uris = {name: f"/v/{name}.mp4" for name in probes}
    manifest = build_manifest(rows, names, probes, uris, min_frames=8)
    reasons = {row["video_id"]: row["reason"] for row in manifest.table.to_pylist()}
    assert reasons == {"a": "", "b": "empty: 0 bytes", "c": "too short: 7 frames, data.min_frames is 8", "t": ""}
    assert manifest.summary() == {
        "usable": {"train": 1, "test": 1},
        "rejected": 2,
        "reasons": {"empty": 1, "too short": 1},
    }
    (video,) = manifest.videos("train")
    assert not hasattr(video, "label")
    moved = build_manifest(rows, names, probes, {name: f"s3://b/{name}" for name in probes}, min_frames=8)
    assert moved.fingerprint == manifest.fingerprint
    with pytest.raises(ManifestError, match=r"no usable video in split 'train'; rejected: a: gone"):
        build_manifest(rows, names, {**probes, "a": {"error": "gone"}}, uris, min_frames=8)


def test_split_is_class_wise_seeded_and_stable():
    truth = {f"{label}-{number}": label for label in range(3) for number in range(10 * label + 1)}
    split = make_split(truth, label_fraction=0.2, seed=3)
    counts = [sum(truth[name] == label for name in split.labelled) for label in range(3)]
    assert counts == [1, 2, 4]
    assert sorted(split.labelled + split.unlabelled) == sorted(truth)
    assert make_split(truth, label_fraction=0.2, seed=3) == split
    assert make_split(truth, label_fraction=0.2, seed=4).labelled != split.labelled
    assert SplitLists.from_bytes(split.to_bytes()) == split
    grown = make_split({**truth, "new": 2}, label_fraction=0.2, seed=3)
    assert len(set(split.labelled) - set(grown.labelled)) <= 1
    with pytest.raises(ManifestError, match="no class has a labelled video"):
        make_split(truth, label_fraction=0, seed=3)
