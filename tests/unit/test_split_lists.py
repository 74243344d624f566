"""Lists of split halves, ours and foreign, against the clips that there are."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from finepseudo.data.formats.lists import digest, overlap, read_list
from finepseudo.errors import ManifestError
from finepseudo.storage.store import Store

SHOTS = Path(__file__).parents[3] / "shared/data/annotations/splits/vpd_fewshot"
NAMES = ["A", "B", "C"]
CLIPS = pa.table(
    {
        "video_id": ["A~a", "A~b", "B~a", "B~c d", "e@0-4", "e@4-9"],
        "path": ["v/A/a.mp4", "v/A/b.MP4", "v/B/a.mp4", "v/B/c d.webm", "w/e.mkv", "w/e.mkv"],
        "label": pa.array([0, 0, 1, 1, 2, None], pa.int32()),
    }
)


def read(tmp_path, body, name="list.txt", half="labelled"):
    (tmp_path / name).write_bytes(body if isinstance(body, bytes) else body.encode())
    rows, report = read_list(Store(str(tmp_path)), name, CLIPS, half=half)
    assert rows.dtype == np.int64
    return rows.tolist(), report


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ("A~b\nB~c d.mp4\n", [1, 3]),
        ("v/A/b.MP4\r\n\r\nv/A/a.mp4\r\n", [0, 1]),
        ("A/b 120 0\nA/a 7 0", [0, 1]),  # of frames in folders, without an end of the last line
        ("/home/x/data/v/B/c d.avi 1\n/home/x/data/w/A/b.avi 0\n", [1, 3]),
        ("b.mp4\nc d.mp4\n", [1, 3]),
        ("C:\\v\\A\\b.mp4,0\n./A/a.mp4,0\n", [0, 1]),
        ("e@4-9\ne@0-4\n", [4, 5]),
        ("b\n", [1]),
        ("other/b.mp4\n", [1]),
    ],
)
def test_forms_in_the_wild(tmp_path, body, rows):
    found, report = read(tmp_path, body)
    assert found == rows
    assert (report.entries, report.matched, report.unmatched) == (len(rows), len(rows), ())


def test_arrays_and_json(tmp_path):
    np.save(tmp_path / "u.npy", np.array(["B~c d", "A~b", "A~b"]))
    rows, report = read(tmp_path, (tmp_path / "u.npy").read_bytes(), "u.npy")
    assert (rows, report.repeated) == ([1, 3], 1)
    assert read(tmp_path, '["A~b", {"video_id": "A~a"}]', "l.json")[0] == [0, 1]
    lists = {"labelled": ["A~b", "B~c d"], "unlabelled": ["A~a"]}
    both = json.dumps(lists | {"digests": {half: digest(ids) for half, ids in lists.items()}}).encode()
    rows, report = read(tmp_path, both, "l.json")
    assert (rows, report.digest) == ([1, 3], digest(["B~c d", "A~b"]))
    assert read(tmp_path, both, "l.json", half="unlabelled")[0] == [0]
    with pytest.raises(
        ManifestError, match=f"l.json: its labelled list has the digest .*, it says {report.digest}; changed"
    ):
        read(tmp_path, both.replace(b"A~b", b"A~x"), "l.json")
    assert read_list(Store("/nowhere"), str(tmp_path / "u.npy"), CLIPS)[0].tolist() == [1, 3], "an address of its own"


def test_what_is_understood_is_said(tmp_path):
    _, report = read(tmp_path, "v/A/a.mp4 1\nv/A/a.mp4 1\nv/B/a.mp4 2\ngone.mp4 7\nw/f.mp4\n")
    assert list(report.lines(NAMES)) == [
        f"{tmp_path}/list.txt: 5 entries, 2 clips, digest {digest(['A~a', 'B~a'])}",
        "2 entries match no clip: gone.mp4 (4), w/f.mp4 (5)",
        "1 entries name a clip that the list has already",
        "1 classes are not in it: C",
        "all its labels are the clips' +1: it seems to count from 1",
    ]
    _, report = read(tmp_path, "v/A/a.mp4 1\nv/B/a.mp4 1\ne@0-4\ne@4-9\n")
    assert list(report.lines(NAMES))[1:] == ["1 of its labels are not those of the annotations, which are used"]
    _, report = read(tmp_path, "v/A/a.mp4 0\nv/B/a.mp4 1\ne@0-4\n")
    assert len(list(report.lines(NAMES))) == 1
    assert overlap(np.array([1, 2]), np.array([2, 3])) == "1 clips are in the labelled and in the unlabelled list"
    assert overlap(np.array([1, 2]), np.array([1, 2, 3])).endswith("list, all labelled ones among them")
    assert overlap(np.array([1]), np.array([2])) == ""


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("l.txt", "A/a\nX/a.mp4\n", r"l.txt, line 2: 'X/a.mp4' fits two clips, 'A~a' and 'B~a'; give their ids"),
        ("l.txt", "w/e.mkv 2\n", "line 1: 'w/e.mkv' fits two clips, 'e@0-4' and 'e@4-9'"),
        ("l.txt", "\n", "l.txt: expected a list of clips, got none"),
        ("l.txt", b"\xff\xfe", "l.txt: not text in UTF-8"),
        ("l.json", "[]", "expected a list of clips, got none"),
        ("l.json", '{"ids": []}', "expected a list of ids, or an object with 'labelled', got "),
        ("l.json", '["a", 3]', "l.json, entry 1: expected an id, got 3"),
        ("l.npy", b"x", "l.npy: not a numpy array of plain values"),
        ("l.npy", np.array([1, 6]), "expected one row of ids or paths .of what would numbers be.., got array"),
        ("l.npy", np.array([{}], object), "not a numpy array of plain values: .*allow_pickle"),
    ],
)
def test_wrong_lists(tmp_path, name, body, message):
    if isinstance(body, np.ndarray):
        np.save(tmp_path / name, body)
        body = (tmp_path / name).read_bytes()
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, body, name)


def test_no_list(tmp_path):
    with pytest.raises(ManifestError, match="nowhere.txt: no such"):
        read_list(Store(str(tmp_path)), "nowhere.txt", CLIPS)


@pytest.mark.skipif(not SHOTS.is_dir(), reason="the samples are not here")
@pytest.mark.parametrize(("data", "k", "count"), [("diving48", 4, 188), ("diving48", 128, 4956), ("finegym99", 4, 396)])
def test_real_lists_of_few_shots(data, k, count):
    file = SHOTS / data / f"train_{k}_0.ids.txt"
    ids = file.read_text().split()
    clips = pa.table(
        {"video_id": ids[1:], "path": [f"v/{name}.mp4" for name in ids[1:]], "label": [0] * (len(ids) - 1)}
    )
    rows, report = read_list(Store("/"), str(file), clips)
    assert (report.entries, len(rows), report.unmatched) == (count, count - 1, (f"{ids[0]} (1)",))


def test_digests_are_of_the_clips_alone():
    assert digest(["b", "a"]) == digest(["a", "b"]) != digest(["a"])
    assert digest(["a", "b"], in_order=True) == digest(["b", "a"])


def test_an_id_that_ends_as_a_file_does_is_itself(tmp_path):
    """As ids of two files of one stem do; and a superscript is no label."""
    ids = ["v~a.mp4", "v~a.avi", "v~b b"]
    clips = pa.table({"video_id": ids, "path": ["v/a.mp4", "v/a.avi", "v/b b.mp4"], "label": [0, 1, 0]})
    (tmp_path / "l.json").write_text(json.dumps({"labelled": ids, "digests": {"labelled": digest(ids)}}))
    assert read_list(Store(str(tmp_path)), "l.json", clips)[0].tolist() == [0, 1, 2]
    (tmp_path / "m.json").write_text(json.dumps({"labelled": ids[:1], "digests": ["x"]}))
    assert read_list(Store(str(tmp_path)), "m.json", clips)[0].tolist() == [0]
    (tmp_path / "l.txt").write_text("v/b b.mp4 \u00b2\n")
    assert read_list(Store(str(tmp_path)), "l.txt", clips)[0].tolist() == [2]
