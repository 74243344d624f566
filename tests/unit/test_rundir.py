"""A run directory: whom it belongs to, and that everything a run leaves is read back from one place."""

import dataclasses
import json

import clips
import numpy as np
import pyarrow as pa
import pytest

from finepseudo.errors import ArtefactError
from finepseudo.recipe import Evaluate, Recipe, digest
from finepseudo.recipes import RECIPES, find
from finepseudo.run import Run, claim, pair_videos
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import Taken


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_run_directory_belongs_to_one_recipe(store):
    smoke, other = find("rehearsal_smoke"), find("rehearsal")
    claim(store, other)
    claim(store, smoke)  # a recipe that is mended before anything is made
    claim(store, smoke)
    store.write("manifest/committed.json", b"{}")
    with pytest.raises(ArtefactError) as refused:
        claim(store, other)
    text = str(refused.value)
    for said in (digest(smoke), digest(other), store.uri(), "align.steps: 8 -> 150", "name: 'rehearsal_smoke'"):
        assert said in text
    assert "align.margin" not in text, "the same in both"
    assert json.loads(store.read("recipe.json"))["digest"] == digest(smoke)


def test_run_directory_takes_other_hardware_and_other_methods(store):
    recipe = find("rehearsal")
    claim(store, recipe)
    body = {"methods": ("pseudo_video",), "scale": type(recipe.scale)(score_workers=3)}
    claim(store, Recipe(**{**vars(recipe), **body}))


def test_a_torn_claim_is_refused(store):
    store.write("recipe.json", b"")
    with pytest.raises(ArtefactError, match=r"recipe.json is damaged .* use another --run"):
        claim(store, find("rehearsal"))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_run_knows_its_recipe(store, name):
    recipe = find(name)
    claim(store, recipe)
    again = Run.at(store).recipe()
    assert dataclasses.replace(again, scale=recipe.scale, methods=recipe.methods, evaluate=recipe.evaluate) == recipe


def test_run_of_an_older_version_is_continued_while_the_new_field_has_its_default(store):
    recipe = find("rehearsal")
    claim(store, recipe)
    body = json.loads(store.read("recipe.json"))
    del body["recipe"]["align"]["margin"]  # as if the field had come later
    store.write("recipe.json", json.dumps(body).encode())
    store.write("manifest/committed.json", b"{}")
    claim(store, recipe)
    with pytest.raises(ArtefactError, match="align.margin: 0.1 -> 0.2"):
        claim(store, dataclasses.replace(recipe, align=dataclasses.replace(recipe.align, margin=0.2)))


def test_field_that_no_recipe_has_is_named(store):
    claim(store, find("rehearsal"))
    body = json.loads(store.read("recipe.json"))
    body["recipe"]["align"]["elsewhere"] = 1
    store.write("recipe.json", json.dumps(body).encode())
    with pytest.raises(Exception, match=r"align.elsewhere: no recipe has this field"):
        Run.at(store).recipe()


def test_passes_are_those_that_are_committed(store):
    artefacts.commit(store, "labels/finepseudo/round-1", {"seconds.json": b"{}"}, {})
    store.write("embeddings/half/seconds.json", b"{}")
    store.write("train/align/frame/history/a", b"")
    store.write("train/align/frame/snapshot/history", b"")
    run = Run.at(store, store.child("base"))
    assert run.passes() == [(store, "labels/finepseudo/round-1")]
    assert run.trainings() == [(store, "train/align/frame")]


def test_videos_of_the_pair_test_are_known_test_videos_drawn_by_their_ids():
    recipe = dataclasses.replace(find("rehearsal"), evaluate=Evaluate(pair_videos=4))
    split, labels = ["test"] * 8 + ["train"] * 4, [0, None, 1, 2, 0, None, 1, 2, 0, 1, 2, 0]
    made = clips.manifest(12, labels, split=split)
    chosen = pair_videos(recipe, made, made.rows("test"))
    assert len(chosen) == 4
    assert set(chosen) < {0, 2, 3, 4, 6, 7}
    other = clips.manifest(12, labels[::-1], split=split[::-1], video_id=made.clips["video_id"].to_pylist()[::-1])
    assert other.ids(pair_videos(recipe, other, other.rows("test"))) == made.ids(chosen), "whatever their rows"
    another = dataclasses.replace(recipe, seed=recipe.seed + 1)
    assert pair_videos(another, made, made.rows("test")).tolist() != chosen.tolist()
    assert len(pair_videos(recipe, clips.manifest(3, split="test"), np.arange(3))) == 0


def test_labels_and_seconds_are_read_back(store):
    table = pa.table({"clip": [3, 1], "accepted": [True, False]})
    parts = {"labels.parquet": artefacts.table_bytes(table), "seconds.json": b'{"total": 2.0}'}
    artefacts.commit(store, "labels/finepseudo/round-1", parts, {})
    taken = json.dumps(vars(Taken(1, {"compute": 3.0}, [[0, 0, 4, 1]]))).encode()
    artefacts.commit(store, "train/align/frame/history/00000000-00000004", {"taken.json": taken}, {})
    artefacts.commit(store, "train/align/frame/timing/0", {}, {"launch_s": 1.5})
    run = Run.at(store)
    assert run.labels("finepseudo/round-1").equals(table)
    assert run.timing() == {
        "labels/finepseudo/round-1": {"total": 2.0},
        "train/align/frame": {"compute": 3.0, "launch": 1.5},
    }
