"""One's own videos: tables with parts and splits, a folder per class, files that nobody names; any file name."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finepseudo.data.formats import READERS, read_annotations, read_collection
from finepseudo.errors import ManifestError, StorageError
from finepseudo.recipe import Data
from finepseudo.storage.store import Store

TABLE = """Path, label, start, end, split
a.mp4,tuck,,,train
b/long.MKV,pike,1.5,4,train
b/long.MKV,tuck,4,,test
c.mp4,,,,unlabelled
"""
ROWS = [
    ("a", "a.mp4", 1, "train", None, None, False),
    ("b~long@1.5-4", "b/long.MKV", 0, "train", 1.5, 4.0, True),
    ("b~long@4-", "b/long.MKV", 1, "test", 4.0, None, True),
    ("c", "c.mp4", None, "train", None, None, False),
]


def read(root, **data):
    found = read_collection(Store(str(root)), Data(**{"test": "", "vocab": "", **data}))
    return [tuple(row.values())[:7] for row in found.clips.to_pylist()], found.class_names, found.understood


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def test_a_table_with_parts_and_splits(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeff" + TABLE)
    (tmp_path / "t.tsv").write_text(TABLE.replace(", ", "\t").replace(",", "\t"))
    (tmp_path / "r.csv").write_text(TABLE.replace("a.mp4", f"{tmp_path}/a.mp4"))
    (tmp_path / "new.csv").write_text(TABLE)
    columns = {"path": ["a.mp4", "b/long.MKV", "b/long.MKV", "c.mp4"], "label": ["tuck", "pike", "tuck", None]}
    columns |= {"start": [None, 1.5, 4, None], "end": [None, 4, None, None], "split": ["train", "train", "test", None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    for file in ("t.csv", "t.tsv", "t.parquet", "r.csv", "new.csv"):
        assert read(tmp_path, train=file)[:2] == (ROWS, ["pike", "tuck"]), file
    surprise = "1 training clips are of files that have test clips too: b/long.MKV"
    assert read(tmp_path, train="t.csv")[2].surprises == (surprise,)
    assert read(tmp_path, train="t.csv", test="t.csv")[0] == ROWS, "a file that holds both splits is read once"
    for file, places in (("t.csv", [2, 3, 4, 5]), ("t.parquet", [0, 1, 2, 3])):
        found = read_collection(Store(str(tmp_path)), Data(train=file, test="", vocab=""))
        assert found.clips["where"].to_pylist() == places
    columns["label"] = [1.0, 0.0, 1.0, None]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert [row[2] for row in read(tmp_path, train="t.parquet")[0]] == [1, 0, 1, None]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("path,label,split\na.mp4,x,trial\n", r"t.csv, line 2, field split: expected train, val, .* got 'trial'"),
        ("path,label\na.mp4,x\n\na.mp4,y\n", r"line 4: video id 'a.mp4' occurs twice \(first in .*t.csv, line 2\)"),
        ("path,start,end\na.mp4,3,2\n", "line 2, field end: expected more than 3, got 2"),
        ("path,start,end_frame\na.mp4,3,20\n", "expected start and end in frames or in seconds, got both"),
        ("path\n../a.mp4\n", r"line 2, field file: expected a path below the data's folder, got '\.\./a.mp4'"),
        ("path\ns3://b/a.mp4\n", "line 2, field file: expected a path below"),
        ('path,label\n"a.mp4,x\n' + "y" * 200_000, "t.csv, line .*: not CSV: field larger"),
        ("", r"line 1: expected a header with one of .* got \[\]"),
    ],
)
def test_wrong_tables(tmp_path, body, message):
    (tmp_path / "t.csv").write_text(body)
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, train="t.csv")
    (tmp_path / "t.parquet").write_text(body)
    with pytest.raises(ManifestError, match="t.parquet: not Parquet"):
        read(tmp_path, train="t.parquet")


def test_numbers_may_be_names(tmp_path):
    for labels, names in ((("10", "9", "2"), ["2", "9", "10"]), (("10", "9", "x"), ["10", "9", "x"])):
        (tmp_path / "t.csv").write_text("id,label\n" + "".join(f"v{label},{label}\n" for label in labels))
        rows, found, _ = read(tmp_path, train="t.csv")
        assert (found, [found[row[2]] for row in rows]) == (names, list(labels))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(self, path, *_):
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "t.csv").write_text("id,label\na,x\n")
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.open", refuse)
    with pytest.raises(StorageError, match=r"t.csv: cannot be opened: Permission denied; check the path"):
        read(tmp_path, train="t.csv")


def test_splits_of_three_names(tmp_path):
    rows = "a,x,Train\nb,y,training\nc,x,val\nd,y,test\ne,x,unlabeled\n"
    (tmp_path / "t.csv").write_text("id,label,split\n" + rows)
    found, _, understood = read(tmp_path, train="t.csv")
    assert [row[3] for row in found] == ["train", "train", "test", "test", "train"]
    assert found[4][2] is None
    assert understood.surprises == (
        "clips of both 'val' and 'test' are measured on, as one split 'test'",
        "1 clips of split 'unlabelled' have a label, which is not used",
    )
    (tmp_path / "t.csv").write_text("id,label,split\n" + rows.replace("test", "val"))
    assert len(read(tmp_path, train="t.csv")[2].surprises) == 1


def test_folders_of_classes_and_files_that_nobody_names(tmp_path):
    touch(tmp_path, "l/tuck/a.mp4", "l/tuck/x.y/deep/b.AVI", "l/pike/c.webm", "l/pike/notes.txt", "l/loose.mp4")
    touch(tmp_path, "u/d.mov", "u/v1.2/e.mp4", "u/.hidden.mp4", "u/.trash/f.mp4", "t/tuck/g.mp4")
    rows, names, _ = read(tmp_path, train="l/", test="t", unlabelled="u")
    assert names == ["pike", "tuck"]
    assert [row[:4] for row in rows] == [
        ("l~loose", "l/loose.mp4", None, "train"),
        ("l~pike~c", "l/pike/c.webm", 0, "train"),
        ("l~tuck~a", "l/tuck/a.mp4", 1, "train"),
        ("l~tuck~x.y~deep~b", "l/tuck/x.y/deep/b.AVI", 1, "train"),
        ("t~tuck~g", "t/tuck/g.mp4", 1, "test"),
        ("d", "u/d.mov", None, "train"),
        ("v1.2~e", "u/v1.2/e.mp4", None, "train"),
    ]
    (tmp_path / "names.txt").write_text("pike\ntuck\n")
    every = ["l~loose", "l~pike~c", "l~tuck~a", "l~tuck~x.y~deep~b"]
    assert [row[1] for row in read(tmp_path, train="./l")[0]] == [row[1] for row in rows[:4]]
    (tmp_path / "other.txt").write_text("pike\nrun\n")
    with pytest.raises(ManifestError, match=r"l/tuck/a.mp4, field label: .* got 'tuck' for 'l~tuck~a'"):
        read(tmp_path, train="l/", vocab="other.txt")
    for pattern, found in (("u/*", ["d"]), ("u/**/*.MP4", ["v1.2~e"]), ("l/**", [name[2:] for name in every]),
                           ("**/b.*", every[3:]), ("**/?.mp4", []), ("nowhere", [])):  # fmt: skip
        rows, _, understood = read(tmp_path, train="t/", unlabelled=pattern, vocab="names.txt")
        assert [row[0] for row in rows[1:]] == found, pattern
        assert (f"data.unlabelled = {pattern!r}: no video that is not named" in understood.surprises) == (not found)


def test_numbers_and_folders_that_disagree(tmp_path):
    (tmp_path / "names.txt").write_text("jump high\nrun\n")
    (tmp_path / "t.txt").write_text("v/jump_high/a.mp4 0\nv/run/b.mp4 2\n")
    with pytest.raises(ManifestError, match="line 2, field label: .* got 2 for 'v~run~b'; do the labels count from 1"):
        read(tmp_path, train="t.txt", vocab="names.txt")
    (tmp_path / "t.txt").write_text("v/run/b.mp4 1\nv/jump_high/a.mp4 1\n")
    with pytest.raises(ManifestError, match=r"line 2, field label: 1 is class 'run', .* folder of 'jump_high' \(0\)"):
        read(tmp_path, train="t.txt", vocab="names.txt")


def test_blanks_of_class_names_may_be_underscores_in_folders(tmp_path):
    touch(tmp_path, "l/jump_high/a.mp4", "l/run/b.mp4", "l/jump high/c.mp4")
    (tmp_path / "names.txt").write_text("run\njump high\n")
    assert [row[2] for row in read(tmp_path, train="l/", vocab="names.txt")[0]] == [1, 1, 0]


HARD = [
    "-a b.mp4",
    "#%[x]?{}.mp4",
    "ü'\".Mp4",
    "a\nb.mp4",
    "c\\d.mp4",
    "e..f.mp4",
    "x" * 250 + ".mp4",
    "~.mp4",
    "0.mp4",
]


def test_any_file_name(tmp_path):
    touch(tmp_path, *(f"l/{label}/{name}" for label in "XY" for name in HARD))
    touch(tmp_path, "u/same.mp4", "u/same.avi", "u/l~X~0.mp4", "u/%s/a.mp4" % ("d" * 200))
    with open(os.fsencode(tmp_path) + b"/u/\xff.mp4", "wb"):
        pass
    rows, _, _ = read(tmp_path, train="l/", unlabelled="u")
    assert {row[1] for row in rows[:-4]} == {f"l/{label}/{name}" for label in "XY" for name in HARD}
    ids = [row[0] for row in rows]
    assert len(set(ids)) == len(ids) == 2 * len(HARD) + 4
    assert all(0 < len(text) <= 200 and "/" not in text and "\n" not in text for text in ids)
    assert sorted(text for text in ids if "same" in text) == ["u~same.avi", "u~same.mp4"]
    assert "u~l~X~0.mp4" in ids
    assert read(tmp_path, train="l/", unlabelled="u")[0] == rows


def test_what_surprises_is_said(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("id,path,label,split\na,x.mp4,0,train\nb,x.mp4,0,train\nc,y.mp4,0,train\n")
    (tmp_path / "u.csv").write_text("id,path,label\nd,y.mp4,0\n")
    (tmp_path / "names.txt").write_text("p\nq\nr\n")
    data = Data(train="t.csv", test="u.csv", vocab="names.txt")
    with caplog.at_level("INFO", "finepseudo"):
        read_annotations(Store(str(tmp_path)), data)
    assert [record.message.removeprefix("annotations: ") for record in caplog.records] == [
        "3 train clips (3 labelled), 1 test clips (1 labelled); 3 classes of 0 to 3 labelled training clips",
        "2 of 3 classes have no labelled training clip: q, r",
        "1 training clips are of files that have test clips too: y.mp4",
        "4 clips are the same file under several ids: a, b, c, d",
    ]
    (tmp_path / "t.csv").write_text("id,label\na,p\nb,q\n")
    surprises = read(tmp_path, train="t.csv", videos="v/{video_id}.*")[2].surprises
    assert surprises == ("no file is there, such as v/a; does data.videos fit?",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"format": "diving"}, r"data.format: no 'diving' \(did you mean .*'finediving'.*; there are json, table,"),
        ({"videos": "*/{video_id}.mp4"}, r"data.videos: expected a path such as .* got '\*/\{video_id\}.mp4'"),
        (
            {"train": "a.zip"},
            r"a.zip: expected annotations in a file ending in .json, .*, got '.zip'; or set data.form",
        ),
        ({"train": "none.csv"}, "none.csv: no such annotation file; set --data.root"),
        ({"train": ".", "format": "json"}, "/.: no such annotation file; set --data.root"),
        ({"train": "nowhere/"}, "nowhere/: expected folders of classes with videos in them, found no video"),
    ],
)
def test_wrong_recipes(tmp_path, data, message):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, **data)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "body", ["", "[]", "{}", "null", "[1]", '[{"id": 1}]', "\0\x01", "a", "[" * 9999, '[{"a":[]}]']
)
@pytest.mark.parametrize("ending", ["txt", "pkl"])
def test_rubbish_is_one_line(tmp_path, name, body, ending):
    (tmp_path / f"x_test_split1.{ending}").write_text(body)
    with pytest.raises(ManifestError) as refused:
        read(tmp_path, format=name, train=f"x_test_split1.{ending}")
    assert "\n" not in str(refused.value)


def test_what_nobody_sees_makes_no_class(tmp_path):
    lines = ["a.mp4,twist", "b.mp4,twist ", "c.mp4,cafe\u0301", "d.mp4,caf\u00e9", "e.mp4,nan", "f.mp4,-1.0"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines]))
    rows, names, _ = read(tmp_path, train="t.csv")
    assert names == ["caf\u00e9", "twist"]
    assert [row[2] for row in rows] == [1, 1, 0, 0, None, None]
    (tmp_path / "n.csv").write_text("path,label\na.mp4,1.0\nb.mp4,0.0\n1/c.mp4,0\n")
    (tmp_path / "v.json").write_text('["x", "y"]')
    assert [row[2] for row in read(tmp_path, train="n.csv", vocab="v.json")[0]] == [1, 0, 0], "1/ is no class"


@pytest.mark.parametrize("split", ["unlabelled", " Unlabelled", "unlabeled "])
def test_the_label_of_a_clip_that_is_to_be_labelled_is_dropped(tmp_path, split):
    (tmp_path / "t.csv").write_text(f'path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,x,"{split}"\n')
    rows, _, understood = read(tmp_path, train="t.csv")
    assert rows[2][2] is None
    assert "1 clips of split 'unlabelled' have a label, which is not used" in understood.surprises


def test_one_file_has_one_path(tmp_path):
    touch(tmp_path, "v/a.mp4", "v/b.mp4", "v/c.mp4")
    (tmp_path / "t.csv").write_text("path,label\n./v/a.mp4,x\nv//b.mp4,y\n")
    for folder in ("v", "./v", "v/", "."):
        rows, _, _ = read(tmp_path, train="t.csv", unlabelled=folder)
        assert [row[1] for row in rows] == ["v/a.mp4", "v/b.mp4", "v/c.mp4"], folder


def test_columns_that_nobody_reads_are_said(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,start_time,end\na.mp4,x,1,2\nb.mp4,y,,\n")
    (surprise, *_) = read(tmp_path, train="t.csv")[2].surprises
    assert surprise.startswith("columns that are not used: start_time (start and end are start_frame, end_frame, ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('path,label\na.mp4,x\nb.mp4,"y\nc.mp4,x\n', "t.csv, line 4: not CSV: unexpected end of data"),
        ("path,class\na.mp4,x\n", "got no label at all; is there a column or field 'label'?"),
        ("path,label\n", "t.csv: no clips|no label at all"),
    ],
)
def test_tables_that_would_be_misread(tmp_path, body, message):
    (tmp_path / "t.csv").write_text(body)
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, train="t.csv")


def test_a_damaged_parquet_is_one_line(tmp_path):
    pq.write_table(
        pa.table({"path": [f"{n}.mp4" for n in range(5000)], "label": ["x", "y"] * 2500}), tmp_path / "t.parquet"
    )
    body = bytearray((tmp_path / "t.parquet").read_bytes())
    body[20:200] = bytes(180)
    (tmp_path / "t.parquet").write_bytes(body)
    with pytest.raises(ManifestError, match="t.parquet: damaged: "):
        read(tmp_path, train="t.parquet")


def test_parts_that_begin_alike_have_ids_of_their_own(tmp_path):
    spans = "a.mp4,x,1000001,1000100\na.mp4,y,1000004,1000101\n"
    (tmp_path / "t.csv").write_text(f"path,label,start_frame,end_frame\n{spans}")
    assert [row[0] for row in read(tmp_path, train="t.csv")[0]] == ["a@1000001-1000100", "a@1000004-1000101"]
