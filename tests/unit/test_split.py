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

from finepseudo.data.answers import Answers
from finepseudo.data.split import make_split
from finepseudo.errors import ArtefactError, ManifestError
from finepseudo.recipe import Split
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

HERE = Path(__file__).parent
TRUTH = {f"{label}-{number:02d}": label for label in range(3) for number in range(10 * label + 1)}


def split_of(truth, label_fraction=0.2, seed=3, folder="", **options):
    """Of clips by their ids, sorted as a manifest has them."""
    ids = sorted(truth)
    paths = [f"v/{name}.mp4" for name in ids]
    of = manifest(len(ids), labels=[truth[name] for name in ids], names=map(str, range(5)), video_id=ids, path=paths)
    chosen = Split(label_fraction=label_fraction, seed=seed, **options)
    return make_split(of, chosen, Store(str(folder) or "/nowhere")), of


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


def test_a_split_goes_out_and_comes_in_again(tmp_path):
    split, _ = split_of(TRUTH)
    (tmp_path / "theirs.json").write_bytes(split.to_bytes())
    again, _ = split_of(TRUTH, seed=9, folder=tmp_path, labelled="theirs.json")
    assert again.fingerprint == split.fingerprint
    assert again.labelled.tolist() == split.labelled.tolist(), "in the same order, so that plans are the same"
    (tmp_path / "theirs.json").write_bytes(split.to_bytes().replace(split.labelled_ids[0].encode(), b"2-00", 1))
    with pytest.raises(ManifestError, match=r"theirs.json: its labelled list has the digest \w+, it says"):
        split_of(TRUTH, folder=tmp_path, labelled="theirs.json")


def test_lists_say_which_clips_are_labelled_and_which_are_to_be(tmp_path, caplog):
    (tmp_path / "mine.txt").write_text("v/1-03.mp4 1\nv/0-00.mp4 0\nv/gone.mp4 0\nv/none.mp4\n")
    (tmp_path / "others.txt").write_text("1-04\n1-03\n2-07\n")
    caplog.set_level("INFO")
    split, of = split_of({**TRUTH, "none": None}, folder=tmp_path, labelled="mine.txt", unlabelled="others.txt")
    assert split.labelled_ids == ("0-00", "1-03")
    assert of.ids(split.unlabelled) == ["1-04", "2-07"]
    for said in (
        "4 entries, 3 clips", "1 entries match no clip: v/gone.mp4 (3)", "1 classes are not in it: 2",
        "1 of its clips have no label", "1 clips are in the labelled and in the unlabelled list",
    ):  # fmt: skip
        assert said in caplog.text


def test_held_out_clips_are_test_clips_whatever_the_seed():
    split, of = split_of(TRUTH, held_out=0.1)
    assert [sum(TRUTH[name] == label for name in of.ids(split.test)) for label in range(3)] == [1, 1, 2]
    assert len(np.unique(np.concatenate([split.test, split.labelled, split.unlabelled]))) == len(TRUTH)
    assert split_of(TRUTH, seed=4, held_out=0.1)[0].test.tolist() == split.test.tolist()
    assert not len(split_of(TRUTH)[0].test)
    with pytest.raises(ManifestError, match="no class has a labelled video"):
        split_of(TRUTH, 1.0, held_out=1.0)


def test_parts_of_one_file_are_held_out_together():
    ids = [f"{file}@{part}" for file in "abcd" for part in range(3)]
    of = manifest(12, labels=[0, 1, None] * 4, names=("x", "y"), video_id=ids, path=[f"{name[0]}.mp4" for name in ids])
    split = make_split(of, Split(label_fraction=1.0, held_out=0.25), Store("/nowhere"))
    files = [{name[0] for name in of.ids(rows)} for rows in (split.test, split.labelled, split.unlabelled)]
    assert files[0]
    assert not files[0] & (files[1] | files[2])
    assert len(split.test) == 2 * len(files[0]), "those with a label"


def test_novel_classes_lose_every_label_and_may_leave_the_unlabelled_half():
    truth = {f"{label}-{number}": label for label in range(3) for number in range(6)}
    whole, of = split_of(truth, 0.5)
    opened, _ = split_of(truth, 0.5, novel=("1",))
    assert set(opened.labelled_ids) == {name for name in whole.labelled_ids if truth[name] != 1}
    assert sorted([*opened.labelled, *opened.unlabelled]) == list(range(18)), "they are unlabelled now"
    closed, _ = split_of(truth, 0.5, novel=("1",), drop_novel=True)
    assert closed.labelled_ids == opened.labelled_ids
    assert set(opened.unlabelled) - set(closed.unlabelled) == {row for row in range(18) if of.truth([row])[0] == 1}
    with pytest.raises(ManifestError, match=r"split.novel: there is no class '9'"):
        split_of(truth, 0.5, novel=("9",))
    with pytest.raises(ManifestError, match=r"no class has a labelled video.*split.novel = 0, 1, 2"):
        split_of(truth, 0.5, novel=("0", "1", "2"))


def answered(folder, label, new=()):
    """The address of committed answers."""
    made = Answers(label, tuple(new))
    artefacts.commit(Store(str(folder)), "answers/x", {"answers.json": made.to_bytes()}, {})
    return f"{folder}/answers/x"


def test_answers_join_d_l_whatever_the_annotations_say(tmp_path):
    truth = {"a": 0, "b": 0, "c": 1, "d": None, "e": 1}
    uri = answered(tmp_path, {"d": "3", "c": "0", "b": "new one"}, ["new one"])
    split, of = split_of(truth, 0.2, answers=uri)
    plain, _ = split_of(truth, 0.2)
    assert split.class_names == (*of.class_names, "new one")
    labels = dict(zip(split.labelled_ids, split.label_N.tolist(), strict=True))
    kept = dict(zip(plain.labelled_ids, plain.label_N.tolist(), strict=True))
    assert labels == kept | {"d": 3, "c": 0, "b": 5}
    assert [*split.label_N] == sorted(split.label_N), "class by class"
    assert sorted([*split.labelled, *split.unlabelled]) == list(range(5))
    assert split.fingerprint != plain.fingerprint
    other = split_of(truth, 0.2, answers=answered(tmp_path / "other", {"d": "3", "c": "0", "b": "1"}))[0]
    assert other.labelled_ids != split.labelled_ids or other.fingerprint != split.fingerprint
    assert b"answered" not in plain.to_bytes()


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ({"nobody": "1"}, {}, r"answers/x, clip nobody: expected a usable training clip that is not held out"),
        ({"00": "1"}, {"held_out": 1.0}, r"clip 00: expected a usable training clip that is not held out"),
        ({"00": "9"}, {}, r"answers/x, clip 00: expected a class of the manifest, got '9'.*for other data"),
    ],
)
def test_answers_for_other_data_are_refused(label, options, message, tmp_path):
    with pytest.raises(ManifestError, match=message):
        split_of({f"{at:02d}": at % 2 for at in range(6)}, answers=answered(tmp_path, label), **options)


def test_answers_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(ArtefactError, match="answers/x: not committed"):
        split_of(TRUTH, answers=f"{tmp_path}/answers/x")
