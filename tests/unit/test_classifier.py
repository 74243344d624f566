"""What a finished run says of other videos: as its evaluation does, from the run or from a folder that stands alone."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import finepseudo
from finepseudo import measures, rehearsal
from finepseudo.classifier import Classifier, _known
from finepseudo.data.transforms import centre
from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.export import export_classifier
from finepseudo.driver.predict import find_videos, predict_videos
from finepseudo.driver.rounds import run_rounds
from finepseudo.errors import ArtefactError, ManifestError, RecipeError
from finepseudo.labels.predictions import ending_of, write_predictions
from finepseudo.models.table import Preprocessing
from finepseudo.recipe import changed
from finepseudo.recipes import find
from finepseudo.run import Run
from finepseudo.storage.store import Store
from finepseudo.train.predict import Pass, Predictor

ROOT = Path(__file__).parents[2]
SMOKE = find("rehearsal_smoke")
RECIPE = replace(
    SMOKE,
    methods=("finepseudo",),
    gitdl=replace(SMOKE.gitdl, frame_steps=2, video_steps=0),
    align=replace(SMOKE.align, steps=4),
    supervise=replace(SMOKE.supervise, steps=6),
    rounds=replace(SMOKE.rounds, video_steps=2),
    evaluate=replace(SMOKE.evaluate, clips=2),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "run"
    ensure_results(run_rounds(RECIPE, Store(str(folder)), InProcess(RECIPE)))
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Without anything of the run beside it."""
    folder = tmp_path_factory.mktemp("exported") / "dives"
    export_classifier(Classifier.at(Store(str(run))), Store(str(folder)))
    return folder


def predicted(source, videos, work, window_s=None, executor=InProcess, **changes):
    classifier = replace(Classifier.at(Store(str(source))), **changes)
    places = [str(video) for video in videos]
    return list(predict_videos(classifier, places, Store(str(work)), executor(classifier.recipe), window_s))


def evaluated(run):
    """Files of the test videos, their truth, and the label by the evaluation."""
    found = Run.at(Store(str(run))).results()
    table = pq.read_table(run / found.predictions).to_pydict()
    videos = [run / f"data/videos/{video_id}.mp4" for video_id in table["video_id"]]
    return videos, table["truth"], table[found.prediction], found


def test_a_run_says_of_its_test_videos_what_its_evaluation_said(run, tmp_path):
    videos, truth_N, label_N, found = evaluated(run)
    by_video = {Path(row["video"]).name: row for row in predicted(run, videos, tmp_path / "work")}
    rows = [by_video[video.name] for video in videos]
    assert [row["top"][0]["label"] for row in rows] == [found.classes[label] for label in label_N]
    confidence_N = np.array([row["confidence"] for row in rows])
    error = measures.calibration_error(confidence_N, np.array(label_N) == np.array(truth_N))
    assert error == pytest.approx(found.measured["finepseudo"].fused.calibration_error, abs=1e-6)
    assert {row["start_s"] for row in rows} == {None}, "whole files"
    for row in rows:
        assert row["confidence"] == row["top"][0]["p"] >= row["top"][1]["p"]
        assert sum(one["p"] for one in row["top"]) == pytest.approx(1, abs=1e-5), "there are five classes"


def test_what_a_clip_is_near_to_is_a_labelled_clip_and_the_moments_that_meet(run, tmp_path):
    reader = Run.at(Store(str(run)))
    (labelled, *_), names = reader.labelled(), reader.manifest().class_names
    (row,) = predicted(run, [run / f"data/videos/{labelled}.mp4"], tmp_path / "work", clips=1)
    nearest = row["near"][0]
    assert nearest["video_id"] == labelled, "a gallery clip is nearest to itself"
    assert nearest["label"] == names[reader.labelled()[labelled]]
    assert [one["alignability"] for one in row["near"]] == sorted(
        (m["alignability"] for m in row["near"]), reverse=True
    )
    seconds = nearest["end_s"] - nearest["start_s"]
    for mine, theirs in row["path"]:
        assert mine == pytest.approx(theirs, abs=1e-3), "frame by frame"
        assert 0 < mine < seconds
    (row,) = predicted(run, [run / f"data/videos/{labelled}.mp4"], tmp_path / "two", clips=2)
    frames = RECIPE.frames.align
    assert row["path"][0][0] == pytest.approx(0.25 / frames * seconds, abs=1e-3), "the first of two views is earlier"
    assert row["path"][-1][1] == pytest.approx((frames - 0.5) / frames * seconds, abs=1e-3)


def test_an_exported_folder_says_the_same_without_its_run(run, exported, tmp_path):
    videos = evaluated(run)[0][:6]
    assert predicted(exported, videos, tmp_path / "a") == predicted(run, videos, tmp_path / "b")
    moved = shutil.copytree(exported, tmp_path / "moved")
    about = json.loads((moved / "classifier.json").read_text())
    assert str(run) not in (moved / "classifier.json").read_text()
    assert about["inputs"]["f_A.pt2"]["frames"] == RECIPE.frames.align
    assert [row["label"] for row in finepseudo.predict([str(video) for video in videos], str(moved))] == [
        row["label"] for row in predicted(run, videos, tmp_path / "c")
    ]


def test_an_export_is_looked_up_and_never_mixed_with_another(run, exported, tmp_path):
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    export_classifier(Classifier.at(Store(str(run))), Store(str(copy)))
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    fewer = replace(Classifier.at(Store(str(run))), gallery=Classifier.at(Store(str(run))).gallery.take([0, 1]))
    with pytest.raises(ArtefactError, match="was made from something else: gallery"):
        export_classifier(fewer, Store(str(copy)))
    data = bytearray((copy / "video/weights.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "video/weights.safetensors").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"video/weights.safetensors is damaged"):
        predicted(copy, evaluated(run)[0][:1], tmp_path / "work")


PROGRAM = """
import sys
import torch
from safetensors.torch import load_file, save_file
program = torch.export.load(sys.argv[1]).module()
save_file({"out": program(load_file(sys.argv[2])["clip"])}, sys.argv[3])
assert "finepseudo" not in sys.modules
"""


@pytest.mark.parametrize(("name", "part", "frames"), [("f_A.pt2", "frame", 12), ("f_E.pt2", "video", 8)])
def test_a_program_gives_what_its_encoder_gives(exported, tmp_path, name, part, frames):
    clip_BTHWC = torch.randint(0, 256, (3, frames, 32, 32, 3), dtype=torch.uint8)
    normal = centre(clip_BTHWC, RECIPE.augment, RECIPE.frames.crop, Preprocessing())
    save_file({"clip": normal.contiguous()}, tmp_path / "clip")
    command = [sys.executable, "-c", PROGRAM, exported / name, tmp_path / "clip", tmp_path / "out"]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)
    what = Pass(**{part: {"f": str(exported / part)}})
    predictor = Predictor(RECIPE, 5, what, torch.device("cpu"))
    encoder = predictor.frame["f"][0] if part == "frame" else predictor.video["f"]
    with torch.inference_mode():
        torch.testing.assert_close(load_file(tmp_path / "out")["out"], encoder(normal))


def long_video(folder, seconds, fps=10):
    frames_FHWC = np.random.default_rng(0).integers(0, 256, (seconds * fps, 64, 64, 3), dtype=np.uint8)
    (folder / "long.mp4").write_bytes(rehearsal.encode_mp4(frames_FHWC, fps))
    return folder / "long.mp4"


def test_a_long_file_is_cut_into_windows_that_overlap_and_reach_its_end(run, tmp_path):
    video = long_video(tmp_path, 20)
    typical = Classifier.at(Store(str(run))).typical.seconds
    rows = predicted(run, [video], tmp_path / "work")
    starts, ends = [row["start_s"] for row in rows], [row["end_s"] for row in rows]
    assert starts == sorted(starts)
    assert (starts[0], ends[-1]) == (0, 20)
    assert [end - start for start, end in zip(starts, ends, strict=True)] == pytest.approx(
        [typical] * len(rows), abs=0.06
    )
    assert all(later < end for later, end in zip(starts[1:], ends, strict=False)), "nothing falls between two"
    asked = predicted(run, [video], tmp_path / "asked", window_s=8)
    assert [(row["start_s"], row["end_s"]) for row in asked] == [(0, 8), (4, 12), (8, 16), (12, 20)]
    (whole,) = predicted(run, [video], tmp_path / "whole", window_s=0)
    assert (whole["start_s"], whole["end_s"]) == (None, None)


def test_windows_of_pictures_have_frames_and_no_times(run, tmp_path):
    """Nobody knows their rate: seconds that are asked for are those of 25 a second."""
    (tmp_path / "pictures").mkdir()
    for number, frame_HWC in enumerate(np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)):
        Image.fromarray(frame_HWC).save(tmp_path / f"pictures/{number:03}.jpg")
    rows = predicted(run, [tmp_path / "pictures"], tmp_path / "work", window_s=2)
    assert [(row["first_frame"], row["num_frames"]) for row in rows] == [(0, 50), (25, 50), (50, 50)]
    assert {row[name] for row in rows for name in ("start_s", "end_s", "error")} == {None}
    assert all(0 <= place <= 1 for row in rows for place, _ in row["path"]), "shares of the whole"


def test_the_least_alignable_clip_of_the_collection_is_just_known(run, tmp_path):
    reader = Run.at(Store(str(run)))
    manifest, labelled = reader.manifest(), set(reader.labelled())
    unlabelled = [video_id for video_id in manifest.ids(manifest.rows("train")) if video_id not in labelled]
    rows = predicted(run, [run / f"data/videos/{video_id}.mp4" for video_id in unlabelled], tmp_path / "work")
    classifier = Classifier.at(Store(str(run)))
    assert min(row["knownness"] for row in rows) == pytest.approx(classifier.known, abs=1e-5)
    strict = changed(RECIPE, {"label.known": 0.5})
    assert _known(strict, classifier.fusion, classifier.gallery, classifier.snapshots["frame"]) > classifier.known


def test_what_aligns_with_nothing_is_unknown(run, tmp_path):
    (video,) = evaluated(run)[0][:1]
    (row,) = predicted(run, [video], tmp_path / "a")
    assert row["known"] is (row["knownness"] >= Classifier.at(Store(str(run))).known)
    (row,) = predicted(run, [video], tmp_path / "b", known=row["knownness"] + 0.01)
    assert (row["known"], row["label"]) == (False, "unknown")
    assert row["top"][0]["label"] != "unknown", "what it would be is said beside it"


def test_damaged_videos_are_rows_with_a_reason(run, tmp_path):
    (tmp_path / "clips").mkdir()
    good = shutil.copy(evaluated(run)[0][0], tmp_path / "clips/b.mp4")
    (tmp_path / "clips/a.mp4").write_bytes(Path(good).read_bytes()[:900])
    (tmp_path / "clips/c.mp4").write_bytes(b"")
    videos = [*find_videos([str(tmp_path / "clips")]), str(tmp_path / "clips/none.mp4")]
    rows = predicted(run, videos, tmp_path / "work")
    assert [Path(row["video"]).name for row in rows] == ["a.mp4", "b.mp4", "c.mp4", "none.mp4"]
    assert [bool(row["error"]) for row in rows] == [True, False, True, True]
    assert [row["label"] for row in rows if row["error"]] == [None] * 3
    assert "no such file" in rows[3]["error"]
    assert {frozenset(row) for row in rows} == {frozenset(rows[0])}, "all rows have the same fields"
    alone = predicted(run, [videos[2]], tmp_path / "alone")
    assert alone[0]["error"].startswith("empty")


class NoScores(InProcess):
    def score(self, *_):
        raise AssertionError("these were scored before")


def test_a_second_start_goes_on_from_the_parts_of_the_first(run, tmp_path):
    videos = evaluated(run)[0][:4]
    first = predicted(run, videos, tmp_path / "work")
    assert predicted(run, videos, tmp_path / "work", executor=NoScores) == first
    with pytest.raises(ArtefactError, match="was made from something else: files"):
        predicted(run, videos[:2], tmp_path / "work")


def test_videos_are_found_in_folders_and_by_patterns(tmp_path):
    for name in ("a/1.mp4", "a/b/2.AVI", "a/3.txt", "pictures/0001.jpg", "4 [x].mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()

    def found(*places):
        return [
            str(Path(video).relative_to(tmp_path)) for video in find_videos([str(tmp_path / one) for one in places])
        ]

    assert found("a") == ["a/1.mp4", "a/b/2.AVI"]
    assert found("*.mkv", "a/*.mp4", "a/1.mp4") == ["4 [x].mkv", "a/1.mp4"], "each once"
    assert found("4 [x].mkv", "pictures", "none.mp4") == ["4 [x].mkv", "pictures", "none.mp4"]
    for nothing in ("empty", "a/*.mkv"):
        with pytest.raises(ManifestError, match="no video in it"):
            found(nothing)
    with pytest.raises(ManifestError, match="no videos"):
        find_videos([])


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    with pytest.raises(ArtefactError, match="neither a run directory"):
        Classifier.at(Store(str(tmp_path)))
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "recipe.json", tmp_path / "begun")
    with pytest.raises(ArtefactError, match="has no results yet"):
        Classifier.at(Store(str(tmp_path / "begun")))
    with pytest.raises(ManifestError, match="several stores"):
        predicted(run, ["s3://bucket/a.mp4", "/b.mp4"], tmp_path / "work")


def test_the_job_says_in_its_exit_code_that_a_video_was_not_read(run, tmp_path):
    good, bad = evaluated(run)[0][0], tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    command = [sys.executable, str(ROOT / "jobs/predict.py"), str(good), str(bad), "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 1
    lines = {line.partition(": ")[0]: line.partition(": ")[2] for line in done.stdout.splitlines()}
    assert "nearest videos/" in lines[str(good)]
    assert lines[str(bad)].startswith("not read: undecodable")
    assert done.stderr.splitlines()[-1] == "DecodeError: 1 of 2 clips could not be read; their rows say why"
    done = subprocess.run([*command, "--to", "out.jsonl"], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(row["video"] for row in rows) == sorted([str(good), str(bad)])
    assert done.returncode == 1
    assert not (tmp_path / "out.jsonl.work").exists()


def test_predictions_are_the_same_in_each_form(run, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    rows = predicted(run, [str(evaluated(run)[0][0]), str(bad)], tmp_path / "work")
    assert sorted(row["error"] is None for row in rows) == [False, True]
    for ending in (".csv", ".parquet", ".jsonl"):
        write_predictions(iter(rows), ending, tmp_path / f"rows{ending}")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines == rows
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    for row, found in zip(rows, table, strict=True):
        assert set(found) == set(row)
        assert {name: found[name] for name in ("video", "label", "known", "path", "error")} == {
            name: row[name] for name in ("video", "label", "known", "path", "error")
        }
        assert found["confidence"] == pytest.approx(row["confidence"])
        assert [one["label"] for one in found["near"] or []] == [one["label"] for one in row["near"] or []]
    with (tmp_path / "rows.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["error"] for cell in cells] == [row["error"] or "" for row in rows]
    good = next(number for number, row in enumerate(rows) if row["error"] is None)
    assert [one["label"] for one in json.loads(cells[good]["top"])] == [one["label"] for one in rows[good]["top"]]


def test_a_file_of_predictions_says_its_form():
    with pytest.raises(RecipeError, match=r"its ending says no form; expected \.csv, \.parquet, \.jsonl"):
        ending_of("classes.txt")
    assert ending_of("s3://b/CLASSES.CSV") == ".csv"
