"""Probabilities, their mean, temperatures, known-ness and decisions."""

import math

import pytest
import torch

from finepseudo.align.collaborate import (
    decide,
    fit_temperature,
    fuse,
    knownness,
    leave_one_out_knownness,
    p_align,
    p_video,
)
from finepseudo.align.gallery import Gallery

torch.set_num_threads(1)
INF = math.inf


def random_logits(N: int = 50, K: int = 6, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(N, K, generator=torch.Generator().manual_seed(seed))


def gallery(label, num_classes) -> Gallery:
    return Gallery(torch.ones(len(label), 2, 3), torch.tensor(label), tuple(map(str, range(len(label)))), num_classes)


def test_p_align_is_the_softmax_over_the_classes_with_members():
    p = p_align(torch.tensor([[1.0, -INF, 2.0]]), tau=0.5)
    e = math.exp(2) / (math.exp(2) + math.exp(4))
    torch.testing.assert_close(p, torch.tensor([[e, 0, 1 - e]]))
    assert p[0, 1] == 0


def test_p_align_refuses_rows_without_a_class():
    with pytest.raises(ValueError, match=r"one finite class a row, got 2 bad rows: \[1, 2\]; is the gallery empty"):
        p_align(torch.tensor([[0.0, -INF], [-INF, -INF], [math.nan, 0.0]]), tau=0.5)
    with pytest.raises(ValueError, match="tau > 0, got 0"):
        p_align(torch.zeros(1, 2), tau=0)


def test_p_video_is_a_softmax_in_fp32():
    logits = random_logits()
    torch.testing.assert_close(p_video(logits), logits.softmax(1))
    torch.testing.assert_close(p_video(logits, tau=2), (logits / 2).softmax(1))
    assert p_video(logits.bfloat16()).dtype == torch.float32


def test_fusion_is_half_the_sum():
    a, e = p_video(random_logits()), p_video(random_logits(seed=1))
    torch.testing.assert_close(fuse(a, e), 0.5 * a + 0.5 * e)
    torch.testing.assert_close(fuse(a, e).sum(1), torch.ones(50))
    with pytest.raises(ValueError, match=r"one shape \(N,K\), got \(50, 6\) and \(50, 5\)"):
        fuse(a, e[:, :5])


@pytest.mark.parametrize("confidence", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("hole", [False, True])
def test_temperature_gives_the_wanted_mean_confidence(confidence, hole):
    logits = random_logits()
    if hole:
        logits[:, 2] = -INF
        confidence = max(confidence, 0.21)
    tau = fit_temperature(logits, confidence)
    assert p_align(logits.double(), tau).max(1).values.mean().item() == pytest.approx(confidence, abs=1e-6)


def test_temperature_scales_with_the_logits_and_ignores_a_shift():
    logits = random_logits()
    tau = fit_temperature(logits, 0.7)
    assert fit_temperature(5 * logits, 0.7) == pytest.approx(5 * tau, rel=1e-6)
    assert fit_temperature(logits.double() + 100, 0.7) == pytest.approx(tau, rel=1e-5)


def test_temperature_saturates_at_its_bounds():
    assert fit_temperature(random_logits(K=4), 0.1) == pytest.approx(1e4)  # the mean maximum is never below 1/4
    assert fit_temperature(torch.zeros(3, 2), 0.9) == pytest.approx(1e-4)  # ties stay at 1/2
    assert fit_temperature(torch.zeros(3, 2), 0.3) == pytest.approx(1e4)


@pytest.mark.parametrize("confidence", [0, 1, -1, math.nan])
def test_temperature_refuses_a_confidence_that_is_none(confidence):
    with pytest.raises(ValueError, match=r"confidence in \(0, 1\)"):
        fit_temperature(random_logits(), confidence)


def test_temperature_needs_a_row():
    with pytest.raises(ValueError, match="got 0 rows"):
        fit_temperature(torch.zeros(0, 3), 0.5)


LABEL = [0, 0, 1, 1, 1, 2]


def test_known_ness_of_members_is_the_best_class_of_the_others():
    """Three of class 0 and one of class 1, who has no other: it is not asked, but stands as a class for the others."""
    odds = torch.tensor([[9.0, 1, 2, 0], [1, 9, 3, 5], [2, 3, 9, 1], [0, 5, 1, 9]])
    found = leave_one_out_knownness(gallery([0, 0, 0, 1], 2), odds)
    assert found.tolist() == [1.5, 5.0, 2.5]
    assert knownness(torch.tensor([[1.0, -INF], [-2.0, 0.5]])).tolist() == [1.0, 0.5]
    assert len(leave_one_out_knownness(gallery([0, 1], 2), torch.ones(2, 2))) == 0


def test_known_ness_wants_every_pair():
    with pytest.raises(ValueError, match=r"each of \(3, 3\) pairs of a gallery, got \(2, 2\)"):
        leave_one_out_knownness(gallery([0, 1, 2], 3), torch.zeros(2, 2))


P_A = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
P_E = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])


NEAR = torch.tensor([2.0, -1.0, 0.5])


@pytest.mark.parametrize(
    ("p_NK", "label", "confidence", "accepted"),
    [
        (fuse(P_A, P_E), [0, 0, 2], [0.85, 0.45, 0.7], [True, False, True]),
        (P_E, [0, 0, 2], [0.9, 0.8, 0.8], [True, True, True]),
        (P_A, [0, 1, 2], [0.8, 0.6, 0.6], [True, False, False]),
    ],
)
def test_decisions_by_what_labels_are_made_of(p_NK, label, confidence, accepted):
    out = decide(p_NK, P_A, P_E, ["a", "b", "c"], threshold=0.69, knownness_N=NEAR)
    assert out.video_ids == ("a", "b", "c")
    assert out.label.tolist() == label
    assert out.confidence.tolist() == pytest.approx(confidence)
    assert out.accepted.tolist() == accepted
    assert out.label_A.tolist() == [0, 1, 2]
    assert out.label_E.tolist() == [0, 0, 2]
    assert out.p_NK.max(1).tolist() == pytest.approx(confidence)
    assert out.knownness.tolist() == NEAR.tolist()


def test_a_video_like_no_class_gets_no_label():
    for known, accepted in ((-1.0, [True, True, True]), (0.5, [True, False, True]), (3.0, [False] * 3)):
        out = decide(P_E, P_A, P_E, ["a", "b", "c"], threshold=0.69, knownness_N=NEAR, known=known)
        assert out.accepted.tolist() == accepted, known


def test_no_videos_have_no_labels():
    none = torch.zeros(0, 3)
    out = decide(none, none, none, [], threshold=0.5, knownness_N=none[:, 0])
    assert out.p_NK.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": 1.5}, r"threshold in \[0, 1\], got 1.5"),
        ({"p_E_NK": P_E[:2]}, r"of p's shape \(3, 3\), got \(3, 3\), \(2, 3\)"),
        ({"knownness_N": NEAR[:2]}, r"knownness \(3,\), got \(2,\)"),
        ({"video_ids": ["a", "b"]}, r"N = 2 distinct video_ids, got \(3, 3\) and 2 names"),
        ({"video_ids": ["a", "b", "a"]}, "and 2 names"),
        ({"p_NK": P_A.clone().fill_(math.nan)}, r"3 bad rows: \['a', 'b', 'c'\]"),
    ],
)
def test_misfits_are_named(change, words):
    call = {"p_NK": P_A, "p_A_NK": P_A, "p_E_NK": P_E, "video_ids": ["a", "b", "c"], "threshold": 0.5}
    call |= {"knownness_N": NEAR, **change}
    with pytest.raises(ValueError, match=words):
        decide(**call)
