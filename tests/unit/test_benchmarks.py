"""The benchmark of alignment: what it divides by what, and that a missing or broken peer is a line and not an end."""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "align.py"
SIBLINGS = ("align_peers", "align_report")


@pytest.fixture(scope="module")
def align():
    spec = importlib.util.spec_from_file_location("benchmarks_align", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    yield module
    for name in (spec.name, *SIBLINGS):
        del sys.modules[name]


@pytest.fixture(scope="module")
def peers(align):
    return sys.modules["align_peers"]


@pytest.fixture(scope="module")
def tables(align):
    return sys.modules["align_report"]


class Scripted:
    """A runner whose clock says what it is told."""

    def __init__(self, name, clock):
        self.name, self.clock, self.times, self.ratios = name, iter(clock), [], []

    def time(self):
        now = next(self.clock)
        if isinstance(now, Exception):
            raise now
        return now


OPTIONS = argparse.Namespace(threads=[1], limit=0.05, least=0.001, repetitions=2)


def broken(*_):
    raise RuntimeError("no such luck\nand more")


def test_every_ratio_is_against_the_two_of_ours_around_it(align):
    # repetition 0: ours 1, a 4, ours 3, b 9, ours 6; repetition 1 the other way round: ours 2, b 6, ours 2, a 8, ours 6
    mine = Scripted("ours", [1, 3, 6, 2, 2, 6])
    others = [Scripted("a", [4, 8]), Scripted("b", [9, 6])]
    assert list(align.race(mine, others, 2)) == []
    assert others[0].ratios == [4 / 2, 8 / 4]
    assert others[1].ratios == [9 / 4.5, 6 / 2]
    assert mine.times == [1, 3, 6, 2, 2, 6]
    assert align.spread(others[1].ratios) == {"median": 2.5, "min": 2.0, "max": 3.0}


def test_one_that_breaks_on_the_way_is_named_and_not_asked_again(align, peers):
    mine = Scripted("ours", [1] * 9)
    others = [Scripted("a", [2, OSError("gone")]), Scripted("b", [3, 3, 3])]
    ((runner, error),) = align.race(mine, others, 3)
    assert (runner.name, peers.brief(error)) == ("a", "OSError: gone")
    assert others[1].ratios == [3, 3, 3]


def test_a_block_is_held_to_all_products_and_to_those_of_its_pairs(align):
    over = align.over_bare("block", [0.5, 1.0, 2.0])
    assert over["all"] == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert over["half"]["median"] == pytest.approx(1024 / 528)
    assert align.over_bare("scoring", [0.5]) == {"all": {"median": 2.0, "min": 2.0, "max": 2.0}}


def test_pairs_and_operations_are_counted_alike_for_every_share(peers):
    for work in peers.WORKS:
        whole = peers.inputs_of(work, 8)
        part = peers.portion(work, whole, 1 / 16)
        assert peers.pairs_of(work, part) < peers.pairs_of(work, whole)
        assert {type(x) for x in part} == {torch.Tensor}
    assert peers.pairs_of("block", (torch.zeros(32, 8, 2),)) == 528
    u = torch.zeros(4, 8, peers.D)
    assert peers.operations("paired", (u, u)) == 3 * 4 * 8 * 8 * 2 * peers.D
    assert peers.operations("block", (u,)) == 3 * 4 * 4 * 8 * 8 * 2 * peers.D
    assert peers.operations("scoring", (u, u[:3])) == 4 * 3 * 8 * 8 * 2 * peers.D


def test_errors_are_the_largest_and_those_of_a_sum_are_of_its_mean(align):
    expected = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert align.difference(torch.tensor([1.5, -4.0]), expected) == {"max": 0.5, "relative": 0.125}
    assert align.difference(torch.tensor(-2.0), expected) == {"max": 0.5, "relative": 1 / 3}


def test_numbers_have_three_digits_and_no_exponent(tables):
    assert [tables.number(x) for x in (0.0123, 1.234, 12.34, 123.4, 12345.6)] == [
        "0.0123",
        "1.23",
        "12.3",
        "123",
        "12,346",
    ]


@pytest.mark.parametrize("work", ["paired", "block", "scoring"])
def test_ours_and_the_torch_loops_give_what_the_reference_gives(align, peers, work):
    inputs = peers.portion(work, peers.inputs_of(work, 8), 1 / 16)
    truth = align.exact(work, inputs)
    for entry in (peers.ours(), peers.torch_log(), peers.torch_exp()):
        for found in align.errors(entry, work, inputs, truth).values():
            assert found["relative"] < 1e-4, (entry.name, found)


def test_a_peer_that_cannot_be_imported_or_throws_is_a_line_of_the_table(align, peers, tables, monkeypatch):
    monkeypatch.setitem(peers.PAIRS, 8, 16)

    def absent():
        importlib.import_module("no_such_peer")

    makers = {peers.OURS: peers.ours, "absent": absent, "broken": lambda: peers.Entry("broken", {"paired": broken})}
    rows = align.measure("paired", 8, peers.load(makers), OPTIONS)
    status = {row["name"]: (row["status"], row["note"]) for row in rows}
    assert status["absent"] == ("left out", "not available: ModuleNotFoundError: No module named 'no_such_peer'")
    assert status["broken"] == ("failed", "RuntimeError: no such luck")
    assert status[peers.OURS][0] == status[peers.BARE][0] == "ok"
    mine, bare = (next(row for row in rows if row["name"] == name) for name in (peers.OURS, peers.BARE))
    assert mine["ratio"]["median"] == 1
    assert bare["ratio"]["median"] > 0
    text = tables.table(rows, {})
    assert "Left out: absent (not available: ModuleNotFoundError: No module named 'no_such_peer')" in text
    assert "failed: RuntimeError: no such luck" in text


def test_without_ours_there_is_a_table_of_reasons(align, peers, tables, monkeypatch):
    monkeypatch.setattr(peers, "CLIPS", 4)
    rows = align.measure("block", 8, [peers.Entry(peers.OURS, {"block": broken}), peers.torch_log()], OPTIONS)
    assert [row["status"] for row in rows] == ["failed", "not timed", "not timed"]
    assert "failed: RuntimeError: no such luck" in tables.table(rows, {})


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is Linux's")
def test_memory_is_the_peak_and_not_what_stays(align, tables):
    def passing():
        return float(torch.ones(2**24).sum())

    assert 62 < align.peak_growth(passing) / tables.MIB < 80
