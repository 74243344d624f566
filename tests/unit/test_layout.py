"""Stream blocks dealt round-robin give every worker exactly its blocks of the plan, in the order of the loop."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finepseudo.data.layout import Layout


def check(start, stop, workers, per_step, most_steps):
    """Ranks take stream blocks r, r + W, r + 2W...; the loop wants blocks start*k + r, + W, + 2W... of the plan."""
    layout = Layout.of(start, stop, workers, per_step, most_steps)
    dealt = [list(layout.blocks(number)) for number in range(len(layout))]
    assert len({len(blocks) for blocks in dealt}) == 1, "equal blocks, or the split would tear them"
    assert len(layout) % workers == 0
    assert 1 <= layout.steps_per_block <= most_steps
    for rank in range(workers):
        taken = list(itertools.chain(*dealt[rank::workers]))
        assert taken == list(range(start * per_step + rank, stop * per_step, workers))
    assert sorted(itertools.chain(*dealt)) == list(range(start * per_step, stop * per_step))


@pytest.mark.parametrize("per_step", [1, 2, 3, 4, 6, 8])
def test_every_small_case(per_step):
    divisors = [workers for workers in range(1, per_step + 1) if per_step % workers == 0]
    for workers, start, count, most in itertools.product(divisors, (0, 1, 5), (1, 2, 3, 7, 8, 12), (1, 2, 5, 8)):
        check(start, start + count, workers, per_step, most)


@settings(max_examples=200)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 5000), st.integers(1, 300), st.integers(1, 64))
def test_any_case(workers, share, start, count, most):
    check(start, start + count, workers, workers * share, most)


def test_a_resumed_stream_is_the_rest_of_the_whole_one_whatever_the_workers():
    whole = [block for number in range(24) for block in Layout.of(0, 24, 1, 4, 1).blocks(number)]
    for workers in (1, 2, 4):
        layout = Layout.of(10, 24, workers, 4, 8)
        rest = sorted(block for number in range(len(layout)) for block in layout.blocks(number))
        assert rest == whole[40:]


def test_a_finished_stage_streams_nothing():
    layout = Layout.of(8, 8, 2, 2, 4)
    assert [list(layout.blocks(number)) for number in range(len(layout))] == [[], []]
