"""Annotation files are read whole or refused with file, entry and field."""

import json
from types import SimpleNamespace

import pytest

from finepseudo.data import formats
from finepseudo.errors import ManifestError
from finepseudo.recipe import Data
from finepseudo.storage.store import Store


def read_annotations(store, data):
    """Rows with fields, and the class names."""
    clips, names = formats.read_annotations(store, data)
    return [SimpleNamespace(**row) for row in clips.to_pylist()], names


GOOD = {"vid_name": "t", "label": 0}


def read(tmp_path, train=(GOOD,), test=({"vid_name": "u", "label": 1},), vocab=(["T"], ["P"]), data=None):
    for name, body in (("train", train), ("test", test), ("vocab", vocab)):
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
    return read_annotations(Store(str(tmp_path)), data or Data())


def test_rows_come_in_the_order_of_the_files(tmp_path):
    train = [{"vid_name": name, "label": 1, "start_frame": 0, "end_frame": 9} for name in ("b", "a b.c_ü-1")]
    rows, names = read(tmp_path, train, vocab=[["15som", "FREE"], "dive"])
    assert [tuple(vars(row).values()) for row in rows] == [
        ("b", "videos/b.mp4", 1, "train", 0, 9, False, 0),
        ("a b.c_ü-1", "videos/a b.c_ü-1.mp4", 1, "train", 0, 9, False, 1),
        ("u", "videos/u.mp4", 1, "test", None, None, False, 0),
    ]
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
            r"train.json, entry 1, field label: .* from 0 to 1 \(the vocabulary has 2 classes\), .* got 2 for 'a'",
        ),
        ([{"vid_name": "a", "label": -2}], r"entry 0, field label: .* got -2 for 'a'"),
        ([{"vid_name": "a", "label": "2"}], "field label: .* got 2 for"),
        ([{"vid_name": "a", "label": "Q"}], "field label: .* the name of a class, or nothing, got 'Q'"),
        ([{"vid_name": "a", "label": -1.0}], "field label"),
        ([{"vid_name": "a", "label": True}], "field label"),
        ([{"vid_name": "a", "label": 0.0}], "field label"),
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
        ([{"name": "a", "label": 0}], r"entry 0: expected vid_name or file, got .*; a correct entry: \{\"vid_name\""),
        (["a"], "entry 0: expected vid_name or file, got 'a'"),
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
        ({"a": 0, "b": 2}, "at least two classes"),
        (["a", "b", "a"], "vocab.json: class names occur twice: a"),
        ([["a", "b"], "a-b"], "class names occur twice: a-b"),
    ],
)
def test_wrong_vocabularies(tmp_path, vocab, message):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, vocab=vocab)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ManifestError, match=r"train.json: no such annotation file; set --data.root to the folder"):
        read_annotations(Store(str(tmp_path)), Data())
    read(tmp_path)
    with pytest.raises(ManifestError, match=r"other.json: no such annotation file"):
        read_annotations(Store(str(tmp_path)), Data(test="other.json"))
    with pytest.raises(ManifestError, match=r"train.json/train.json: no such annotation file"):
        read_annotations(Store(str(tmp_path / "train.json")), Data())
    for rubbish, reason in ((b"{", "JSON"), (b"", "JSON"), (b"[1,]", "JSON"), (b"\xff\xfe\x00", "text in UTF-8")):
        (tmp_path / "train.json").write_bytes(rubbish)
        with pytest.raises(ManifestError, match=f"train.json: not {reason}: "):
            read_annotations(Store(str(tmp_path)), Data())


def test_ids_of_well_known_data_sets_are_admitted(tmp_path):
    ids = ["-mdMxkvoWfs_00001", "v_SoccerJuggling_g23_c01", "A0xAXXysHUo_E_002184_002237_A_0035_0036"]
    rows, _ = read(tmp_path, [{"vid_name": video_id, "label": 0} for video_id in ids])
    assert [row.video_id for row in rows[:3]] == ids


def test_a_form_that_nobody_reads_is_refused(tmp_path):
    with pytest.raises(
        ManifestError, match=r"train\.pkl: expected annotations in .* \.json, .*\.txt, got '\.pkl'; or set data.format"
    ):
        read(tmp_path, data=Data(train="train.pkl"))


@pytest.mark.parametrize("label", [None, "", -1])
def test_a_clip_without_a_label_is_unlabelled(tmp_path, label):
    rows, _ = read(tmp_path, [{"vid_name": "a"}, {"vid_name": "b", "label": label}, {"vid_name": "c", "label": 0}])
    assert [row.label for row in rows] == [None, None, 0, 1]


def test_labels_may_be_names_or_numbers_as_text(tmp_path):
    rows, _ = read(tmp_path, [{"vid_name": "a", "label": "P"}, {"vid_name": "b", "label": "0"}])
    assert [row.label for row in rows[:2]] == [1, 0]


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start_frame": 50, "end_frame": 10}, "entry 0, field end_frame: expected more than 50, got 10"),
        ({"start_frame": -5, "end_frame": 10}, "field start_frame: expected a number from 0, got -5"),
        ({"end_frame": "x"}, "field end_frame: expected a number from 0, got 'x'"),
        ({"start_frame": 0.5}, "field start_frame: expected a whole number, got 0.5"),
        ({"start_s": float("nan")}, "field start_s: expected a number from 0, got nan"),
        ({"start_frame": True}, "field start_frame: expected a number from 0, got True"),
        ({"start_frame": 1, "end_s": 2}, "expected start and end in frames or in seconds, got both"),
        ({"end_frame": 0}, "field end_frame: expected more than 0, got 0"),
    ],
)
def test_parts_that_cannot_be(tmp_path, span, message):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, [{"vid_name": "a", "label": 0, **span}])


def test_several_parts_of_a_file_have_ids_of_their_own(tmp_path):
    spans = [{"start_frame": 0, "end_frame": 40}, {"start_frame": 40, "end_frame": 90}, {"start_frame": 90}]
    rows, _ = read(tmp_path, [{"vid_name": "a", "label": 0, **span} for span in spans])
    assert [row.video_id for row in rows[:3]] == ["a@0-40", "a@40-90", "a@90-"]
    assert {row.file for row in rows[:3]} == {"videos/a.mp4"}
    with pytest.raises(ManifestError, match="entry 1: video id 'a@0-40' occurs twice"):
        read(tmp_path, [{"vid_name": "a", "label": 0, **spans[0]}] * 2)


def write(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return Store(str(tmp_path))


def test_lists_of_paths_and_labels(tmp_path):
    text = "B/v one.mp4 1\r\nA/v_2.avi 0\r\nloose.webm\r\n\r\nplain.mp4 B"
    store = write(tmp_path, train_dot_txt=text, vocab_dot_json='["A", "B"]')
    rows, names = read_annotations(store, Data(train="train.txt", test=""))
    assert [(row.video_id, row.file, row.label) for row in rows] == [
        ("B~v one", "B/v one.mp4", 1),
        ("A~v_2", "A/v_2.avi", 0),
        ("loose", "loose.webm", None),
        ("plain", "plain.mp4", 1),
    ]
    assert names == ["A", "B"]
    counted_from_1 = write(tmp_path, train_dot_txt="A/v.mp4 1")
    with pytest.raises(ManifestError, match=r"line 1, field label: 1 is class 'B', but .* folder of 'A' \(0\).*from 1"):
        read_annotations(counted_from_1, Data(train="train.txt", test=""))
    for path in ("../v.mp4 0", "/v.mp4 0"):
        with pytest.raises(ManifestError, match=r"line 1, field file: expected"):
            read_annotations(write(tmp_path, train_dot_txt=path), Data(train="train.txt", test=""))


def test_tables(tmp_path):
    kinetics = (
        'label,youtube_id,time_start,time_end,split,is_cc\n"dive, high",-abc_DEF,5,15,train,0\n,zzz,0,10,test,0\n'
    )
    store = write(tmp_path, train_dot_csv=kinetics, vocab_dot_txt="dive, high\nswim\n")
    rows, names = read_annotations(store, Data(train="train.csv", test="", vocab="vocab.txt"))
    assert [(row.video_id, row.label) for row in rows] == [("-abc_DEF_000005_000015", 0), ("zzz_000000_000010", None)]
    parts = "file,label,start_s,end_s\nlong.mp4,swim,1.5,4\nlong.mp4,dive,4,\nlong.mp4,,0,1\n"
    only = Data(train="train.csv", test="", vocab="")
    rows, names = read_annotations(write(tmp_path, train_dot_csv=parts), only)
    assert names == ["dive", "swim"]
    assert [(row.label, row.start, row.end, row.seconds) for row in rows] == [
        (1, 1.5, 4, True), (0, 4, None, True), (None, 0, 1, True),
    ]  # fmt: skip
    assert len({row.video_id for row in rows}) == 3
    with pytest.raises(ManifestError, match=r"train.csv, line 1: expected a header with one of video_id, .*got \['a'"):
        read_annotations(write(tmp_path, train_dot_csv="a,b\n1,2\n"), Data(train="train.csv", test=""))
    with pytest.raises(ManifestError, match=r"train.csv, line 3: expected 2 columns"):
        read_annotations(
            write(tmp_path, train_dot_csv="file,label\nx.mp4,a\ny.mp4\n"), Data(train="train.csv", test="", vocab="")
        )
    with pytest.raises(ManifestError, match=r"data.vocab is empty, so labels must be names .* got \['a'\]"):
        read_annotations(
            write(tmp_path, train_dot_csv="file,label\nx.mp4,a\n"), Data(train="train.csv", test="", vocab="")
        )


def test_files_that_nobody_names_are_unlabelled(tmp_path):
    store = write(
        tmp_path, train_dot_json='[{"vid_name": "a", "label": 0}]', vocab_dot_json='["A", "B"]', videos__a_dot_mp4="",
        videos__b_dot_MP4="", videos__sub__c_dot_webm="", videos__notes_dot_txt="", other__d_dot_mp4="",
    )  # fmt: skip
    rows, _ = read_annotations(store, Data(test="", unlabelled="videos/"))
    assert [(row.video_id, row.label, row.file) for row in rows] == [
        ("a", 0, "videos/a.mp4"), ("b", None, "videos/b.MP4"), ("sub~c", None, "videos/sub/c.webm"),
    ]  # fmt: skip


def test_the_ending_of_the_files_may_be_left_open(tmp_path):
    labels = '[{"vid_name": "a", "label": 0}, {"vid_name": "b.c", "label": 1}, {"vid_name": "gone"}]'
    store = write(tmp_path, train_dot_json=labels, vocab_dot_json='["A", "B"]', v__a_dot_mkv="", v__b_dot_c_dot_avi="")
    rows, _ = read_annotations(store, Data(test="", videos="v/{video_id}.*"))
    assert [row.file for row in rows] == ["v/a.mkv", "v/b.c.avi", "v/gone"]
    with pytest.raises(ManifestError, match="several files for 'a': a.mkv, a.mp4"):
        read_annotations(write(tmp_path, v__a_dot_mp4=""), Data(test="", videos="v/{video_id}.*"))
