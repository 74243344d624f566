"""The manifest joins annotations and probes: usable rows, or rejected ones with their reasons."""

import json

import pytest

from finepseudo.data.formats import Annotation
from finepseudo.data.manifest import FOLDER, Manifest, Video, build_manifest
from finepseudo.errors import ManifestError
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

NAMES = ("tuck", "pike")


def good(frames=30):
    return {"num_frames": frames, "fps": 25.0, "height": 48, "width": 64, "access": "scan", "bytes": 9, "sha256": "ab"}


PROBES = {"a": good(), "b": {"error": "empty: the file has 0 bytes"}, "c": good(7), "d": good(8), "t": good()}


def build(probes=None, where="/v", labels=None, min_frames=8):
    probes = {**PROBES, **(probes or {})}
    rows = [
        Annotation(name, (labels or {}).get(name, 1), "test" if name == "t" else "train", "") for name in sorted(probes)
    ]
    paths = {name: f"{where}/{name}" for name in probes}
    found = {paths[name]: probe for name, probe in probes.items()}
    return build_manifest(rows[::-1], NAMES, found, paths, min_frames=min_frames)


def test_rejected_rows_keep_their_place_and_their_reason():
    manifest = build()
    reasons = {row["video_id"]: (row["status"], row["reason"]) for row in manifest.table.to_pylist()}
    assert reasons == {
        "t": ("ok", ""),
        "a": ("ok", ""),
        "b": ("rejected", "empty: the file has 0 bytes"),
        "c": ("rejected", "too short: 7 frames, data.min_frames is 8"),
        "d": ("ok", ""),
    }
    assert manifest.summary() == {
        "usable": {"test": 1, "train": 2},
        "rejected": 2,
        "reasons": {"empty": 1, "too short": 1},
    }


def test_rows_are_sorted_and_indices_point_at_them():
    manifest = build()
    rows = manifest.table.to_pylist()
    assert [row["video_id"] for row in rows] == ["t", "a", "b", "c", "d"]
    for split, ids in (("train", ["a", "d"]), ("test", ["t"])):
        videos = manifest.videos(split)
        assert [video.video_id for video in videos] == ids
        assert [rows[video.index]["video_id"] for video in videos] == ids


def test_unlabelled_views_have_no_label():
    manifest = build(labels={"a": 0})
    (first, _) = manifest.videos("train")
    assert first == Video(1, "a", "/v/a", "ab", 30, 48, 64, "scan", 0, 30)
    assert not [name for name in vars(first) if "label" in name]
    assert manifest.truth("train") == {"a": 0, "d": 1}
    assert [row["label_name"] for row in manifest.table.to_pylist()][1] == "tuck"


def test_fingerprint_is_of_what_the_rows_say():
    manifest = build()
    for other in (build({"a": good(31)}), build(labels={"a": 0}), build({"e": good()}), build(min_frames=7)):
        assert other.fingerprint != manifest.fingerprint


def test_a_split_without_usable_videos_is_refused_with_examples():
    with pytest.raises(ManifestError, match=r"no usable video in split 'test'; rejected: t: too short: 3 frames"):
        build({"t": good(3)})
    with pytest.raises(ManifestError, match=r"split 'train'; rejected: a: gone; b: empty.*; c: too short.*; d: gone"):
        build({"a": {"error": "gone"}, "d": {"error": "gone"}})
    with pytest.raises(ManifestError, match=r"split 'train'; rejected: none annotated"):
        build_manifest([Annotation("t", 0, "test", "")], NAMES, PROBES, {"t": "t"}, min_frames=8)


def test_a_test_split_and_labels_may_be_missing():
    rows = [Annotation("a", 0, "train", ""), Annotation("d", None, "train", "")]
    manifest = build_manifest(rows, NAMES, PROBES, {"a": "a", "d": "d"}, min_frames=8)
    assert [video.video_id for video in manifest.videos("train")] == ["a", "d"]
    assert manifest.truth("train") == {"a": 0}
    assert manifest.videos("test") == []
    assert [row["label_name"] for row in manifest.table.to_pylist()] == ["tuck", None]


@pytest.mark.parametrize(
    ("start", "end", "seconds", "expected"),
    [
        (None, None, False, (0, 30)),
        (10, 25, False, (10, 15)),
        (10, None, False, (10, 20)),
        (0.4, 0.8, True, (10, 10)),
        (0, 32, False, (0, 30)),  # as other programs count
        (0, 33, False, "no such part: frames 0..33 of a file of 30 frames"),
        (0, 99999, False, "no such part"),
        (30, 40, False, "no such part: frames 30..40 of"),
        (2, None, True, "no such part: seconds 2.. of a file of 30 frames"),
        (3, 8, False, "too short: 5 frames, data.min_frames is 8"),
    ],
)
def test_parts_of_a_file(start, end, seconds, expected):
    row = Annotation("a", 0, "train", "", start=start, end=end, seconds=seconds)
    rows = [row, Annotation("d", 0, "train", "")]
    (found, _) = build_manifest(rows, NAMES, PROBES, {"a": "a", "d": "d"}, min_frames=8).table.to_pylist()
    if isinstance(expected, str):
        assert found["reason"].startswith(expected)
        assert found["status"] == "rejected"
    else:
        assert (found["start"], found["num_frames"], found["file_frames"], found["reason"]) == (*expected, 30, "")


def test_manifest_survives_the_store(tmp_path):
    manifest, store = build(), Store(str(tmp_path))
    parts = {
        "manifest.parquet": artefacts.table_bytes(manifest.table),
        "classes.json": json.dumps(manifest.class_names).encode(),
    }
    artefacts.commit(store, FOLDER, parts, {})
    again = Manifest.load(store)
    assert again.fingerprint == manifest.fingerprint
    assert again.num_classes == 2
    assert again.videos("train") == manifest.videos("train")


def test_equal_clips_in_two_splits_or_of_two_classes_are_named():
    ids = {"a": ("train", 0, "1"), "b": ("train", 1, "1"), "c": ("train", None, "1"), "t": ("test", 0, "1")}
    ids |= {"d": ("train", 0, "2"), "e": ("train", 0, "2"), "f": ("train", None, "2")}
    rows = [Annotation(name, label, split, "") for name, (split, label, _) in ids.items()]
    probes = {name: good() | {"sha256": sha} for name, (_, _, sha) in ids.items()}
    manifest = build_manifest(rows, NAMES, probes, {name: name for name in ids}, min_frames=8)
    assert manifest.twice() == {"in two splits": ["t", "a", "b", "c"], "under two labels": ["t", "a", "b", "c"]}
    parts = [Annotation(name, n, "train", "", start=10 * n, end=10 * n + 10) for n, name in enumerate("xy")]
    assert build_manifest(parts, NAMES, {"v": good()}, {"x": "v", "y": "v"}, min_frames=8).twice() == {}
