"""The manifest joins annotations and probes: usable rows, or rejected ones with their reasons."""

import numpy as np
import pyarrow as pa
import pytest
from clips import annotated, build_manifest, commit, found

from finepseudo.data.manifest import FOUND, UNKNOWN, Annotated, Manifest, load_clips
from finepseudo.driver.prepare import PART, Found
from finepseudo.errors import ManifestError
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

NAMES = ("tuck", "pike")


PROBES = {"a": {}, "b": "empty: the file has 0 bytes", "c": {"num_frames": 7}, "d": {"num_frames": 8}, "t": {}}


def build(probes=None, labels=None, min_frames=8):
    probes = {**PROBES, **(probes or {})}
    rows = [(name, name, (labels or {}).get(name, 1), "test" if name == "t" else "train") for name in sorted(probes)]
    return build_manifest(annotated(*rows[::-1]), NAMES, found(**probes), min_frames=min_frames)


def one_by_one(*rows, **probes):
    return build_manifest(annotated(*rows), NAMES, found(**(probes or PROBES)), min_frames=8)


def test_rejected_rows_keep_their_place_and_their_reason():
    manifest = build()
    reasons = {row["video_id"]: (row["status"], row["reason"]) for row in manifest.clips.to_pylist()}
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
    rows = manifest.clips.to_pylist()
    assert [row["video_id"] for row in rows] == ["t", "a", "b", "c", "d"]
    for split, ids in (("train", ["a", "d"]), ("test", ["t"]), ("other", [])):
        assert manifest.ids(manifest.rows(split)) == ids
        assert [rows[row]["video_id"] for row in manifest.rows(split)] == ids
    assert manifest.rows_of(["d", "t"]).tolist() == [4, 0]


def test_the_view_that_all_have_knows_no_label():
    manifest = build(labels={"a": 0, "d": None})
    assert not [name for name in manifest.clips.column_names if "label" in name]
    assert manifest.truth(manifest.rows("train")).tolist() == [0, UNKNOWN]


def test_rejections_are_told():
    assert build().rejections() == ["b: empty: the file has 0 bytes", "c: too short: 7 frames, data.min_frames is 8"]


def test_fingerprint_is_of_what_the_rows_say():
    manifest = build()
    assert build().fingerprint == manifest.fingerprint
    others = {"a": {"num_frames": 31}}, {"e": {}}, {"d": {"num_frames": 8, "access": "seek"}}
    for other in (*map(build, others), build(labels={"a": 0}), build(labels={"a": None}), build(min_frames=7)):
        assert other.fingerprint != manifest.fingerprint


def test_a_split_without_usable_videos_is_refused_with_examples():
    with pytest.raises(ManifestError, match=r"no usable video in split 'test'; rejected: t: too short: 3 frames"):
        build({"t": {"num_frames": 3}})
    with pytest.raises(ManifestError, match=r"split 'train'; rejected: a: gone; b: empty.*; c: too short.*; d: gone"):
        build({"a": "gone", "d": "gone"})
    with pytest.raises(ManifestError, match=r"split 'train'; rejected: none annotated"):
        one_by_one(("t", "t", 0, "test"))


def test_a_test_split_may_be_missing():
    manifest = one_by_one(("a", "a", 0), ("d", "d", None))
    assert manifest.ids(manifest.rows("train")) == ["a", "d"]
    assert not len(manifest.rows("test"))


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
    (row, _) = one_by_one(("a", "a", 0, "train", start, end, seconds), ("d", "d", 0)).clips.to_pylist()
    if isinstance(expected, str):
        assert row["reason"].startswith(expected)
        assert row["status"] == "rejected"
    else:
        assert (row["start"], row["num_frames"], row["file_frames"], row["reason"]) == (*expected, 30, "")


def test_seconds_say_no_frame_where_times_are_uneven():
    probes = {"a": {"even": False}, "d": {"even": True}}
    rows = [
        ("a", "a", 0, "train", 0.4, 0.8, True),
        ("b", "a", 0, "train", 4, 20),
        ("d", "d", 0, "train", 0.4, 0.8, True),
    ]
    found = one_by_one(*rows, **probes).clips.to_pylist()
    assert [row["reason"].partition(":")[0] for row in found] == ["frames at uneven times", "", ""]


@pytest.mark.parametrize(("start", "seconds"), [(3e9, False), (1e300, False), (1.7e9, True)])
def test_parts_far_away_are_no_such_parts(start, seconds):
    rows = [("a", "a", 0, "train", start, None, seconds), ("d", "d", 0)]
    assert one_by_one(*rows).clips.to_pylist()[0]["reason"].startswith("no such part: ")


def test_manifest_survives_the_store(tmp_path):
    manifest, store = build(labels={"d": None}), Store(str(tmp_path))
    commit(store, manifest)
    again = Manifest.load(store)
    assert again.fingerprint == manifest.fingerprint
    assert again.num_classes == 2
    assert again.clips.equals(manifest.clips)
    assert load_clips(store).equals(manifest.clips)


def test_equal_clips_in_two_splits_or_of_two_classes_are_named():
    ids = {"a": ("train", 0, "1"), "b": ("train", 1, "1"), "z": ("train", None, "1"), "t": ("test", 0, "1")}
    ids |= {"d": ("train", 0, "2"), "e": ("train", 0, "2"), "f": ("train", None, "2")}
    rows = [(name, name, label, split) for name, (split, label, _) in ids.items()]
    manifest = one_by_one(*rows, **{name: {"sha256": sha} for name, (_, _, sha) in ids.items()})
    assert manifest.twice() == {"in two splits": ["a", "b", "t", "z"], "under two labels": ["a", "b", "t", "z"]}
    parts = [(name, "v", number, "train", 10 * number, 10 * number + 10) for number, name in enumerate("xy")]
    assert one_by_one(*parts, v={}).twice() == {}


def test_files_have_numbers_in_the_order_of_their_first_clips():
    clips = Annotated(annotated(("c", "x", 1), ("b", "y", 1), ("a", "x", 1), ("d", "z", 1)))
    assert [group.to_pylist() for group in clips.groups(2)] == [["x", "y"], ["z"]]
    ((window, file_N),) = clips.windows()
    assert window["video_id"].to_pylist() == ["a", "b", "c", "d"]
    assert file_N.tolist() == [0, 1, 0, 2]


def test_what_was_found_is_read_by_numbers_of_files_over_all_groups(tmp_path):
    run = Store(str(tmp_path))
    for number, paths in enumerate(("ab", "cd", "e")):
        rows = pa.Table.from_pylist([{"path": path} for path in paths], schema=FOUND)
        artefacts.commit(run, f"p{number}", {PART: artefacts.table_bytes(rows)}, {})
    probed = Found(run, ["p0", "p1", "p2"], 2)
    for wanted in ([4, 0, 3, 3], [2], [1, 4]):
        assert "".join(probed(np.array(wanted))["path"].to_pylist()) == "".join("abcde"[file] for file in wanted)
