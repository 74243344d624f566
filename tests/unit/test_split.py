"""The split is class-wise, seeded, stable, and written down with its fingerprint."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import manifest
from hypothesis import assume, given
from hypothesis import strategies as st

from finepseudo.data.split import make_split
from finepseudo.errors import ManifestError

HERE = Path(__file__).parent
TRUTH = {f"{label}-{number:02d}": label for label in range(3) for number in range(10 * label + 1)}


def split_of(truth, label_fraction=0.2, seed=3):
    """Of clips by their ids, sorted as a manifest has them."""
    ids = sorted(truth)
    of = manifest(len(ids), labels=[truth[name] for name in ids], names=range(5), video_id=ids)
    return make_split(of, label_fraction=label_fraction, seed=seed), of


@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 4) | st.none(), min_size=1, max_size=60),
    st.floats(0.01, 1),
    st.integers(0, 99),
)
def test_every_class_keeps_its_share_and_every_video_is_in_one_half(truth, fraction, seed):
    assume(any(label is not None for label in truth.values()))
    split, of = split_of(truth, fraction, seed)
    assert sorted([*split.labelled, *split.unlabelled]) == list(range(len(truth)))
    assert of.ids(split.labelled) == list(split.labelled_ids)
    for label in set(truth.values()) - {None}:
        size = sum(value == label for value in truth.values())
        kept = sum(truth[name] == label for name in split.labelled_ids)
        assert kept == max(1, round(fraction * size))
    assert None not in {truth[name] for name in split.labelled_ids}


def test_same_seed_same_split_in_another_process():
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from test_split import *\nprint(split_of(TRUTH)[0].to_bytes())"
    )
    split, _ = split_of(TRUTH)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == repr(split.to_bytes()), done.stderr
    other, _ = split_of(TRUTH, seed=4)
    assert other.labelled_ids != split.labelled_ids
    assert other.fingerprint != split.fingerprint


def test_the_order_is_by_class_and_then_by_id():
    split, _ = split_of(TRUTH)
    assert list(split.labelled_ids) == sorted(split.labelled_ids)
    assert (np.diff(split.unlabelled) > 0).all()


def test_one_more_video_moves_at_most_one_other():
    before = split_of(TRUTH)[0].labelled_ids
    for number in range(20):
        grown = split_of({**TRUTH, f"new-{number}": 2})[0].labelled_ids
        assert len(set(before) - set(grown)) <= 1
        others = [[name for name in ids if TRUTH.get(name, 2) != 2] for ids in (grown, before)]
        assert others[0] == others[1]


def test_larger_shares_contain_smaller_ones():
    shares = [set(split_of(TRUTH, share)[0].labelled_ids) for share in (0.05, 0.1, 0.2, 1)]
    assert all(small <= large for small, large in itertools.pairwise(shares))


def test_the_fingerprint_is_written_and_is_of_both_halves():
    split, _ = split_of(TRUTH)
    assert split.fingerprint.encode() in split.to_bytes()
    assert split_of({**TRUTH, "unknown": None})[0].labelled_ids == split.labelled_ids
    assert split_of({**TRUTH, "unknown": None})[0].fingerprint != split.fingerprint


@pytest.mark.parametrize(("truth", "share"), [(TRUTH, 0), ({"a": None}, 0.5)])
def test_no_class_with_a_label_is_refused(truth, share):
    known = sum(label is not None for label in truth.values())
    with pytest.raises(ManifestError, match=rf"no class has a labelled video: {known} usable training videos"):
        split_of(truth, share)
