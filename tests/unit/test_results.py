"""The figures of a run against small cases that were counted by hand."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from test_report import labels as sample_labels
from test_report import results as sample_results

from finepseudo.align.score import distances
from finepseudo.errors import ArtefactError
from finepseudo.measures import pair_average_precision
from finepseudo.results import (
    Confusion,
    Results,
    RoundLabels,
    Share,
    accuracy,
    gain,
    gains,
    pair_test,
    round_quality,
    share,
)

TRUTH = np.array([0, 0, 0, 1, 1, 2])


def probabilities(label_N, K=4, confidence=0.7):
    p_NK = np.full((len(label_N), K), (1 - confidence) / (K - 1))
    p_NK[np.arange(len(label_N)), label_N] = confidence
    return p_NK


def test_accuracy_by_hand():
    # classes of 3, 2, 1 and 0 videos with 3/3, 1/2, 0/1 right
    figures = accuracy(probabilities(np.array([0, 0, 0, 1, 0, 1])), TRUTH)
    assert figures.top1.value == pytest.approx(4 / 6)
    assert figures.top1.se == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 6))
    assert figures.mean_class.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert figures.mean_class.se == pytest.approx(math.sqrt(0.25 / 2) / 3)
    assert figures.per_class == [1.0, 0.5, 0.0, None]
    assert figures.calibration_error == pytest.approx(0.7 - 4 / 6)
    assert figures.confused == [Confusion(1, 0, 1, 0.5), Confusion(2, 1, 1, 1.0)]
    assert figures.videos == 6


def test_top_5_counts_the_five_best():
    p_NK = np.tile(np.array([0.3, 0.2, 0.18, 0.15, 0.1, 0.07]), (4, 1))
    figures = accuracy(p_NK, np.array([0, 3, 4, 5]))
    assert (figures.top1.value, figures.top5.value) == (0.25, 0.75)
    assert figures.top5.se == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert accuracy(p_NK[:, :3], np.array([0, 1, 2, 2])).top5.value == 1.0


KNOWN = np.ones(6, bool)
LABELS = RoundLabels(
    accepted=np.array([True, True, True, False, False, True]),
    label=np.array([0, 0, 1, 1, 0, 1]),
    label_A=np.array([0, 1, 1, 1, 1, 1]),
    label_E=np.array([0, 0, 2, 0, 1, 2]),
    confidence=np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.6]),
    confidence_A=np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.4]),
    confidence_E=np.array([0.4, 0.5, 0.6, 0.9, 0.8, 0.7]),
    knownness=np.array([3.0, 2.0, -1.0, 1.0, 0.0, 2.5]),
)


def test_what_is_not_known_takes_no_part():
    """As with the known videos alone, but for what needs no truth."""
    known_N = np.array([True, False, True, True, False, True])
    alone = RoundLabels(*[getattr(LABELS, name)[known_N] for name in asdict(LABELS)])
    fewer, expected = round_quality(LABELS, TRUTH, known_N, 4), round_quality(alone, TRUTH[known_N], KNOWN[known_N], 4)
    for name in ("precision_all", "precision_accepted", "calibration_error", "right_per_class", "curves", "known"):
        assert getattr(fewer, name) == getattr(expected, name), name
    assert fewer.known_per_class == expected.accepted_per_class
    whole = round_quality(LABELS, TRUTH, KNOWN, 4)
    for name in ("unlabelled", "accepted", "coverage", "agreement", "accepted_per_class"):
        assert getattr(fewer, name) == getattr(whole, name), name
    nothing = round_quality(LABELS, TRUTH, ~KNOWN, 4)
    assert nothing.precision_all == nothing.precision_accepted == {"p_E": None, "p_A": None, "p": None}
    assert (nothing.calibration_error, nothing.curves, nothing.known) == (None, {}, 0)


def test_round_quality_by_hand():
    quality = round_quality(LABELS, TRUTH, KNOWN, 4)
    # right: p 1 1 0 1 0 0, p_A 1 0 0 1 1 0, p_E 1 1 0 0 1 1; accepted: 1 1 1 0 0 1
    assert (quality.unlabelled, quality.accepted) == (6, 4)
    assert quality.coverage == pytest.approx(4 / 6)
    assert quality.agreement == pytest.approx(2 / 6)
    assert round_quality(replace(LABELS, label_A=LABELS.label_E), TRUTH, KNOWN, 4).agreement == 1.0
    assert {name: found.value for name, found in quality.precision_all.items()} == {
        "p_E": pytest.approx(4 / 6),
        "p_A": 0.5,
        "p": 0.5,
    }
    assert {name: found.value for name, found in quality.precision_accepted.items()} == {
        "p_E": 0.75,
        "p_A": 0.25,
        "p": 0.5,
    }
    assert quality.precision_accepted["p_E"].se == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert quality.accepted_per_class == [2, 2, 0, 0]
    assert quality.right_per_class == [2, 0, 0, 0]
    # one bin a video: |right - confidence|, over six
    assert quality.calibration_error == pytest.approx((0.1 + 0.2 + 0.7 + 0.7 + 0.2 + 0.6) / 6)


def test_novel_videos_are_told_by_three_scores():
    """Class 1, two of six videos, has no label: each score orders so many of the 2 x 4 pairs rightly."""
    found = round_quality(LABELS, TRUTH, KNOWN, 4, novel=[1]).open_world
    assert found is not None
    assert found.novel == 2
    # known-ness of the known 3, 2, -1, 2.5 and of the novel 1, 0: 2 + 2 + 0 + 2 of 8
    assert {name: of.value for name, of in found.auroc.items()} == {"knownness": 6 / 8, "p_A": 0.0, "p_E": 0.0}
    assert found.contamination == Share(0.0, 0.0)
    assert found.coverage_known == 1.0
    known_N = np.array([True, True, True, True, False, True])
    kept = replace(LABELS, accepted=np.array([True, False, True, True, True, False]))
    found = round_quality(kept, TRUTH, known_N, 4, novel=[1]).open_world
    assert (found.novel, found.contamination.value, found.coverage_known) == (1, 1 / 3, 2 / 4)


def test_without_novel_videos_there_is_no_open_world():
    assert round_quality(LABELS, TRUTH, KNOWN, 4).open_world is None
    assert round_quality(LABELS, TRUTH, KNOWN, 4, novel=[3]).open_world is None
    assert round_quality(LABELS, TRUTH, ~KNOWN, 4, novel=[1]).open_world is None
    assert round_quality(LABELS, TRUTH, KNOWN, 4, novel=[0, 1, 2]).open_world is None


def test_curves_are_those_of_their_own_labels_and_confidences():
    curves = round_quality(LABELS, TRUTH, KNOWN, 4).curves
    coverage = [n / 6 for n in range(1, 7)]
    for name, right in {"p": [1, 1, 0, 0, 1, 0], "p_A": [1, 1, 0, 0, 1, 0], "p_E": [0, 1, 1, 0, 1, 1]}.items():
        assert curves[name].coverage == pytest.approx(coverage)
        assert curves[name].precision == pytest.approx(list(np.cumsum(right) / np.arange(1, 7))), name


def test_curves_have_a_bounded_number_of_points():
    many = RoundLabels(*[np.tile(getattr(LABELS, name), 40) for name in asdict(LABELS)])
    many = replace(many, confidence=np.linspace(0.1, 0.9, 240))
    curve = round_quality(many, np.tile(TRUTH, 40), np.tile(KNOWN, 40), 4).curves["p"]
    assert len(curve.coverage) == len(curve.precision) == 50
    assert (curve.coverage[0], curve.coverage[-1]) == (pytest.approx(1 / 240), 1.0)


def test_nothing_accepted_is_not_known_rather_than_0():
    quality = round_quality(replace(LABELS, accepted=np.zeros(6, bool)), TRUTH, KNOWN, 4)
    assert (quality.accepted, quality.coverage) == (0, 0.0)
    assert quality.precision_accepted == {"p_E": None, "p_A": None, "p": None}
    assert share(np.zeros(0, bool)) is None


def test_gain_is_ours_minus_theirs_with_the_paired_error():
    ours, theirs = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 2])
    found = gain(ours, theirs, TRUTH)  # by video: 0 0 1 1 0 -1
    assert found.value == pytest.approx(1 / 6)
    assert found.se == pytest.approx(np.std([0, 0, 1, 1, 0, -1], ddof=1) / math.sqrt(6))
    assert gain(theirs, ours, TRUTH).value == pytest.approx(-1 / 6)
    assert gain(ours[:1], theirs[:1], TRUTH[:1]) == Share(0.0, None)


def test_gains_are_named_by_part_and_rival_and_leave_out_what_is_missing():
    right, wrong = TRUTH, TRUTH + 1
    predictions = {"a/f_E": right, "a/fused": wrong, "b/f_E": wrong, "b/fused": wrong, "c/f_E": right}
    found = gains(predictions, TRUTH, "a", ("b", "c", "d"))
    assert {name: value.value for name, value in found.items()} == {
        "f_E, over b": 1.0,
        "f_E, over c": 0.0,
        "fused, over b": 0.0,
    }
    assert gains(predictions, TRUTH, "elsewhere", ("b",)) == {}


def walks(seed, classes):
    """Embeddings in which the classes differ in their way through time more than in their mean."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(3, 6, 8, generator=generator)
    noise = torch.randn(len(classes), 6, 8, generator=generator)
    return torch.nn.functional.normalize(base[torch.as_tensor(classes)] + 2 * noise, dim=-1)


def test_pair_test_takes_each_score_from_its_own_embeddings():
    label_N = np.array([0, 0, 1, 1, 2, 2, 0, 1])
    before, after = walks(1, label_N), walks(2, label_N)
    found = pair_test(before, after, label_N, 0.1)
    i, j = np.triu_indices(8, k=1)
    same = label_N[i] == label_N[j]
    assert (found.videos, found.pairs, found.same) == (8, 28, int(same.sum()))
    by_hand = {
        "pooled_cosine": torch.cosine_similarity(before[i].mean(1), before[j].mean(1), dim=1).numpy(),
        "timestamp_cosine": (before[i] * before[j]).sum((1, 2)).numpy(),
        "dtw": (-distances(before, before, 0.1)).numpy()[i, j],
        "score": (-distances(after, after, 0.1)).numpy()[i, j],
    }
    expected = {name: pair_average_precision(values, same) for name, values in by_hand.items()}
    assert len({round(value, 6) for value in expected.values()}) == 4, "the case tells the four apart"
    assert {name: value.value for name, value in found.scores.items()} == pytest.approx(expected)
    assert all(value.se > 0 for value in found.scores.values())


@pytest.mark.parametrize("label_N", [[0, 0, 0], [0, 1, 2]])
def test_pair_test_needs_pairs_of_both_kinds(label_N):
    emb = walks(3, np.array(label_N))
    found = pair_test(emb, emb, np.array(label_N), 0.1)
    assert found.scores == {}
    assert (found.videos, found.pairs, found.same) == (3, 3, 3 if len(set(label_N)) == 1 else 0)


def test_results_are_read_as_they_were_written():
    whole = sample_results(rounds=2)
    assert Results.from_json(whole.to_json()) == whole
    nothing = replace(whole, rounds={"finepseudo": [sample_labels("finepseudo/round-1", accepted=0)]})
    (again,) = Results.from_json(nothing.to_json()).rounds["finepseudo"]
    assert math.isnan(again.quality.calibration_error)
    assert again.quality.precision_accepted["p"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "results of version 0, expected 5.*jobs/evaluate.py writes them again"),
        ({"version": None}, "results of version None"),
        ({"classes": 3}, "field classes: "),
        ({"pairs": {"videos": "many"}}, "field pairs.videos: "),
    ],
)
def test_other_results_are_refused_by_their_field(change, message):
    body = json.loads(sample_results().to_json()) | change
    with pytest.raises(ArtefactError, match=message):
        Results.from_json(json.dumps(body).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3"])
def test_what_is_no_results_file_is_refused(data):
    with pytest.raises(ArtefactError, match=r"not JSON|version None"):
        Results.from_json(data)
