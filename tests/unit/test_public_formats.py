"""Real annotations of public data sets, as published, and the traps in each."""

import collections
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from finepseudo.data.formats import read_collection
from finepseudo.errors import ManifestError
from finepseudo.recipe import Data
from finepseudo.storage.store import Store

REAL = Path(__file__).parents[3] / "shared/data/annotations"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the samples are not here")


def read(root, **data):
    found = read_collection(Store(str(root)), Data(**{"test": "", "vocab": "", **data}))
    return found.clips.to_pylist(), found.class_names, found.understood


def write(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path


GYM = {"train": "gym99_train_element_v1.1.txt", "test": "gym99_val_element.txt", "vocab": "gym99_categories.txt"}
GYM288 = {key: name.replace("99", "288") for key, name in GYM.items()}
DIVING48 = {"train": "Diving48_V2_train.json", "test": "Diving48_V2_test.json", "vocab": "Diving48_vocab.json"}
UCF = {"train": "trainlist01.txt", "test": "testlist01.txt", "vocab": "classInd.txt"}


@real
@pytest.mark.parametrize(
    ("folder", "data", "train", "test", "classes"),
    [
        ("diving48", DIVING48, 40, 40, 48),
        ("diving48", DIVING48 | {"format": "diving48", "vocab": "label_map.txt"}, 40, 40, 48),
        ("finegym", GYM | {"format": "finegym"}, 40, 40, 99),
        ("finegym", GYM288 | {"format": "finegym"}, 40, 40, 288),
        ("finediving", {"format": "finediving", "train": "full_train.json", "test": "full_test.json"}, 1801, 749, 52),
        ("finediving", {"format": "finediving", "train": "full_val.json", "test": "full_test.json"}, 450, 749, 47),
        ("kinetics400", {"train": "val.csv", "vocab": "mmaction2_label_map_k400.txt"}, 0, 39, 400),
        (
            "kinetics400",
            {
                "train": "kinetics400_train_1_percent_labeled_videos.txt", "test": "test.csv",
                "vocab": "mmaction2_label_map_k400.txt",
            },
            40, 39, 400,
        ),
        ("ucf101", UCF | {"format": "ucf101"}, 40, 40, 101),
        ("hmdb51", {"format": "hmdb51", "train": "*_test_split1.txt"}, 41, 16, 2),
    ],
)  # fmt: skip
def test_real_annotations(folder, data, train, test, classes):
    rows, names, understood = read(REAL / folder, **data)
    assert understood.clips == {"train": train, "test": test}
    assert len(names) == len(set(names)) == classes
    assert len({row["video_id"] for row in rows}) == len(rows) == train + test


@real
def test_real_entries():
    """The first clip of each set, its part, and what surprises."""
    rows, names, understood = read(REAL / "diving48", **DIVING48, videos="rgb/{video_id}.mp4")
    assert rows[0] == {
        "video_id": "-mmq0PT-u8k_00155", "file": "rgb/-mmq0PT-u8k_00155.mp4", "label": 0, "split": "train",
        "start": 0, "end": 48, "seconds": False, "where": 0,
    }  # fmt: skip
    assert names[0] == "Back-15som-05Twis-FREE"
    assert names[30] in [names[label] for label in range(48) if label not in {row["label"] for row in rows}]
    assert any("classes have no labelled training clip" in text for text in understood.surprises)

    rows, names, _ = read(REAL / "finegym", **GYM, format="finegym")
    assert (rows[0]["video_id"], rows[0]["start"], rows[0]["label"]) == (first_line("finegym", GYM["train"]), None, 93)
    assert "(BB) salto backward tucked (set 35)" in names, "it stands in two sets"

    rows, names, _ = read(REAL / "finediving", format="finediving", train="full_train.json", videos="f/{video_id}")
    assert (rows[0]["video_id"], rows[0]["file"], names[rows[0]["label"]]) == ("01__10", "f/01/10", "407c")
    alone = [count for count in collections.Counter(row["label"] for row in rows).values() if count == 1]
    test, _, _ = read(REAL / "finediving", format="finediving", train="full_test.json")
    assert len({row["label"] for row in test}) == 44
    assert len(alone) >= 1

    rows, names, _ = read(REAL / "kinetics400", train="val.csv", vocab="mmaction2_label_map_k400.txt")
    assert (rows[0]["video_id"], rows[0]["label"], rows[0]["split"]) == ("0wR5jVB-WPk_000417_000427", 0, "test")
    rows, names, _ = read(REAL / "ucf101", **UCF, format="ucf101", videos="UCF-101/{video_id}.avi")
    assert rows[0]["file"] == "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"
    assert [names[row["label"]] for row in rows] == ["ApplyEyeMakeup"] * 80, "tests have their class as a folder"
    assert names[36] == "HandstandPushups"
    rows, names, understood = read(REAL / "hmdb51", format="hmdb51", train="*_test_split1.txt")
    assert (rows[0]["video_id"], rows[0]["label"]) == ("(Rad)Schlag_die_Bank!_cartwheel_f_cm_np1_le_med_0", 0)
    assert "3 clips are in neither half of the split and left out" in understood.surprises


def first_line(folder, name):
    return (REAL / folder / name).read_text().split()[0]


EVENT = {
    "event": 1,
    "timestamps": [[100.5, 160.0]],
    "segments": {"A_0003_0005": {"stages": 2, "timestamps": [[3.25, 4], [4, 5.75]]}},
}


def test_gymnastics_in_whole_videos(tmp_path):
    ids = ["ab_E_-_A_cd_E_000100_000160_A_0003_0005", "ab_E_-_A_cd_E_000100_000160_A_0007_0007"]
    times = {"ab_E_-_A_cd": {"E_000100_000160": EVENT, "E_000200_000210": EVENT | {"segments": {}}}}
    files = {"l.txt": f"{ids[0]} 0\n{ids[1]} 1\n", "v.txt": "Clabel: 0; set: 1; (VT) x\nClabel: 1; set: 1; (VT) y; z"}
    data = {"format": "finegym_whole", "train": "l.txt", "vocab": "v.txt", "videos": "v/{video_id}.*"}
    with pytest.raises(ManifestError, match=r"/finegym_annotation_info_v1.1.json: no such annotation file"):
        read(write(tmp_path, files), **data)
    write(tmp_path, {"finegym_annotation_info_v1.1.json": json.dumps(times), "v/ab_E_-_A_cd.MKV": ""})
    rows, names, understood = read(tmp_path, **data)
    assert names == ["(VT) x", "(VT) y; z"]
    assert [(row["file"], row["start"], row["end"], row["seconds"]) for row in rows] == [
        ("v/ab_E_-_A_cd.MKV", 103.75, 106.25, True),
        ("v/ab_E_-_A_cd.MKV", 107, 108, True),
    ]
    assert [row["video_id"] for row in rows] == ids
    assert understood.surprises == (
        "1 elements have no times in finegym_annotation_info_v1.1.json: the whole seconds of their ids are taken",
    )
    with pytest.raises(ManifestError, match=r"l.txt, line 1: expected <video>_E_<6 digits>.* got 'ab_E_12 0'"):
        read(write(tmp_path, {"l.txt": "ab_E_12 0"}), **data)


KINDS = {("01", n): {"action_type": f"{n}b", "steps": np.array([2, 34]), "score": np.float64(8)} for n in (1, 2)}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_plain_values_are_read(tmp_path, protocol):
    files = {
        "train_split.pkl": pickle.dumps([("01", 1), ("01", 2)], protocol),
        "FineDiving_fine-grained_annotation.pkl": pickle.dumps(KINDS, protocol),
    }
    rows, names, _ = read(write(tmp_path, files), format="finediving", train="train_split.pkl", videos="f/{video_id}")
    assert [(row["video_id"], row["file"], names[row["label"]]) for row in rows] == [
        ("01__1", "f/01/1", "1b"),
        ("01__2", "f/01/2", "2b"),
    ]


def test_dives_as_events(tmp_path):
    entries = [{"video": f"Men__3m__{n}", "_source_info": {"action_type": kind}} for n, kind in ((1, "1b"), (2, "2b"))]
    data = {"format": "finediving", "train": "t.json", "videos": "{video_id}"}
    rows, _, _ = read(write(tmp_path, {"t.json": json.dumps(entries)}), **data)
    assert [(row["video_id"], row["file"]) for row in rows] == [
        ("Men__3m__1", "Men__3m/1"),
        ("Men__3m__2", "Men__3m/2"),
    ]
    for wrong, problem in (
        ({"_source_info": None}, "field _source_info: .* got None"),
        ({"video": "../x"}, "field video"),
    ):
        with pytest.raises(ManifestError, match=f"t.json, entry 1, {problem}"):
            read(write(tmp_path, {"t.json": json.dumps([entries[0], entries[1] | wrong])}), **data)


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (pickle.dumps([Runs(Path.touch, "/never")]), r"asks for pathlib\.Path.* refused"),
        (pickle.dumps([Runs(eval, "1")]), r"train_split.pkl: not .*asks for builtins\.eval, which is refused"),
        (pickle.dumps([Runs(np.load, "x")]), r"asks for numpy\.load"),
        (pickle.dumps([("01", 3)]), r"entry 0: expected an action_type for \('01', 3\) beside it, got None"),
        (pickle.dumps([("01",)]), r"entry 0: expected \(video, number\), got \('01',\)"),
        (pickle.dumps({}), r"expected a list of \(video, number\), got \{\}"),
        (pickle.dumps([1, 2])[:-3], "not a pickle of plain values"),
        (b"", "not a pickle of plain values"),
        (b"\x80\x05\x96" + b"\xff" * 8 + b".", "not a pickle of plain values"),  # bytes beyond all memory
        (b"\x80\x04]\x94(", "not a pickle"),
    ],
)
def test_pickles_that_could_run_something_are_refused(tmp_path, body, message):
    files = {"train_split.pkl": body, "FineDiving_coarse_annotation.pkl": pickle.dumps(KINDS)}
    with pytest.raises(ManifestError, match=message):
        read(write(tmp_path, files), format="finediving", train="train_split.pkl")


KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
"massaging person's head (a, b)",-abcdefghij,5,15,train,0
using segway,_bcdefghijk,0,10,train,0
using segway,cdefghijklm,0,10,train,0
"""


@pytest.mark.parametrize(
    ("videos", "files"),
    [
        ("t/**/{video_id}.*", ["t/massaging_person's_head/{}.mp4", "t/using_segway/{}.MP4"]),
        ("t/**/{video_id}.mp4", ["t/using segway/{}.mp4", "t/a.b/c/{}.mp4"]),
        ("t/{video_id}.*", ["t/{}.webm", "t/{}.mp4"]),
        ("t/**/{video_id}.*", ["t/part_1/{}.mp4", "t/part_1/{}.mp4", "t/replacement/{}.mp4"]),
    ],
)
def test_kinetics_in_all_its_folders(tmp_path, videos, files):
    ids = ["-abcdefghij_000005_000015", "_bcdefghijk_000000_000010", "_bcdefghijk_000000_000010"]
    there = [file.format(video_id) for file, video_id in zip(files, ids, strict=False)]
    write(tmp_path, {"train.csv": KINETICS, "t/_bcdefghijk_000000_000010.json": ""} | dict.fromkeys(there, ""))
    rows, names, understood = read(tmp_path, train="train.csv", videos=videos)
    assert [row["file"] for row in rows][:2] == [there[0], there[-1]]
    assert names == ["massaging person's head (a, b)", "using segway"]
    assert understood.surprises == ()
    assert understood.missing == 1, "a file that is not there is counted, and the manifest's to reject"
    assert str(understood).startswith(
        "3 train clips (3 labelled), 0 test clips (0 labelled); 1 of their files are miss"
    )


def test_two_files_of_one_clip_are_an_error(tmp_path):
    write(
        tmp_path, {"train.csv": KINETICS, "a/cdefghijklm_000000_000010.mp4": "", "b/cdefghijklm_000000_000010.avi": ""}
    )
    with pytest.raises(ManifestError, match=r"train.csv, line 4: several files for 'cdef.*: a/cdef.*mp4, b/cdef.*avi"):
        read(tmp_path, train="train.csv", videos="**/{video_id}.*")


def test_something_something(tmp_path):
    clips = [
        {"id": "78687", "label": "holding a, not b's", "template": "Holding [something], not [one]'s"},
        {"id": "2", "label": "x", "template": "Tearing [something]"},
    ]  # fmt: skip
    names = {"Tearing something": "1", "Holding something, not one's": "0"}
    files = {"t.json": clips, "v.json": names, "test.json": [{"id": "9"}]}
    write(tmp_path, {name: json.dumps(body) for name, body in files.items()})
    data = {"format": "something_v2", "train": "t.json", "test": "test.json", "videos": "{video_id}.webm"}
    rows, classes, _ = read(tmp_path, **data, vocab="v.json")
    assert classes == ["Holding something, not one's", "Tearing something"]
    assert [(row["file"], row["label"], row["split"]) for row in rows] == [
        ("78687.webm", 0, "train"), ("2.webm", 1, "train"), ("9.webm", None, "test"),
    ]  # fmt: skip
    write(tmp_path, {"many.json": json.dumps({name: str(at) for at, name in reversed([*enumerate("ihgfedcbaTS")])})})
    assert read(tmp_path, **data | {"train": "test.json"}, vocab="many.json")[1] == [*"ihgfedcbaTS"]
    write(tmp_path, {"t.json": json.dumps([{"id": "1", "template": "Eating [something]"}])})
    with pytest.raises(ManifestError, match=r"t.json, entry 0, field label: .* got 'Eating something' for '1'"):
        read(tmp_path, **data, vocab="v.json")


def test_ucf101(tmp_path):
    files = {
        "classInd.txt": "1 Archery\r\n2 HandstandPushups\r\n",
        "train.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi 2\r\nArchery/v_Archery_g01_c01.avi 1\r\n",
    }
    rows, names, _ = read(write(tmp_path, files), format="ucf101", train="train.txt", vocab="classInd.txt")
    assert names == ["Archery", "HandstandPushups"]
    assert [(row["video_id"], row["label"]) for row in rows] == [
        ("v_HandStandPushups_g01_c01", 1), ("v_Archery_g01_c01", 0),
    ]  # fmt: skip
    with pytest.raises(ManifestError, match=r"train.txt, line 1: expected <class>/<file>.* got 'v.avi 1'"):
        read(write(tmp_path, {"train.txt": "v.avi 1"}), format="ucf101", train="train.txt", vocab="classInd.txt")


def test_hmdb51(tmp_path):
    hard = "a_(b)[c]!#&;+~@-'d_wave_f_cm_np1"
    files = {"s/wave_test_split1.txt": f"{hard}.avi 1 \nx y.avi 2 \nz.avi 0 \n", "s/sit_test_split1.txt": "q.avi 1 \n",
             "s/sit_test_split2.txt": "r.avi 1 \n"}  # fmt: skip
    data = {"format": "hmdb51", "videos": "v/{video_id}.avi"}
    rows, _, _ = read(write(tmp_path, files), **data, train="s/*_test_split1.txt")
    assert [(row["file"], row["label"], row["split"]) for row in rows] == [
        ("v/sit/q.avi", 0, "train"), (f"v/wave/{hard}.avi", 1, "train"), ("v/wave/x y.avi", 1, "test"),
    ]  # fmt: skip
    with pytest.raises(
        ManifestError, match=r"wave_test_split1.txt, line 1: expected a file and 0, 1 or 2, got 'a.avi 3'"
    ):
        read(write(tmp_path, {"s/wave_test_split1.txt": "a.avi 3"}), **data, train="s/*_test_split1.txt")
    with pytest.raises(ManifestError, match=r"s/\*_split9.txt: no such annotation files"):
        read(tmp_path, **data, train="s/*_split9.txt")


@pytest.mark.parametrize("line", ["/data/k/{}.mp4 1", "{}.avi 64 1", "C:/k/{}.mp4,1", "k/{} 1", "{} 64 1"])
def test_lists_from_elsewhere(tmp_path, line):
    files = {"train.csv": line.format("B/v w") + "\n" + line.format("A/v w").replace("1", "0"), "x/y/B/v w.mp4": "",
             "x/y/A/v w.MP4": "", "v.txt": "A\nB\n"}  # fmt: skip
    data = {"format": "list", "train": "train.csv", "vocab": "v.txt"}
    rows, _, understood = read(write(tmp_path, files), **data, videos="x/**/{video_id}.*")
    assert [(row["file"], row["label"]) for row in rows] == [("x/y/B/v w.mp4", 1), ("x/y/A/v w.MP4", 0)]
    assert understood.missing == 0
