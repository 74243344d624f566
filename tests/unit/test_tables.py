"""Tables that several processes read: what names their content, and one mapped file a node, made when it is missing."""

import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finepseudo.errors import ArtefactError
from finepseudo.storage import artefacts, tables
from finepseudo.storage.store import Store

SCHEMA = pa.schema(
    {"name": pa.string(), "count": pa.int32(), "share": pa.float64(), "good": pa.bool_()}
    | {"top": pa.list_(pa.int32()), "words": pa.list_(pa.string())}
)
NUMBERS, TEXTS = st.none() | st.integers(-2, 2), st.none() | st.sampled_from(["", "a", "ab", "b", "é"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": TEXTS,
            "count": NUMBERS,
            "share": st.none() | st.sampled_from([0.0, 0.5, 1e300]),
            "good": st.none() | st.booleans(),
            "top": st.none() | st.lists(NUMBERS, max_size=3),
            "words": st.none() | st.lists(TEXTS, max_size=3),
        }
    ),
    max_size=12,
)


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BATCH", 4)
        yield


def table_of(rows):
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@given(ROWS, st.lists(st.integers(0, 12)))
def test_a_digest_does_not_depend_on_chunks(rows, cuts):
    whole = table_of(rows)
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    pieces = [whole.slice(first, stop - first) for first, stop in pairwise(edges)]
    again = [table_of(rows[first:stop]) for first, stop in pairwise(edges)]
    assert tables.digest(pa.concat_tables(pieces)) == tables.digest(whole) == tables.digest(pa.concat_tables(again))
    within = table_of([*rows, *rows]).slice(len(rows))
    assert tables.digest(within.replace_schema_metadata({"made": "elsewhere"})) == tables.digest(whole)


def row(**values):
    return {"name": "a", "count": 0, "share": 0.0, "good": False, "top": [0], "words": ["a"], **values}


@example([row(name=None)], [row(name="")])
@example([row(name="ab"), row(name="")], [row(name="a"), row(name="b")])
@example([row(count=None)], [row()])
@example([row(share=None)], [row()])
@example([row(good=None)], [row()])
@example([row(top=None)], [row(top=[])])
@example([row(top=[None])], [row()])
@example([row(top=[0, 0]), row(top=[0])], [row(top=[0]), row(top=[0, 0])])
@example([row(words=["a", "b"])], [row(words=["ab"])])
@example([row(words=[None])], [row(words=[""])])
@example([row(top=None), row()], [row(), row(top=None)])
@example([row()] * 4, [row()] * 5)
@given(ROWS, ROWS)
def test_a_digest_is_of_every_value(one, other):
    assert (tables.digest(table_of(one)) == tables.digest(table_of(other))) == (one == other)


@pytest.mark.parametrize("at", range(10))
@pytest.mark.parametrize(("name", "value"), [("name", "x"), ("count", 7), ("share", 1.0), ("good", True)])
def test_a_digest_sees_one_value_in_any_batch(at, name, value):
    rows = [row() for _ in range(10)]
    before = tables.digest(table_of(rows))
    rows[at][name] = value
    assert tables.digest(table_of(rows)) != before


def test_a_digest_is_of_names_types_and_the_order_of_columns():
    one, other = pa.array([1, 2], pa.int32()), pa.array([1, 2], pa.int32())
    found = [
        pa.table({"a": one, "b": other}), pa.table({"b": one, "a": other}), pa.table({"a": one}),
        pa.table({"a": one.cast(pa.int64())}), pa.table({"a": one.cast(pa.float32())}),
        pa.table({"a": one[:0]}), pa.table({"a": one[:0].cast(pa.int64())}),
    ]  # fmt: skip
    assert len({tables.digest(table) for table in found}) == len(found)


def test_a_digest_is_of_the_number_of_rows():
    """Without it these would be the same bytes: lengths of one are values of the other."""
    kind = pa.list_(pa.int8())
    one = pa.table({"a": pa.array([[0, 0, 0, 0]], kind), "b": pa.array([[0] * 7], kind)})
    two = pa.table({"a": pa.array([[0, 7, 0, 0], []], kind), "b": pa.array([[], []], kind)})
    assert tables.digest(one) != tables.digest(two)


@pytest.mark.parametrize("lengths", [[10], [3, 4, 3], [0, 3, 0, 0, 7, 0], [1] * 10])
def test_rows_are_found_in_whatever_batch_they_lie(lengths):
    rows = [row(name=f"{index}", count=None if index % 3 else index, top=[index] * (index % 4)) for index in range(10)]
    ends = np.cumsum(lengths)
    batches = [pa.RecordBatch.from_pylist(rows[b - n : b], schema=SCHEMA) for b, n in zip(ends, lengths, strict=True)]
    table = pa.Table.from_batches(batches)
    for chosen in ([0], [9, 0, 5], [3, 3, 2], list(range(10)), []):
        found = tables.rows_at(table, np.array(chosen, int))
        assert found == [rows[index] for index in chosen]
        assert len({id(each) for each in found}) == len(chosen), "each may be changed without another"


# --- mapped files ---------------------------------------------------------------------------------------------------

ROW_OF = [row(name=f"{index}", top=[index]) for index in range(10)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this node keeps its mapped files."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    return tmp_path / "node" / f"finepseudo-tables-{os.getuid()}"


@pytest.fixture
def converted(monkeypatch):
    """The files that are made, as they are."""
    made, convert = [], tables._convert
    monkeypatch.setattr(tables, "_convert", lambda data, path: (made.append(path), convert(data, path)))
    return made


def store_of(path, rows=ROW_OF):
    store = Store(str(path))
    parts = {"t.parquet": artefacts.table_bytes(table_of(rows)), "other.txt": b"x"}
    artefacts.commit(store, "folder", parts, {})
    return store


def test_a_mapped_table_is_what_was_committed_and_is_made_once(tmp_path, folder, converted):
    store = store_of(tmp_path / "run")
    for _ in range(3):
        assert tables.mapped(store, "folder", "t.parquet").equals(table_of(ROW_OF))
    assert len(converted) == 1
    assert list(folder.iterdir()) == converted
    assert folder.stat().st_mode & 0o777 == 0o700, "nobody else's to read"


def test_equal_parts_of_other_runs_share_a_file_and_others_do_not(tmp_path, folder, converted):
    for name in ("one", "two"):
        tables.mapped(store_of(tmp_path / name), "folder", "t.parquet")
    assert len(converted) == 1
    assert len(tables.mapped(store_of(tmp_path / "three", ROW_OF[:3]), "folder", "t.parquet")) == 3
    assert len(set(converted)) == 2


def test_a_mapped_file_that_is_there_is_not_read_again_from_the_store(tmp_path, folder):
    store = store_of(tmp_path / "run")
    tables.mapped(store, "folder", "t.parquet")
    store.write("folder/t.parquet", b"")
    assert tables.mapped(store, "folder", "t.parquet").equals(table_of(ROW_OF))


def test_values_of_a_mapped_table_lie_in_the_file_batch_by_batch(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 1 << 12)
    store, large = Store(str(tmp_path)), pa.table({"value": np.random.default_rng(0).random(1 << 14)})
    artefacts.commit(store, "folder", {"t.parquet": artefacts.table_bytes(large)}, {})
    table = tables.mapped(store, "folder", "t.parquet")
    (path,) = folder.iterdir()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in maps]
    places = [batch.column(0).buffers()[1].address for batch in table.to_batches()]
    assert len(places) == 4
    assert all(any(first <= place < stop for first, stop in spans) for place in places)
    assert table.equals(large)


def test_a_deleted_file_is_made_again_and_open_ones_live_on(tmp_path, folder, converted):
    store = store_of(tmp_path / "run")
    table = tables.mapped(store, "folder", "t.parquet")
    (path,) = folder.iterdir()
    path.unlink()
    assert tables.mapped(store, "folder", "t.parquet").equals(table_of(ROW_OF))
    assert table.equals(table_of(ROW_OF))
    assert len(converted) == 2


def test_files_that_nobody_opens_any_more_go_when_another_is_made(tmp_path, folder):
    stores = [store_of(tmp_path / f"{count}", ROW_OF[:count]) for count in (1, 2, 3)]
    old = time.time() - tables.UNUSED_S - 60
    for store in stores[:2]:
        before = set(folder.iterdir()) if folder.exists() else set()
        tables.mapped(store, "folder", "t.parquet")
        (new,) = set(folder.iterdir()) - before
        os.utime(new, (old, old))
    tables.mapped(stores[1], "folder", "t.parquet")  # opened, so it stays
    tables.mapped(stores[2], "folder", "t.parquet")
    names = [artefacts.committed(store, "folder")["parts"]["t.parquet"]["sha256"] for store in stores]
    assert {path.stem for path in folder.iterdir()} == set(names[1:])


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = store_of(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            tables.mapped(store, "folder", "t.parquet")
    assert list(folder.iterdir()) == []
    assert tables.mapped(store, "folder", "t.parquet").equals(table_of(ROW_OF))


def test_what_is_not_committed_is_said_as_of_any_artefact(tmp_path, folder):
    store = store_of(tmp_path / "run")
    with pytest.raises(ArtefactError, match=r"run/nowhere: not committed .*run the stage that makes it"):
        tables.mapped(store, "nowhere", "t.parquet")
    with pytest.raises(ArtefactError, match=r"run/folder: no part 'x.parquet', it has other.txt, t.parquet"):
        tables.mapped(store, "folder", "x.parquet")
    store.write("folder/t.parquet", b"PAR1")
    with pytest.raises(ArtefactError, match=r"folder/t.parquet is damaged"):
        tables.mapped(store, "folder", "t.parquet")
    store.delete("folder/t.parquet")
    with pytest.raises(ArtefactError, match=r"folder/t.parquet is gone"):
        tables.mapped(store, "folder", "t.parquet")
    assert list(folder.iterdir()) == []


def test_a_folder_of_another_user_is_not_trusted(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(
        ArtefactError, match=r"finepseudo-tables-54321 is a link, or belongs to another user, .*; .*TMPDIR"
    ):
        tables.mapped(store_of(tmp_path / "run"), "folder", "t.parquet")
