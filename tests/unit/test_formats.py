"""Annotation files are read whole or refused with file, entry and field."""

import json

import pytest

from finepseudo.data.formats import Annotation, read_annotations
from finepseudo.errors import ManifestError
from finepseudo.recipe import Data
from finepseudo.storage.store import Store

GOOD = {"vid_name": "t", "label": 0}


def read(tmp_path, train=(GOOD,), test=({"vid_name": "u", "label": 1},), vocab=(["T"], ["P"]), data=None):
    for name, body in (("train", train), ("test", test), ("vocab", vocab)):
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
    return read_annotations(Store(str(tmp_path)), data or Data())


def test_rows_come_in_the_order_of_the_files(tmp_path):
    train = [{"vid_name": name, "label": 1, "start_frame": 0, "end_frame": 9} for name in ("b", "a b.c_ü-1")]
    rows, names = read(tmp_path, train, vocab=[["15som", "FREE"], "dive"])
    known = [("b", 1, "train"), ("a b.c_ü-1", 1, "train"), ("u", 1, "test")]
    assert rows == [Annotation(*one, "anywhere") for one in known]
    assert rows[1].where == f"{tmp_path}/train.json, entry 1"
    assert names == ["15som-FREE", "dive"]


def test_files_may_have_other_names(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps([{"vid_name": "x", "label": 0}]))
    rows, _ = read(tmp_path, data=Data(train="mine.json"))
    assert [row.video_id for row in rows] == ["x", "u"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            [GOOD, {"vid_name": "a", "label": 2}],
            r"train.json, entry 1, field label: .* from 0 to 1 \(the vocabulary has 2 classes\), got 2 for 'a'",
        ),
        ([{"vid_name": "a", "label": -1}], r"entry 0, field label: .* got -1 for 'a'"),
        ([{"vid_name": "a", "label": "0"}], "field label"),
        ([{"vid_name": "a", "label": True}], "field label"),
        ([{"vid_name": "a", "label": 0.0}], "field label"),
        ([{"vid_name": "a", "label": None}], "field label"),
        ([{"vid_name": "a/b", "label": 0}], r"entry 0, field vid_name: .* got 'a/b'"),
        ([{"vid_name": "a\\b", "label": 0}], "field vid_name"),
        ([{"vid_name": "..", "label": 0}], r"field vid_name: .* got '\.\.'"),
        ([{"vid_name": "a..b", "label": 0}], "field vid_name"),
        ([{"vid_name": "/etc/passwd", "label": 0}], "field vid_name"),
        ([{"vid_name": "", "label": 0}], "field vid_name"),
        ([{"vid_name": 7, "label": 0}], "field vid_name"),
        ([{"vid_name": "a\n", "label": 0}], "field vid_name"),
        ([{"vid_name": "a\0", "label": 0}], "field vid_name"),
        ([{"vid_name": "a\ud800", "label": 0}], "field vid_name"),
        ([{"vid_name": "a" * 201, "label": 0}], "field vid_name"),
        (
            [{"vid_name": "a", "label": 0}, {"vid_name": "a", "label": 1}],
            r"entry 1: video id 'a' occurs twice \(first in .*train.json, entry 0",
        ),
        ([{"vid_name": "u", "label": 0}], r"'u' occurs twice \(first in .*train.json, .* no clip may be in two splits"),
        ([{"name": "a", "label": 0}], r"entry 0: expected vid_name and label, got .*; a correct entry: \{\"vid_name\""),
        (["a"], "entry 0: expected vid_name and label, got 'a'"),
        ([], r"train.json: expected a non-empty JSON list of clips, got \[\]"),
        ({"a": 1}, "expected a non-empty JSON list"),
        (None, "expected a non-empty JSON list of clips, got None"),
    ],
)
def test_wrong_annotations_name_file_entry_and_field(tmp_path, train, message):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, train)


def test_long_rubbish_is_shown_in_short(tmp_path):
    with pytest.raises(ManifestError) as refused:
        read(tmp_path, {"key": "x" * 10_000})
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ([], r"vocab.json: expected a JSON list of at least two classes, got \[\]"),
        (["only"], "at least two classes"),
        ({"a": 0, "b": 1}, "at least two classes"),
        (["a", "b", "a"], "vocab.json: class names occur twice: a"),
        ([["a", "b"], "a-b"], "class names occur twice: a-b"),
    ],
)
def test_wrong_vocabularies(tmp_path, vocab, message):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, vocab=vocab)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ManifestError, match=r"vocab.json: no such annotation file; set --data.root to the folder"):
        read_annotations(Store(str(tmp_path)), Data())
    read(tmp_path)
    with pytest.raises(ManifestError, match=r"other.json: no such annotation file"):
        read_annotations(Store(str(tmp_path)), Data(test="other.json"))
    with pytest.raises(ManifestError, match=r"train.json/vocab.json: no such annotation file"):
        read_annotations(Store(str(tmp_path / "train.json")), Data())
    for rubbish in (b"{", b"", b"\xff\xfe\x00", b"[1,]"):
        (tmp_path / "train.json").write_bytes(rubbish)
        with pytest.raises(ManifestError, match=r"train.json: not JSON: "):
            read_annotations(Store(str(tmp_path)), Data())


def test_ids_of_well_known_data_sets_are_admitted(tmp_path):
    ids = ["-mdMxkvoWfs_00001", "v_SoccerJuggling_g23_c01", "A0xAXXysHUo_E_002184_002237_A_0035_0036"]
    rows, _ = read(tmp_path, [{"vid_name": video_id, "label": 0} for video_id in ids])
    assert [row.video_id for row in rows[:3]] == ids


def test_a_form_that_nobody_reads_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"train\.pkl: expected annotations in .* \.json, got '\.pkl'"):
        read(tmp_path, data=Data(train="train.pkl"))
