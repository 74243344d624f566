"""The split is class-wise, seeded, stable, and written down with its fingerprint."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finepseudo.data.split import make_split
from finepseudo.errors import ManifestError

TRUTH = {f"{label}-{number}": label for label in range(3) for number in range(10 * label + 1)}


@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0.01, 1),
    st.integers(0, 99),
)
def test_every_class_keeps_its_share_and_every_video_is_in_one_half(truth, fraction, seed):
    split = make_split(truth, label_fraction=fraction, seed=seed)
    assert sorted(split.labelled + split.unlabelled) == sorted(truth)
    for label in set(truth.values()):
        size = sum(value == label for value in truth.values())
        kept = sum(truth[name] == label for name in split.labelled)
        assert kept == max(1, round(fraction * size))


def test_same_seed_same_split_in_another_process():
    code = (
        "from finepseudo.data.split import make_split\n"
        f"print(make_split({TRUTH!r}, label_fraction=0.2, seed=3).fingerprint)"
    )
    split = make_split(TRUTH, label_fraction=0.2, seed=3)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == split.fingerprint, done.stderr
    assert make_split(dict(reversed(TRUTH.items())), label_fraction=0.2, seed=3) == split, "whatever the order"
    other = make_split(TRUTH, label_fraction=0.2, seed=4)
    assert other.labelled != split.labelled
    assert other.fingerprint != split.fingerprint


def test_one_more_video_moves_at_most_one_other():
    split = make_split(TRUTH, label_fraction=0.2, seed=3)
    for number in range(20):
        grown = make_split({**TRUTH, f"new-{number}": 2}, label_fraction=0.2, seed=3)
        assert len(set(split.labelled) - set(grown.labelled)) <= 1
        assert [name for name in grown.labelled if TRUTH.get(name, 2) != 2] == [
            name for name in split.labelled if TRUTH[name] != 2
        ]


def test_larger_shares_contain_smaller_ones():
    shares = [set(make_split(TRUTH, label_fraction=share, seed=3).labelled) for share in (0.05, 0.1, 0.2, 1)]
    assert all(small <= large for small, large in itertools.pairwise(shares))


def test_the_fingerprint_is_written_and_tells_lists_apart():
    split = make_split(TRUTH, label_fraction=0.2, seed=3)
    assert split.fingerprint.encode() in split.to_bytes()
    moved = replace(split, labelled=split.labelled[1:], unlabelled=(*split.unlabelled, split.labelled[0]))
    assert moved.fingerprint != split.fingerprint


@pytest.mark.parametrize(("truth", "share"), [(TRUTH, 0), ({}, 0.5)])
def test_no_class_with_a_label_is_refused(truth, share):
    with pytest.raises(ManifestError, match=rf"no class has a labelled video: {len(truth)} usable training videos"):
        make_split(truth, label_fraction=share, seed=3)
