"""Measures against hand-made cases, loops, and missing classes."""

import math

import numpy as np
import pytest

from finepseudo import measures as m

RNG = np.random.default_rng


def test_top_k_counts_the_true_class_among_the_best():
    score = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]
    assert m.top_k_accuracy(score, [1, 1, 0]) == pytest.approx(1 / 3)
    assert m.top_k_accuracy(score, [1, 1, 0], k=2) == pytest.approx(2 / 3)
    assert m.top_k_accuracy(score, [1, 1, 0], k=99) == 1


def test_top_k_breaks_ties_towards_the_lower_class_and_takes_missing_classes():
    assert m.top_k_accuracy([[1.0, 1.0]], [0]) == 1
    assert m.top_k_accuracy([[1.0, 1.0]], [1]) == 0
    assert m.top_k_accuracy([[-math.inf, 0.0, -math.inf]], [1]) == 1
    with pytest.raises(ValueError, match=r"without NaN, got rows \[1\]"):
        m.top_k_accuracy([[0.0, 1.0], [math.nan, 0.0]], [0, 0])
    with pytest.raises(ValueError, match=r"truth within 0..1, got 2 in row 0"):
        m.top_k_accuracy([[0.0, 1.0]], [2])
    with pytest.raises(ValueError, match="N and k >= 1"):
        m.top_k_accuracy(np.zeros((0, 2)), [])


def test_accuracy_of_a_class_without_videos_is_undefined():
    label, truth = [0, 0, 0, 2, 1], [0, 0, 2, 2, 0]
    assert m.per_class_accuracy(label, truth, 4) == pytest.approx([2 / 3, math.nan, 0.5, math.nan], nan_ok=True)
    with pytest.raises(ValueError, match=r"label \(2,\), truth \(1,\)"):
        m.per_class_accuracy([0, 1], [0], 2)


def test_most_confused_pairs_are_ordered_and_say_which_way():
    truth, label = [0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 0, 1, 0, 0, 0, 1]
    assert m.most_confused(label, truth, 3, 9) == [(2, 0, 3), (0, 1, 2), (1, 0, 1), (2, 1, 1)]
    assert m.most_confused(label, truth, 3, 2) == [(2, 0, 3), (0, 1, 2)]
    assert m.most_confused(truth, truth, 3, 9) == m.most_confused([], [], 3, 9) == []
    with pytest.raises(ValueError, match="label within 0..2, got 3 in row 1"):
        m.most_confused([0, 3], [0, 0], 3, 9)


def slow_ece(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        inside = [n for n, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            total += abs(sum(right[n] for n in inside) - sum(confidence[n] for n in inside))
    return total / len(confidence)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_equals_the_loops(bins):
    confidence = RNG(0).random(300)
    right = RNG(1).random(300) < confidence**2
    assert m.calibration_error(confidence, right, bins) == pytest.approx(slow_ece(confidence, right, bins))


def test_calibration_error_of_clear_cases():
    assert m.calibration_error([1.0, 1.0], [True, True]) == 0
    assert m.calibration_error([1.0, 1.0], [False, False]) == 1
    assert m.calibration_error([0.0], [False]) == 0
    assert math.isnan(m.calibration_error([], []))
    with pytest.raises(ValueError, match=r"within 0..1, got 0.2 to 1.5"):
        m.calibration_error([0.2, 1.5], [True, True])


def test_precision_coverage_curve_is_that_of_every_threshold():
    confidence = RNG(0).integers(0, 10, 80) / 10
    label, truth = RNG(1).integers(0, 3, 80), RNG(2).integers(0, 3, 80)
    curve = m.precision_coverage_curve(confidence, label, truth)
    assert (np.diff(curve.threshold) < 0).all()
    assert curve.coverage[-1] == 1
    assert len(curve.threshold) == len(set(confidence))
    for threshold, precision, coverage in zip(curve.threshold, curve.precision, curve.coverage, strict=True):
        kept = confidence >= threshold
        assert ((label == truth)[kept].mean(), kept.mean()) == pytest.approx((precision, coverage))
    assert len(m.precision_coverage_curve([], [], []).threshold) == 0


def test_pair_average_precision_is_balanced():
    same = np.array([True] * 10 + [False] * 990)
    random = RNG(0).random(1000)
    assert m.pair_average_precision(np.zeros(1000), same) == pytest.approx(0.5)
    assert m.pair_average_precision(random, same) == pytest.approx(0.5, abs=0.2)
    assert m.pair_average_precision(random + same, same) == 1
    twice = np.concatenate([same, same[same]])  # more of the positives, the same value
    assert m.pair_average_precision(np.concatenate([random, random[same]]), twice) == pytest.approx(
        m.pair_average_precision(random, same)
    )


def test_pair_average_precision_by_hand_and_where_a_kind_is_missing():
    # sorted: + - + -, weights 1/2 each: precision 1 at the first, 2/3 at the second positive
    assert m.pair_average_precision([4, 3, 2, 1], [True, False, True, False]) == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(m.pair_average_precision([1, 2], [True, True]))
    assert math.isnan(m.pair_average_precision([], []))
    with pytest.raises(ValueError, match="1 non-finite"):
        m.pair_average_precision([1, math.nan], [True, False])


def all_pairs(videos: int, seed: int):
    """Pairs of videos with two classes, and a score that follows sameness loosely."""
    i, j = np.triu_indices(videos, 1)
    same = (i % 2) == (j % 2)
    of_video = RNG(seed).normal(size=videos)
    return same + of_video[i] + of_video[j], same, np.stack([i, j], 1)


def test_bootstrap_error_follows_the_spread_over_data():
    score, same, video = all_pairs(30, 0)
    error = m.pair_ap_standard_error(score, same, video, seed=1)
    spread = np.std([m.pair_average_precision(*all_pairs(30, seed)[:2]) for seed in range(60)])
    assert spread / 2 < error < 2 * spread
    assert error == m.pair_ap_standard_error(score, same, video, seed=1)
    assert error != m.pair_ap_standard_error(score, same, video, seed=2)


def test_bootstrap_error_does_not_fall_when_the_same_pairs_are_given_twice():
    score, same, video = all_pairs(12, 0)
    once = m.pair_ap_standard_error(score, same, video)
    twice = m.pair_ap_standard_error(np.tile(score, 2), np.tile(same, 2), np.tile(video, (2, 1)))
    assert twice == pytest.approx(once)


def test_bootstrap_error_is_undefined_without_both_kinds():
    assert math.isnan(m.pair_ap_standard_error([1, 2], [True, True], [[0, 1], [1, 2]]))
    assert math.isnan(m.pair_ap_standard_error([], [], np.zeros((0, 2))))
    with pytest.raises(ValueError, match=r"video \(2, 2\), got \(2,\)"):
        m.pair_ap_standard_error([1, 2], [True, False], [0, 1])


def test_proportion_error_is_the_deviation_of_a_mean():
    draws = RNG(0).binomial(200, 0.3, size=20000) / 200
    assert m.proportion_standard_error(0.3, 200) == pytest.approx(draws.std(), rel=0.03)
    assert m.proportion_standard_error(1.0, 5) == 0
    assert math.isnan(m.proportion_standard_error(0.5, 0))
    with pytest.raises(ValueError, match=r"within 0..1, got 1.1"):
        m.proportion_standard_error(1.1, 5)


def test_counts_and_agreement():
    assert m.class_counts([0, 2, 2], 4).tolist() == [1, 0, 2, 0]
    assert m.class_counts([], 2).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"label within 0..1, got -1 in row 1"):
        m.class_counts([0, -1], 2)
    assert m.agreement([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
    assert math.isnan(m.agreement([], []))


def test_bootstrap_interval_covers_a_mean_as_often_as_it_says():
    inside = 0
    for seed in range(100):
        value = RNG(seed).normal(size=40)
        low, high = m.bootstrap_interval(lambda count, of=value: float((of * count).sum() / count.sum()), 40, seed=seed)
        inside += low <= 0 <= high
    assert 86 <= inside <= 99
    assert m.bootstrap_interval(lambda count: float(count[0]), 9) == m.bootstrap_interval(lambda c: float(c[0]), 9)


def test_bootstrap_interval_leaves_out_what_is_undefined():
    assert m.bootstrap_interval(lambda count: math.nan, 9) is None
    assert m.bootstrap_interval(lambda count: 1.0, 0) is None
    assert m.bootstrap_interval(lambda count: math.nan if count[0] else 2.0, 9) == (2.0, 2.0)


def test_auroc_is_the_share_of_pairs_in_order():
    """Counted pair by pair, ties half."""
    rng = np.random.default_rng(0)
    score_N, positive_N = rng.integers(0, 12, 90), rng.random(90) < 0.3
    pairs = [(float(a > b) + 0.5 * float(a == b)) for a in score_N[positive_N] for b in score_N[~positive_N]]
    assert m.auroc(score_N, positive_N)[0] == pytest.approx(np.mean(pairs))
    assert m.auroc([3, 2, 1], [True, True, False]) == (1.0, 0.0)
    assert all(map(math.isnan, m.auroc([1.0, 2.0], [True, True])))
    with pytest.raises(ValueError, match="one length"):
        m.auroc([1.0, 2.0], [True])


def test_the_error_of_an_auroc_is_its_spread_over_draws():
    rng, areas, errors = np.random.default_rng(1), [], []
    for _ in range(400):
        positive_N = np.arange(120) < 40
        area, error = m.auroc(rng.exponential(np.where(positive_N, 2.5, 1.0)), positive_N)
        areas.append(area)
        errors.append(error)
    assert np.std(areas) == pytest.approx(np.mean(errors), rel=0.15)
