"""Files are whole or absent, markers come last, and what is damaged or foreign is refused."""

import json
import os
import subprocess
import threading

import pytest

from finepseudo import artefacts
from finepseudo.errors import ArtefactError
from finepseudo.recipe import digest
from finepseudo.recipes import find
from finepseudo.storage import Store, await_file, read_uri


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"))


def test_readers_never_see_a_part_of_a_file(store):
    bodies = [bytes([letter]) * 2_000_000 for letter in b"ab"]
    store.write("x/file", bodies[0])
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            seen.add(store.read("x/file"))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(40):
        store.write("x/file", bodies[number % 2])
    done.set()
    reader.join()
    assert seen <= set(bodies)
    assert store.list("x") == ["file"]
    assert os.listdir(store.uri("x")) == ["file"]


def test_create_is_exclusive_and_delete_is_forgiving(store):
    assert store.create("a/b", b"1")
    assert not store.create("a/b", b"2")
    assert read_uri(store.uri("a/b")) == b"1"
    store.delete("a")
    store.delete("a")
    assert not store.exists("a/b")
    assert store.list("a") == []
    with pytest.raises(FileNotFoundError, match=store.uri("a/b")):
        store.read("a/b")


def test_waiting_has_a_deadline_and_says_what_it_saw(store):
    store.write("stage/other", b"")
    with pytest.raises(ArtefactError, match=r"marker did not appear in 0.05 s; seen there: other"):
        await_file(store, "stage/marker", deadline_s=0.05, poll_s=0.01)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_clear_error_and_loses_nothing(small_disk):
    store = Store(str(small_disk))
    artefacts.commit(store, "first", {"part": b"kept"}, {"made": "before"})
    with pytest.raises(ArtefactError, match="no room left .* start the same command again"):
        artefacts.commit(store, "second", {"part": b"x" * 1_000_000}, {})
    assert artefacts.read_part(store, "first", "part") == b"kept"
    assert artefacts.committed(store, "second") is None
    assert [name for _, _, names in os.walk(small_disk) for name in names if name.startswith(".")] == []


def test_without_its_marker_nothing_is_committed(store):
    store.write("stage/part", b"written, then the power went")
    assert artefacts.committed(store, "stage") is None
    with pytest.raises(ArtefactError, match="not committed"):
        artefacts.read_part(store, "stage", "part")


def test_ensure_makes_once_and_refuses_another_origin(store):
    made = []

    def make():
        made.append(1)
        return {"part": b"1"}

    first = artefacts.ensure(store, "stage", {"seed": 1, "steps": (3, 4)}, make)
    assert artefacts.ensure(store, "stage", {"seed": 1, "steps": (3, 4)}, make) == first
    assert len(made) == 1
    with pytest.raises(ArtefactError, match="seed: 1 -> 2"):
        artefacts.ensure(store, "stage", {"seed": 2, "steps": (3, 4)}, make)


def test_damage_is_found(store):
    artefacts.commit(store, "stage", {"part": b"12345"}, {})
    store.write("stage/part", b"12346")
    with pytest.raises(ArtefactError, match="is damaged: expected 5 bytes"):
        artefacts.read_part(store, "stage", "part")
    with pytest.raises(ArtefactError, match="no part 'other', it has part"):
        artefacts.read_part(store, "stage", "other")


def test_run_directory_belongs_to_one_recipe(store):
    smoke, other = find("rehearsal_smoke"), find("rehearsal")
    artefacts.claim_run(store, smoke)
    artefacts.claim_run(store, smoke)
    with pytest.raises(ArtefactError) as refused:
        artefacts.claim_run(store, other)
    text = str(refused.value)
    assert digest(smoke) in text
    assert digest(other) in text
    assert "align.steps: 8 -> 150" in text
    assert json.loads(store.read("recipe.json"))["digest"] == digest(smoke)
