"""Markers come last, what is there is looked up, and what is damaged or foreign is refused."""

import pyarrow as pa
import pytest

from finepseudo.errors import ArtefactError, StorageError
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"))


def never():
    raise AssertionError("made, though it is there")


def test_parts_and_lineage_come_back(store):
    marker = artefacts.commit(store, "stage", {"b": b"22", "a": b"1"}, {"seed": 1, "sizes": (3, 4)})
    assert artefacts.committed(store, "stage") == marker
    assert marker["lineage"] == {"seed": 1, "sizes": [3, 4]}
    assert [artefacts.read_part(store, "stage", name) for name in "ab"] == [b"1", b"22"]
    other = artefacts.commit(store, "other", {"a": b"1", "b": b"22"}, {"seed": 2})
    assert artefacts.marker_digest(other) == artefacts.marker_digest(marker), "of the parts alone"
    changed = artefacts.commit(store, "third", {"a": b"1", "b": b"23"}, {"seed": 1})
    assert artefacts.marker_digest(changed) != artefacts.marker_digest(marker)


def test_without_its_marker_nothing_is_committed(store):
    """Parts are there, then the power goes: before the marker is written nobody sees them."""
    store.write("stage/part", b"half the story")
    assert artefacts.committed(store, "stage") is None
    with pytest.raises(ArtefactError, match=r"stage: not committed \(no committed.json\); run the stage that makes it"):
        artefacts.read_part(store, "stage", "part")
    artefacts.ensure(store, "stage", {}, lambda: {"part": b"the whole story"})
    assert artefacts.read_part(store, "stage", "part") == b"the whole story"


def test_seal_makes_parts_of_others_visible(store):
    records = {}
    for rank in range(2):
        store.write(f"stage/rank-{rank}", b"%d" % rank)
        records[f"rank-{rank}"] = artefacts.part_record(b"%d" % rank)
        assert artefacts.committed(store, "stage") is None
    artefacts.seal(store, "stage", records, {"step": 4})
    assert artefacts.read_part(store, "stage", "rank-1") == b"1"


def test_the_marker_is_the_last_file_written(store):
    order = []

    class Watched(Store):
        def write(self, path, data):
            order.append(path)
            super().write(path, data)

    artefacts.commit(Watched(store.root), "stage", {"b": b"", "a": b"", "z": b""}, {})
    assert order[-1] == "stage/committed.json"
    assert len(order) == 4


def test_ensure_makes_once_and_refuses_another_origin(store):
    lineage = {"seed": 1, "steps": (3, 4), "part": {"lr": 0.5}}
    first = artefacts.ensure(store, "stage", lineage, lambda: {"part": b"1"})
    assert artefacts.ensure(store, "stage", lineage, never) == first
    with pytest.raises(ArtefactError) as refused:
        artefacts.ensure(store, "stage", {"seed": 2, "steps": (3, 4), "part": {"lr": 0.25}, "new": True}, never)
    for difference in ("seed: 1 -> 2", "part.lr: 0.5 -> 0.25", "new: '(absent)' -> True", store.uri("stage")):
        assert difference in str(refused.value)
    assert "steps" not in str(refused.value)
    assert artefacts.committed(store, "stage") == first


def test_a_stage_that_fails_commits_nothing(store):
    def make():
        raise OSError("the network is down")

    with pytest.raises(OSError, match="the network is down"):
        artefacts.ensure(store, "stage", {}, make)
    assert artefacts.committed(store, "stage") is None


@pytest.mark.parametrize("damage", [b"12346", b"1234", b"", b"123456"])
def test_damaged_parts_are_found(store, damage):
    artefacts.commit(store, "stage", {"part": b"12345"}, {})
    store.write("stage/part", damage)
    with pytest.raises(ArtefactError, match=rf"stage/part is damaged: expected 5 bytes.* got {len(damage)} bytes"):
        artefacts.read_part(store, "stage", "part")


def test_missing_parts_and_damaged_markers_are_found(store):
    artefacts.commit(store, "stage", {"part": b"12345"}, {})
    with pytest.raises(ArtefactError, match="no part 'other', it has part"):
        artefacts.read_part(store, "stage", "other")
    store.delete("stage/part")
    with pytest.raises(ArtefactError, match="stage/part is gone, though the folder is committed"):
        artefacts.read_part(store, "stage", "part")
    store.write("stage/committed.json", b'{"lineage"')
    with pytest.raises(ArtefactError, match=r"committed.json is damaged .* delete the folder to have it made again"):
        artefacts.ensure(store, "stage", {}, never)


def test_full_disk_loses_nothing_that_is_committed(small_disk):
    store = Store(str(small_disk))
    artefacts.commit(store, "first", {"part": b"kept"}, {"made": "before"})
    with pytest.raises(StorageError, match="no room left"):
        artefacts.commit(store, "second", {"small": b"fits", "part": b"x" * 1_000_000}, {})
    assert artefacts.read_part(store, "first", "part") == b"kept"
    assert artefacts.committed(store, "second") is None
    store.delete("second")
    artefacts.commit(store, "second", {"part": b"fits now"}, {})
    assert artefacts.read_part(store, "second", "part") == b"fits now"


def test_tables_come_back_as_they_were(store):
    table = pa.table({"a": pa.array([1, None], pa.int32()), "b": pa.array([[1, 2], []], pa.list_(pa.int32()))})
    artefacts.commit(store, "stage", {"t.parquet": artefacts.table_bytes(table)}, {})
    assert artefacts.read_table(store, "stage", "t.parquet").equals(table)
    assert artefacts.table_bytes(table) == artefacts.table_bytes(table)
