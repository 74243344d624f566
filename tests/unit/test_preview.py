"""A dry run: what is there and what is missing is told apart, by looking at little; and what a run would cost."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clips import commit, manifest

from finepseudo.costs.units import SHIPPED, UnitCosts, fits, read_units
from finepseudo.data.answers import Answers
from finepseudo.errors import StorageError
from finepseudo.preview.inventory import LOOKED, answering, take_stock
from finepseudo.preview.page import preview
from finepseudo.recipe import Data, Models, Recipe, Split
from finepseudo.recipes import find
from finepseudo.recipes.variants import variants
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

ROOT = Path(__file__).parents[2]
NAMES = ["fly", "run", "sit"]
SIXTY = [(f"v{number:02d}", NAMES[number % 3]) for number in range(60)]


@pytest.fixture
def data(tmp_path):
    """60 training clips of 3 classes and 6 test clips; all files are there, and empty."""
    rows = [f"{name},{label},train" for name, label in SIXTY] + [f"t{number},sit,test" for number in range(6)]
    write(tmp_path / "data/all.csv", "\n".join(["video_id,label,split", *rows]))
    write(tmp_path / "data/names.json", json.dumps(NAMES))
    for row in rows:
        write(tmp_path / f"data/videos/{row.partition(',')[0]}.mp4")
    return tmp_path / "data"


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def recipe(root, data=None, **fields):
    files = {"train": "all.csv", "test": "", "vocab": "names.json"} | (data or {})
    split = fields.pop("split", Split(label_fraction=0.1))
    return Recipe(name="mine", data=Data(root=str(root), **files), split=split, **fields)


def stock(root, **fields):
    return take_stock(recipe(root, **fields), Store(f"{root}/none"))


def page(root, known=None, **fields):
    run = Store(f"{root}/none")
    return preview(recipe(root, **fields), run, run, read_units(SHIPPED) if known is None else known)


def test_what_is_all_there(data):
    found = stock(data)
    assert found.missing == []
    assert (found.videos, found.tests, found.classes, found.labelled) == (60, 6, 3, 0)
    assert f"videos: {LOOKED} of 66 looked for, {LOOKED} there" in found.lines


def test_every_absent_annotation_file_is_named(data):
    (data / "names.json").unlink()
    found = stock(data, data={"test": "held.csv"})
    assert [line.partition(":")[0] for line in found.missing] == [
        "data.test = 'held.csv'", "data.vocab = 'names.json'",
    ]  # fmt: skip
    assert f"{data}/held.csv is not there; set --data.root to its folder" in found.missing[0]


def test_wrong_annotations_are_missing_too(data):
    write(data / "all.csv", "video_id,label,split\nv00,swim,train\n")
    (said,) = stock(data).missing
    assert "expected an integer from 0 to 2" in said


def test_a_few_absent_videos_are_told_and_all_absent_ones_stop(data):
    (data / "videos/v00.mp4").unlink()
    found = stock(data)
    assert f"videos: {LOOKED} of 66 looked for, {LOOKED - 1} there; not videos/v00.mp4" in found.lines
    assert found.missing == []
    (data / "videos").rename(data / "elsewhere")
    (said,) = stock(data).missing
    assert "none of 24 videos is there, such as" in said
    assert "data.videos = 'videos/{video_id}.mp4'" in said


@pytest.mark.parametrize(
    ("videos", "place"),
    [
        ("videos/{video_id}.*", "videos/{name}.webm"),
        ("videos/**/{video_id}.*", "videos/{name}.avi"),
        ("videos/**/{video_id}.*", "videos/{label}/{name}.mp4"),
        ("frames/{video_id}", "frames/{name}/00001.jpg"),
    ],
)
def test_videos_are_looked_for_where_the_pattern_leaves_it_open(data, videos, place):
    write(data / "names.json", json.dumps(["fly away", "run", "sit"]))
    write(data / "all.csv", (data / "all.csv").read_text().replace("fly", "fly away"))
    (data / "videos").rename(data / "elsewhere")
    assert stock(data, data={"videos": videos}).missing
    for name, label in SIXTY + [(f"t{number}", "sit") for number in range(6)]:
        write(data / place.format(name=name, label=label.replace("fly", "fly_away")))
    found = stock(data, data={"videos": videos})
    assert f"videos: {LOOKED} of 66 looked for, {LOOKED} there" in found.lines
    assert found.missing == []


def test_no_folder_of_videos_is_listed(data, monkeypatch):
    """A folder of millions in an object store takes minutes to list."""
    monkeypatch.setattr(Store, "walk", lambda *_: pytest.fail("listed"))
    assert stock(data, data={"videos": "videos/**/{video_id}.*"}).missing == []


def test_a_list_says_how_many_are_labelled(data):
    write(data / "few.txt", "v03\nv04\nv05\n")
    assert stock(data, split=Split(labelled="few.txt")).labelled == 3
    known = {fits(recipe(data), "cpu"): next(iter(read_units(SHIPPED).values()))}
    assert "clips: 3 labelled, 57 unlabelled, 6 test" in page(data, known, split=Split(labelled="few.txt")).text
    (said,) = stock(data, split=Split(labelled="fewer.txt")).missing
    assert "fewer.txt" in said


def test_answers_are_counted_or_missed(data):
    uri = f"{data}/answers/x"
    (said,) = stock(data, split=Split(answers=uri)).missing
    assert said.startswith(f"split.answers: {uri}: not committed")
    made = Answers({"v03": "new", "v04": "new"}, ("new",))
    artefacts.commit(Store(str(data)), "answers/x", {"answers.json": made.to_bytes()}, {})
    assert "2 clips are labelled by answers, 1 new classes" in stock(data, split=Split(answers=uri)).lines


def test_weights_are_there_and_the_right_ones(data):
    write(data / "w.safetensors", "abc")
    right, other = hashlib.sha256(b"abc").hexdigest(), "0" * 64

    def said(file, sha256):
        models = Models(video_weights=f"{data}/{file}", video_sha256=sha256)
        return stock(data, models=models)

    assert (
        f"models.video_weights: {data}/w.safetensors is there, with the right digest"
        in said("w.safetensors", right.upper()).lines
    )
    (wrong,) = said("w.safetensors", other).missing
    assert f"has sha256 {right}, expected {other}" in wrong
    (absent,) = said("no.safetensors", right).missing
    assert "no.safetensors is not there" in absent


def test_a_manifest_that_is_committed_says_it_all(data, tmp_path):
    base = Store(str(tmp_path / "run"))
    commit(base, manifest(9, [0, 1, 2] * 3, NAMES, split=["train"] * 6 + ["test"] * 3, num_frames=44))
    (data / "all.csv").unlink()
    found = take_stock(recipe(data), base)
    assert (found.videos, found.tests, found.classes, found.frames) == (6, 3, 3, 44.0)
    assert found.missing == []
    assert "run directory" in preview(recipe(data), base, base, {}).text
    assert "has manifest" in preview(recipe(data), base, base, {}).text


def test_the_page_has_plan_resources_cost_and_what_is_missing(data):
    known = {fits(recipe(data), "cpu"): next(iter(read_units(SHIPPED).values()))}
    text = page(data, known).text
    for said in (
        "clips: 6 labelled, 54 unlabelled, 6 test; gallery of 6, 3 classes",
        "train/finepseudo/round-1/video (16000 clips)",
        "resources: 6 CPU; 2 trainings x 1",
        "cache of decoded clips 4 GiB",
        "money",
        "missing: nothing that can be seen from here",
    ):
        assert said in text
    assert "predicted: not known, no unit costs of tiny_vtn" in page(data, {}).text


def test_published_sizes_stand_in_for_absent_annotations(tmp_path):
    run = Store(str(tmp_path))
    found = preview(find("diving48_5pct"), run, run, read_units(SHIPPED))
    assert "sizes of Diving48 V2 as published are taken" in found.text
    assert "clips: 768 labelled, 14259 unlabelled, 1970 test" in found.text
    assert len(found.missing) == 3


def test_a_comparison_is_predicted_whole(tmp_path):
    run, known, recipe = Store(str(tmp_path)), read_units(SHIPPED), find("rehearsal")
    every = [one.recipe for one in variants(recipe, range(9))]
    alone, all_of_them = (preview(recipe, run, run, known, recipes).text for recipes in ([], every))
    assert "predicted: at most" not in alone
    assert re.search(r"predicted: at most 2\.\d h", all_of_them)


def test_a_store_that_does_not_answer_is_one_line():
    def ask(*uris):
        with answering(*uris):
            raise ValueError("no\n credentials")

    with pytest.raises(StorageError, match="s3://b/x: no credentials; check address"):
        ask("", "/local", "s3://b/x")
    with pytest.raises(ValueError, match="no\n credentials"):
        ask("", "/local")


def job(*arguments, name="run"):
    command = [sys.executable, str(ROOT / f"jobs/{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_exit_code_says_whether_a_run_could_start(data, tmp_path):
    given = ("diving48_5pct", "--run", tmp_path / "run", "--data.root", data, "--data.format", "table", "--dry-run")
    there = ("--data.train", "all.csv", "--data.test", "", "--data.vocab", "names.json")
    done = job(*given, *there, "--data.videos", "videos/{video_id}.mp4")
    assert done.returncode == 0, done.stderr
    assert "missing: nothing" in done.stdout
    done = job(*given)
    assert done.returncode == 1
    assert done.stderr == "NotReadyError: diving48_5pct cannot start: 3 things missing, named above\n"
    assert done.stdout.count("\nmissing: ") == 3
    done = job(*given, name="compare")
    assert done.returncode == 1
    assert "3 runs:" in done.stdout
    assert not (tmp_path / "run").exists()


def test_unit_costs_of_a_users_own(data, tmp_path):
    costs = vars(next(iter(read_units(SHIPPED).values()))) | {"machine": "my machine"}
    assert UnitCosts(**costs)
    write(tmp_path / "u.json", json.dumps({fits(find("rehearsal"), "cpu"): costs}))
    done = job("rehearsal", "--run", tmp_path / "run", "--dry-run", "--units", tmp_path / "u.json")
    assert "by unit costs of my machine" in done.stdout
    done = job("rehearsal", "--run", tmp_path / "run", "--dry-run", "--units", tmp_path / "none.json")
    assert done.returncode == 1
    assert "none.json: no such file" in done.stderr
