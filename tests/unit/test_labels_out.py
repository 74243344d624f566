"""Labels as files: what a row says, that every form says the same, and that nothing stands there by half."""

import csv
import json
import logging
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_run import LABELLED, NAMES, commit_round, labelled_run

from finepseudo.errors import ArtefactError, RecipeError
from finepseudo.labels import outcome as module
from finepseudo.labels import tools
from finepseudo.labels.export import FORMS, export, form_of
from finepseudo.labels.forms import plain
from finepseudo.labels.outcome import OUTCOME, UNDECODED, Outcome
from finepseudo.run import Run
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

REASON = "cannot be opened: damaged"
PART = {"start": [0] * 8 + [50] + [0] * 5, "num_frames": [99] * 8 + [25] + [99] * 5}  # v008 is a part of its file
REFUSED = {
    "status": ["ok"] * 12 + ["rejected", "rejected"],
    "reason": [""] * 12 + [REASON] * 2,
    "split": ["train"] * 11 + ["test", "train", "test"],
}


@pytest.fixture
def run(tmp_path):
    """D_u is v006 to v010, of which v009 could not be decoded in round 2; v012 was rejected, v013 is a test clip."""
    return labelled_run(tmp_path / "run", undecoded=[9], **PART, **REFUSED)


def rows(outcome):
    return [row for batch in outcome.batches() for row in batch.to_pylist()]


def by_id(outcome):
    return {row["video_id"]: row for row in rows(outcome)}


def test_a_row_says_what_the_last_round_and_all_others_made_of_a_clip(run):
    outcome = Outcome(run)
    found, made = by_id(outcome), {row["video_id"]: row for row in run.labels("finepseudo/round-2").to_pylist()}
    before = {row["video_id"]: row for row in run.labels("finepseudo/round-1").to_pylist()}
    assert list(found) == ["v006", "v007", "v008", "v009", "v010", "v012"]
    assert outcome.labelled == 4
    for video_id, label in made.items():
        row = found[video_id]
        for name in ("confidence", "confidence_A", "confidence_E", "accepted", "knownness"):
            assert row[name] == label[name]
        for name in ("label", "label_A", "label_E"):
            assert row[name] == NAMES[label[name]]
        assert [of["label"] for of in row["top"]] == [NAMES[k] for k in label["top"]]
        assert [of["p"] for of in row["top"]] == label["top_p"]
        assert [of["video_id"] for of in row["near"]] == [f"v{clip:03d}" for clip in label["near"]]
        assert [of["label"] for of in row["near"]] == [NAMES[clip] for clip in label["near"]], "v000 is of class 0, ..."
        assert [of["alignability"] for of in row["near"]] == label["near_S"]
        assert (row["known"], row["reason"]) == (None, None)
        assert row["rounds"] == [
            {"round": number, "label": NAMES[of["label"]], "confidence": of["confidence"], "accepted": of["accepted"]}
            for number, of in ((1, before[video_id]), (2, label))
        ]


def test_a_clip_without_a_label_says_why(run):
    found = by_id(Outcome(run))
    for video_id, reason in (("v009", UNDECODED), ("v012", REASON)):
        row = found[video_id]
        assert row["reason"] == reason
        assert {row[name] for name in ("label", "confidence", "accepted", "label_E", "knownness", "top", "near")} == {
            None
        }
    assert [of["round"] for of in found["v009"]["rounds"]] == [1]
    assert found["v012"]["rounds"] == []


def test_a_clip_that_the_pass_left_out_has_its_reason(tmp_path):
    found = by_id(Outcome(labelled_run(tmp_path / "run", undecoded=[9, 10])))
    assert [found[clip]["reason"] for clip in ("v009", "v010", "v011")] == [UNDECODED, f"{UNDECODED}: cut: 10", None]


def test_a_part_of_a_file_says_which(run):
    found = by_id(Outcome(run))
    part = {name: found["v008"][name] for name in ("file", "start_s", "end_s", "first_frame", "num_frames")}
    assert part == {"file": "v/8.mp4", "start_s": 2.0, "end_s": 3.0, "first_frame": 50, "num_frames": 25}
    whole = {name: found["v007"][name] for name in part}
    assert whole == {"file": "v/7.mp4", "start_s": None, "end_s": None, "first_frame": None, "num_frames": 99}


def test_known_is_by_the_bound_that_was_used(tmp_path):
    run = labelled_run(tmp_path, known=0.1)
    for row in rows(Outcome(run)):
        assert row["known"] == (row["knownness"] >= 1)
        assert row["accepted"] == (row["known"] and row["confidence"] >= 0.5)
    assert {row["known"] for row in rows(Outcome(run))} == {True, False}


def test_windows_change_nothing(run, monkeypatch):
    whole = rows(Outcome(run))
    monkeypatch.setattr(module, "WINDOW", 2)
    assert rows(Outcome(run)) == whole


def test_round_10_is_behind_round_9(tmp_path):
    run = labelled_run(tmp_path, rounds=10)
    outcome = Outcome(run)
    assert outcome.last == "finepseudo/round-10"
    assert [of["round"] for of in rows(outcome)[0]["rounds"]] == list(range(1, 11))


def test_whose_labels(tmp_path, caplog):
    run = labelled_run(tmp_path, rounds=2, method="pseudo_video")
    assert Outcome(run).method == "pseudo_video"
    assert f"{tmp_path} is not finished: these are the labels of round 2 of 3" in caplog.text
    commit_round(run.store, run.manifest(), np.arange(LABELLED, 14), "finepseudo/round-1")
    assert Outcome(run).method == "finepseudo", "the last of the methods, where none is chosen"
    assert Outcome(run, "pseudo_video").last == "pseudo_video/round-2"
    with pytest.raises(RecipeError, match="no labels of method 'pseudo_align' in .*, only of finepseudo, pseudo_video"):
        Outcome(run, "pseudo_align")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ArtefactError, match=r"nothing is no run directory: no recipe.json in it"):
        Outcome(Run.at(Store(str(tmp_path / "nothing"))))
    with pytest.raises(
        ArtefactError, match=r"early has no labels yet; jobs/run.py makes them, by a method of pseudo_v"
    ):
        Outcome(labelled_run(tmp_path / "early", rounds=0))
    old = labelled_run(tmp_path / "old", without=["near", "near_S"])
    with pytest.raises(ArtefactError, match=rf"round-2 has no column near .* another --run and --base {tmp_path}/old"):
        Outcome(old)
    run = labelled_run(tmp_path / "known", known=0.1)
    folder = tmp_path / "known/labels/finepseudo/round-2/committed.json"
    marker = json.loads(folder.read_text())
    del marker["parts"]["known.json"]
    folder.write_text(json.dumps(marker))
    with pytest.raises(ArtefactError, match=r"round-2 has no known.json: an older version made these labels"):
        Outcome(run)


def test_tables_of_every_form_say_the_same(run, tmp_path):
    outcome = Outcome(run)
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert export(outcome, f"{tmp_path}/out/{name}", form_of(name, None)) == [f"{tmp_path}/out/{name}"]
    table = pq.read_table(tmp_path / "out/a.parquet")
    assert table.schema.equals(OUTCOME)
    assert table.to_pylist() == rows(outcome)
    expected = [plain(row) for row in rows(outcome)]
    lines = (tmp_path / "out/a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected
    with (tmp_path / "out/a.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == OUTCOME.names
    for line, row in zip(found, expected, strict=True):
        texts = {name: value for name, value in row.items() if isinstance(value, str)}
        assert {name: line[name] for name in texts} == texts
        rest = {name: json.loads(line[name]) if line[name] else None for name in row.keys() - texts.keys()}
        assert rest == {name: row[name] for name in rest}


def test_numbers_are_as_short_as_they_were_written():
    assert plain({"p": float(np.float32(0.9)), "of": [float(np.float32(1 / 3))], "n": 3, "not": None}) == {
        "p": 0.9, "of": [0.3333333], "n": 3, "not": None,
    }  # fmt: skip


def test_label_studio_gets_tasks_in_parts_and_the_interface_they_ask_for(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tools, "TASKS", 3)
    caplog.set_level(logging.INFO, "finepseudo")
    made = export(Outcome(run), f"{tmp_path}/ls", "label-studio")
    assert [name.rpartition("/")[2] for name in made] == ["labeling.xml", "tasks-00000.json", "tasks-00001.json"]
    tasks = [task for name in made[1:] for task in json.loads(Store("/").read(name[1:]))]
    view = ElementTree.parse(made[0]).getroot()
    assert [choice.get("value") for choice in view.find("Choices")] == list(NAMES)
    variables = {node.get("value")[1:] for node in view if (node.get("value") or "").startswith("$")}
    rows_of = {row["video_id"]: plain(row) for row in rows(Outcome(run))}
    for task in tasks:
        assert set(task) == {"data", "predictions"}
        row = rows_of[task["data"]["video_id"]]
        assert variables <= task["data"].keys()
        assert all(isinstance(task["data"][name], str) for name in variables)
        (prediction,) = task["predictions"]
        assert (prediction["model_version"], prediction["score"]) == ("finepseudo/round-2", row["confidence"])
        (result,) = prediction["result"]
        assert result == {
            "from_name": view.find("Choices").get("name"), "to_name": view.find("Video").get("name"),
            "type": "choices", "value": {"choices": [row["label"]]},
        }  # fmt: skip
    assert [task["data"]["video_id"] for task in tasks] == ["v006", "v007", "v008", "v010"]
    assert [task["data"]["part"] for task in tasks] == ["whole file", "whole file", "2 to 3 s", "whole file"]
    assert tasks[0]["data"]["video"] == "/data/local-files/?d=data/v/6.mp4"
    root = run.data().uri()
    assert f"DOCUMENT_ROOT={tmp_path}/run, and add {root} to the project" in caplog.text


def test_fiftyone_gets_a_sample_a_clip_and_files_where_they_lie(run, tmp_path):
    files, labels = (
        json.loads(Store("/").read(name[1:])) for name in export(Outcome(run), f"{tmp_path}/fo", "fiftyone")
    )
    assert files == {f"v{row:03d}.mp4": f"{tmp_path}/run/data/v/{row}.mp4" for row in (6, 7, 8, 10)}
    assert labels["classes"] == list(NAMES)
    assert list(labels["labels"]) == ["v006", "v007", "v008", "v010"], "keys of files, less what looks like an ending"
    rows_of = {row["video_id"]: plain(row) for row in rows(Outcome(run))}
    for video_id, (found,) in labels["labels"].items():
        row = rows_of[video_id]
        assert (found["label"], found["confidence"]) == (row["label"], row["confidence"])
        assert found["support"] == ([51, 75] if video_id == "v008" else [1, 99])
        assert found["attributes"]["label_A"] == row["label_A"]
        assert "known" not in found["attributes"], "nothing is said of what is not known"


def test_names_and_places_of_files_that_programs_could_misread(tmp_path, caplog):
    """An id with a point, a folder of pictures, a file that asks for escapes; on a disk, and elsewhere."""
    columns = {"video_id": [f"v@{row}.5" for row in range(10)], "path": [f"a b/ü&{row}" for row in range(10)]}
    run = labelled_run(tmp_path / "run", count=10, **columns)
    (files, _) = (json.loads(Store("/").read(name[1:])) for name in export(Outcome(run), f"{tmp_path}/fo", "fiftyone"))
    assert files["v@6.5.mp4"] == f"{tmp_path}/run/data/a b/ü&6"
    _, tasks = export(Outcome(run), f"{tmp_path}/ls", "label-studio")
    (first, *_) = json.loads(Store("/").read(tasks[1:]))
    assert first["data"]["video"] == "/data/local-files/?d=data/a%20b/%C3%BC%266"
    elsewhere = Outcome(run)
    elsewhere.data = Store("s3://bucket/dives")
    _, tasks = export(elsewhere, f"{tmp_path}/ls3", "label-studio")
    assert json.loads(Store("/").read(tasks[1:]))[0]["data"]["video"] == "s3://bucket/dives/a b/ü&6"
    data, _ = export(elsewhere, f"{tmp_path}/fo3", "fiftyone")
    assert json.loads(Store("/").read(data[1:]))["v@6.5.mp4"] == "a b/ü&6"
    assert "mount or copy s3://bucket/dives to the folder in which data.json lies" in caplog.text


def test_cleanlab_gets_probabilities_that_sum_to_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 2)
    (made,) = export(Outcome(run), f"{tmp_path}/c.npz", "cleanlab")
    with np.load(made, allow_pickle=False) as found:
        arrays = dict(found)
    expected = run.labels("finepseudo/round-2").to_pylist()
    assert arrays["ids"].tolist() == [row["video_id"] for row in expected]
    for name in ("label", "label_A", "label_E"):
        assert arrays[f"labels{name[5:]}"].tolist() == [row[name] for row in expected]
    assert arrays["class_names"].tolist() == list(NAMES)
    p_NK = arrays["pred_probs"]
    assert (p_NK.dtype, p_NK.shape) == (np.float32, (4, len(NAMES)))
    np.testing.assert_allclose(p_NK.sum(1), 1, atol=1e-6)
    for p_K, row in zip(p_NK, expected, strict=True):
        np.testing.assert_array_equal(p_K[row["top"]], np.array(row["top_p"], np.float32))
        others = np.setdiff1d(np.arange(len(NAMES)), row["top"])
        np.testing.assert_allclose(p_K[others], max(0, 1 - sum(row["top_p"])) / len(others), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_overwritten_unasked_or_written_by_half(run, tmp_path, monkeypatch, form):
    to = f"{tmp_path}/out/labels{FORMS[form].ending}"
    place = Store(f"{tmp_path}/out")

    class Killed(BaseException):
        pass

    def torn(_, path):
        (path if FORMS[form].ending else path / "tasks-00000.json").write_text("half")
        raise Killed

    whole = FORMS[form]
    monkeypatch.setitem(FORMS, form, replace(whole, write=torn))
    with pytest.raises(Killed):
        export(Outcome(run), to, form)
    assert place.list() == []
    monkeypatch.setitem(FORMS, form, whole)
    made = export(Outcome(run), to, form)
    with pytest.raises(ArtefactError, match=rf"{to} is there already; --force replaces it"):
        export(Outcome(run), to, form)
    before = {name: Store("/").read(name[1:]) for name in made}
    commit_round(run.store, run.manifest(), np.arange(LABELLED, 9), "finepseudo/round-3", seed=3)
    export(Outcome(run), to, form, force=True)
    after = {name: Store("/").read(name[1:]) for name in made}
    assert before[made[-1]] != after[made[-1]]


def test_a_folder_is_whole_when_its_marker_is_there(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "TASKS", 1)
    made = export(Outcome(run), f"{tmp_path}/ls", "label-studio")
    marker = artefacts.required(Store(str(tmp_path)), "ls")
    assert [f"{tmp_path}/ls/{name}" for name in marker["parts"]] == made
    assert marker["lineage"] == {"run": run.store.uri(), "round": "finepseudo/round-2", "form": "label-studio"}
    for name in marker["parts"]:
        artefacts.read_part(Store(str(tmp_path)), "ls", name)
    (tmp_path / "ls/mine.txt").write_text("")
    monkeypatch.setattr(tools, "TASKS", 50)
    export(Outcome(run), f"{tmp_path}/ls", "label-studio", force=True)
    names = {"labeling.xml", "tasks-00000.json", "committed.json", "mine.txt"}
    assert {path.name for path in (tmp_path / "ls").iterdir()} == names, "no task of the export before, and not less"


def test_any_store_will_do(run):
    (made,) = export(Outcome(run), "memory://labels/out/a.jsonl", "jsonl")
    assert made == "memory://labels/out/a.jsonl"
    there = Store("memory://labels/out")
    assert len(there.read("a.jsonl").splitlines()) == 6
    export(Outcome(run), "memory://labels/out/fo", "fiftyone")
    assert there.list("fo") == ["committed.json", "data.json", "labels.json"]


@pytest.mark.parametrize(
    ("to", "asked", "form"),
    [("a.CSV", None, "csv"), ("x/a.npz", None, "cleanlab"), ("a.txt", "jsonl", "jsonl"), ("a.csv", "csv", "csv")],
)
def test_the_form_is_the_ending_or_what_is_asked_for(to, asked, form):
    assert form_of(to, asked) == form


@pytest.mark.parametrize(
    ("to", "asked", "message"),
    [
        (
            "a.txt",
            None,
            r"--to a.txt: its ending says no form; expected .csv, .parquet, .* or --as with one of csv, par",
        ),
        ("a.csv", "parquet", "--to a.csv ends as csv does, and --as is parquet"),
    ],
)
def test_a_form_that_nothing_says_is_an_error(to, asked, message):
    with pytest.raises(RecipeError, match=message):
        form_of(to, asked)
