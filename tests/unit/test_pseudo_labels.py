"""Known-ness, the guard, soft targets, samples: what stands between scores and the next training."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from clips import manifest
from hypothesis import given
from hypothesis import strategies as st

from finepseudo.align import collaborate
from finepseudo.align.gallery import Gallery
from finepseudo.align.head import ScoreHead
from finepseudo.align.score import distances
from finepseudo.align.softdtw import alignment_distance
from finepseudo.data.batch import make_batch
from finepseudo.data.plan import plan_score, samples
from finepseudo.errors import TrainingError
from finepseudo.recipes import find
from finepseudo.train.pseudo_labels import (
    COMPARED,
    compare_labelled,
    guard,
    known_from,
    label_table,
    most_likely,
    pseudo_samples,
)

NAMES = ("tuck", "pike", "twist")


def test_the_bound_of_known_ness_is_a_quantile_of_the_labelled_videos():
    """Against every pair computed on its own; a class of one has no say."""
    emb_GTD = torch.nn.functional.normalize(torch.randn(7, 4, 8, generator=torch.Generator().manual_seed(2)), dim=2)
    label_G = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    members = Gallery(emb_GTD, label_G, tuple("abcdefg"), 3)
    head, recipe = ScoreHead(), find("rehearsal")
    head.standardise(0.3, 0.1)
    best: list[float] = []
    for g in range(6):
        classes = [[a for a in range(7) if a != g and label_G[a] == c] for c in range(3)]
        odds = [[head(alignment_distance(emb_GTD[g : g + 1], emb_GTD[a : a + 1])).item() for a in of] for of in classes]
        best.append(max(sum(of) / len(of) for of in odds))
    for share in (0.0001, 0.3, 0.5):
        asked = replace(recipe, label=replace(recipe.label, known=share))
        assert known_from(members, head, asked, seed=0) == pytest.approx(np.quantile(best, share), abs=1e-5)
    with pytest.raises(TrainingError, match=r"label.known = 0.5 compares .* no class has two"):
        known_from(members.take([0, 3, 6]), head, asked, seed=0)


def labels(accepted, label, agree):
    return pa.table({"accepted": accepted, "label": label, "agree": agree})


GOOD = labels([True, True, True, False], [0, 1, 2, 2], [True, True, False, True])


def test_guard_lets_good_labels_pass():
    guard(GOOD, find("rehearsal"), "round", NAMES)


@pytest.mark.parametrize(
    ("accepted", "label", "agree", "message"),
    [
        (
            [False] * 4, [0, 1, 2, 2], [True] * 4,
            r"round: almost nothing is accepted \(coverage 0.000, .*label.min_coverage = 0.01\). Lower "
            r"label.threshold \(now 0.5\)",
        ),
        ([True] * 4, [1, 1, 1, 2], [True] * 4, r"one class, pike, takes .*share 0.750; label.max_class_share = 0.6"),
        ([True] * 3, [0, 1, 2], [False] * 3, r"p_E and p_A hardly ever agree .*agreement 0.000.*min_agreement = 0.05"),
    ],
)  # fmt: skip
def test_guard_stops_collapsed_labels_with_figures_and_advice(accepted, label, agree, message):
    with pytest.raises(TrainingError, match=message):
        guard(labels(accepted, label, agree), find("rehearsal"), "round", NAMES)


def test_guard_keeps_to_the_recipes_bounds():
    recipe = find("rehearsal")
    loose = replace(recipe, label=replace(recipe.label, min_agreement=0.0, max_class_share=1.0, min_coverage=0.0))
    guard(labels([True] * 3, [1, 1, 1], [False] * 3), loose, "round", NAMES)
    guard(labels([False] * 3, [1, 1, 1], [False] * 3), loose, "round", NAMES)
    strict = replace(recipe, label=replace(recipe.label, min_coverage=0.8))
    with pytest.raises(TrainingError, match=r"coverage 0.750"):
        guard(GOOD, strict, "round", NAMES)


def target(top, top_p, num_classes):
    """What `make_batch` makes of one pseudo-label, before a video with a real one of class 1."""
    chosen = samples([0, 1], [top[0], 1], top=[top, None], top_p=[top_p, None])
    lengths = {"align_frames": 1, "video_frames": 1}
    plan = replace(plan_score(manifest(2), np.arange(2), **lengths, clips=1, block_videos=2), samples=chosen)
    zeros = np.zeros((2, 1, 1, 1, 3), np.uint8)
    columns = {"row": [0, 1], "clip_0": zeros, "clip_1": zeros, "error": ["", ""], "decode_s": [0.0], "cache_hit": [0]}
    soft_K, hard_K = make_batch(plan, num_classes, columns).target_BK.numpy()
    np.testing.assert_array_equal(hard_K, np.eye(num_classes)[1])
    return soft_K


def test_soft_targets_spread_what_was_not_kept():
    np.testing.assert_allclose(target([3, 0], [0.6, 0.2], 4), [0.2, 0.1, 0.1, 0.6], atol=1e-6)
    np.testing.assert_allclose(target([1, 2], [0.75, 0.25], 4), [0, 0.75, 0.25, 0], atol=1e-6)
    np.testing.assert_allclose(target([1, 0], [0.9, 0.1], 2), [0.1, 0.9], atol=1e-6)


@given(st.integers(2, 40), st.integers(0, 10_000), st.floats(0.01, 30))
def test_soft_targets_sum_to_one_and_keep_the_winner(num_classes, seed, sharpness):
    logits_K = sharpness * np.random.default_rng(seed).normal(size=num_classes)
    p_K = (np.exp(logits_K - logits_K.max()) / np.exp(logits_K - logits_K.max()).sum()).astype(np.float32)
    top = np.argsort(-p_K, kind="stable")[:5]
    target_K = target(top.tolist(), p_K[top].tolist(), num_classes)
    assert target_K.sum() == pytest.approx(1, abs=1e-5)
    assert target_K.min() >= 0
    np.testing.assert_array_equal(target_K[top], p_K[top])
    assert target_K.max() == p_K[top[0]]


def test_a_table_of_labels_keeps_the_surest_classes_and_what_each_net_said():
    p_A_NK = torch.tensor([[0.1, 0.2, 0.05, 0.3, 0.15, 0.2], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]])
    p_E_NK = torch.tensor([[0.1, 0.1, 0.05, 0.4, 0.15, 0.2], [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]])
    p_NK, near_N = collaborate.fuse(p_A_NK, p_E_NK), torch.tensor([1.5, -2.0])
    made = collaborate.decide(p_NK, p_A_NK, p_E_NK, ["a", "b"], threshold=0.35, knownness_N=near_N)
    near = np.array([[9, 8], [1, 2]], np.int32), np.array([[0.75, 0.5], [0.25, 0.125]], np.float32)
    table = label_table(made, np.array([7, 4]), p_A_NK, p_E_NK, *near)
    first, second = table.to_pylist()
    assert (first["video_id"], first["clip"], first["label"], first["top"]) == ("a", 7, 3, [3, 5, 1, 4, 0])
    assert first["confidence"] == first["top_p"][0] == pytest.approx(float(made.p_NK[0, 3]))
    assert first["top_p"] == sorted(first["top_p"], reverse=True)
    assert sum(first["top_p"]) == pytest.approx(1 - float(made.p_NK[0, 2]), abs=1e-6)
    assert [first["accepted"], second["accepted"]] == made.accepted.tolist() == [True, False]
    assert (first["knownness"], second["knownness"]) == (1.5, -2.0)
    assert (first["agree"], second["agree"]) == (True, False)
    assert (second["label_A"], second["label_E"]) == (0, 5)
    assert (first["confidence_A"], first["confidence_E"]) == (pytest.approx(0.3), pytest.approx(0.4))
    assert (first["near"], first["near_S"], second["near"]) == ([9, 8], [0.75, 0.5], [1, 2])
    none = p_NK[:0]
    nothing = collaborate.decide(none, none, none, [], threshold=0.35, knownness_N=near_N[:0])
    nobody = label_table(nothing, np.zeros(0, int), p_A_NK[:0], p_E_NK[:0], *(of_NM[:0] for of_NM in near))
    assert nobody.schema == table.schema, "one file takes both"


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 10_000))
def test_what_is_kept_of_p_are_its_largest_in_order(num_classes, videos, seed):
    p_NK = np.random.default_rng(seed).permuted(np.tile(np.arange(num_classes) / 64, (videos, 1)), axis=1)
    top, top_p = most_likely(p_NK.astype(np.float32))
    order = np.argsort(-p_NK, axis=1)[:, :5]
    np.testing.assert_array_equal(top, order)
    np.testing.assert_array_equal(top_p, np.take_along_axis(p_NK, order, 1))


def test_accepted_videos_become_samples_that_weigh_their_confidence():
    table = pa.table(
        {
            "clip": [8, 3, 5],
            "label": [2, 0, 1],
            "confidence": [0.5, 0.9, 0.75],
            "accepted": [True, False, True],
            "top": [[2, 0], [0, 1], [1, 2]],
            "top_p": [[0.5, 0.25], [0.9, 0.1], [0.75, 0.25]],
        }
    )
    soft, hard = (pseudo_samples(pa.concat_tables([table[:1], table[1:]]), soft=soft) for soft in (True, False))
    bare = [{"clip": 8, "label": 2, "weight": 0.5}, {"clip": 5, "label": 1, "weight": 0.75}]
    assert hard.to_pylist() == [{**row, "top": None, "top_p": None} for row in bare]
    kept = [{"top": [2, 0], "top_p": [0.5, 0.25]}, {"top": [1, 2], "top_p": [0.75, 0.25]}]
    assert soft.to_pylist() == [{**row, **target} for row, target in zip(bare, kept, strict=True)]


def gallery(count, seed=0, equal=False):
    emb_GTD = torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(seed))
    emb_GTD = torch.nn.functional.normalize(emb_GTD[:1].expand_as(emb_GTD) if equal else emb_GTD, dim=-1)
    return Gallery(emb_GTD, torch.arange(count) % 2, [f"v{index}" for index in range(count)], 2)


def test_statistics_are_over_pairs_of_two_videos():
    some = gallery(5)
    dist_GG = distances(some.emb_GTD, some.emb_GTD, 0.1).double()
    values = torch.stack([dist_GG[i, j] for i in range(5) for j in range(i + 1, 5)])
    found = compare_labelled(some, 0.1, 0)
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.std == pytest.approx(float(values.std()))


def test_many_labelled_videos_are_compared_by_a_balanced_sample(monkeypatch):
    monkeypatch.setattr("finepseudo.train.pseudo_labels.COMPARED", 8)
    some = gallery(30)
    assert compare_labelled(some, 0.1, 3) == compare_labelled(some.balanced(4, 3), 0.1, 0)
    assert compare_labelled(some, 0.1, 3) != compare_labelled(some, 0.1, 4)
    assert COMPARED >= 1000


@pytest.mark.parametrize("few", [gallery(2), gallery(4, equal=True)], ids=["one pair", "equal videos"])
def test_statistics_of_too_little_are_still_usable(few):
    """A deviation of 0 would read as no new head, and one that is no number would make every score none."""
    found = compare_labelled(few, 0.1, 0)
    assert np.isfinite(found.mean)
    assert 0 < found.std < 0.1
