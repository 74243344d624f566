"""Fusion: the paper's mean, and a product whose weights no label of D_u has told."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from finepseudo.align import collaborate
from finepseudo.align.fusion import HIGHEST, LOWEST, NEIGHBOURS, PAPER, Fusion, Referees, estimate, support

torch.set_num_threads(1)
N, K, G = 400, 6, 24


def rng(seed):
    return torch.Generator().manual_seed(seed)


def net(truth_N, accuracy, seed, scale=3.0):
    """Logits of a net that is right in so many cases, of margins that say nothing of it."""
    wrong_N = (truth_N + torch.randint(1, K, truth_N.shape, generator=rng(seed))) % K
    right_N = torch.rand(len(truth_N), generator=rng(seed + 1)) < accuracy
    logits_NK = torch.randn(len(truth_N), K, generator=rng(seed + 2))
    logits_NK.scatter_(1, torch.where(right_N, truth_N, wrong_N)[:, None], float(logits_NK.max()) + 1)
    return scale * logits_NK


def space(truth_N, label_G, spread, seed):
    """Distances in a feature space where classes are as far apart as their members are wide, by `spread`."""
    centre_KF = torch.randn(K, 8, generator=rng(seed))
    truth_M = torch.cat([truth_N, label_G])
    feat_MF = centre_KF[truth_M] + spread * torch.randn(len(truth_M), 8, generator=rng(seed + 1))
    return torch.cdist(feat_MF[: len(truth_N)], feat_MF)


@pytest.fixture(scope="module")
def scene():
    truth_N, label_G = torch.arange(N) % K, torch.arange(G) % K
    return truth_N, Referees([space(truth_N, label_G, 0.5, 1), space(truth_N, label_G, 2.0, 5)], label_G)


def accuracy(p_NK, truth_N):
    return float((p_NK.argmax(1) == truth_N).double().mean())


@pytest.mark.parametrize(("acc_A", "acc_E"), [(0.9, 0.5), (0.5, 0.9), (0.8, 0.75), (0.95, 0.9)])
def test_accuracies_and_the_better_net_are_found_whichever_it_is(scene, acc_A, acc_E):
    truth_N, referees = scene
    sbar_NK, logits_NK = net(truth_N, acc_A, 10), net(truth_N, acc_E, 20, scale=1.0)
    found = estimate(sbar_NK, logits_NK, referees)
    real_A, real_E = accuracy(sbar_NK, truth_N), accuracy(logits_NK, truth_N)
    assert found.accuracy_A == pytest.approx(real_A, abs=0.08)
    assert found.accuracy_E == pytest.approx(real_E, abs=0.08)
    assert accuracy(found.p(sbar_NK, logits_NK), truth_N) >= max(real_A, real_E) - 0.03
    for p_NK, wanted in (
        (found.p_A(sbar_NK), found.accuracy_A),
        (found.p_E(logits_NK), found.accuracy_E),
        (found.p(sbar_NK, logits_NK), found.accuracy),
    ):
        assert float(p_NK.max(1).values.mean()) == pytest.approx(wanted, abs=0.01)


def test_nets_that_tell_different_classes_apart_are_right_together():
    """f_A knows the class up to 2 k and 2 k + 1, f_E whether it is even; each alone is right in half or a third."""
    truth_N, label_G = torch.arange(N) % K, torch.arange(G) % K
    noise_A, noise_E = torch.randn(2, N, K, generator=rng(3)) * 0.05
    classes_K = torch.arange(K)
    sbar_NK = (classes_K // 2 == truth_N[:, None] // 2).float() + noise_A
    logits_NK = 4 * ((classes_K % 2 == truth_N[:, None] % 2).float() + noise_E)
    referees = Referees([space(truth_N, label_G, 1.0, 1)] * 2, label_G)
    found = estimate(sbar_NK, logits_NK, referees)
    assert accuracy(sbar_NK, truth_N) < 0.6
    assert accuracy(logits_NK, truth_N) < 0.45
    assert accuracy(found.p(sbar_NK, logits_NK), truth_N) == 1


def test_scales_of_the_scores_do_not_matter(scene):
    truth_N, referees = scene
    sbar_NK, logits_NK = net(truth_N, 0.8, 10), net(truth_N, 0.6, 20)
    one, other = estimate(sbar_NK, logits_NK, referees), estimate(10 * sbar_NK - 3, logits_NK / 7, referees)
    torch.testing.assert_close(one.p(sbar_NK, logits_NK), other.p(10 * sbar_NK - 3, logits_NK / 7), atol=2e-3, rtol=0)


def test_a_space_that_knows_nothing_does_not_lead(scene):
    truth_N, referees = scene
    sbar_NK, logits_NK = net(truth_N, 0.9, 10), net(truth_N, 0.5, 20)
    noise = torch.rand(referees.dist_RNM[0].shape, generator=rng(9))
    with_noise = estimate(sbar_NK, logits_NK, Referees([referees.dist_RNM[0], noise], referees.label_G))
    assert accuracy(with_noise.p(sbar_NK, logits_NK), truth_N) >= 0.9 - 0.02


def test_nets_that_err_together_are_not_believed():
    """Both were taught that three classes are one; their neighbours have it from three places."""
    truth_N, label_G = torch.arange(N) % K, torch.arange(G) % K
    believed_N = torch.randint(0, K, (N,), generator=rng(4))
    logits_NK = 5.0 * torch.nn.functional.one_hot(believed_N, K).float()
    found = estimate(logits_NK, logits_NK, Referees([space(truth_N, label_G, 0.3, 1)], label_G))
    assert found.accuracy < 0.7
    assert estimate(5.0 * torch.nn.functional.one_hot(truth_N, K).float(), net(truth_N, 0.9, 1),
                    Referees([space(truth_N, label_G, 0.3, 1)], label_G)).accuracy > 0.9  # fmt: skip


def test_votes_are_shares_of_the_nearest_that_have_a_label():
    """Clips 0 to 3, of which 1 and 2 have an agreed label, then two labelled ones."""
    dist_NM = torch.tensor([[0.0, 1, 5, 1, 2, 9], [1, 0, 3, 1, 9, 2], [9, 1, 0, 1, 8, 7], [1, 9, 8, 0, 7, 6]])
    referees = Referees([dist_NM], torch.tensor([0, 2]))
    agreed_N, label_N = torch.tensor([False, True, True, False]), torch.tensor([1, 1, 0, 2])
    votes_NK = referees.votes(label_N, agreed_N, 3)[0]
    assert NEIGHBOURS == 8  # more than there are: all that may be
    np.testing.assert_allclose(votes_NK, np.array([[2, 1, 1], [2, 0, 1], [1, 1, 1], [2, 1, 1]]) / [[4], [3], [3], [4]])
    some = referees.among([2, 0])
    assert some.dist_RNM[0].tolist() == [[0, 9, 8, 7], [5, 0, 2, 9]]
    assert some.label_G.tolist() == [0, 2]


def test_only_the_nearest_vote():
    dist_NM = torch.cat([torch.zeros(1, 1), torch.arange(1.0, 21)[None]], 1)
    label_G = torch.tensor([0] * 8 + [1] * 12)
    votes_NK = Referees([dist_NM], label_G).votes(torch.tensor([1]), torch.tensor([True]), 2)[0]
    assert votes_NK.tolist() == [[1.0, 0.0]]


def test_the_papers_rule_is_the_mean():
    sbar_NK, logits_NK = net(torch.arange(9) % K, 0.5, 1), net(torch.arange(9) % K, 0.5, 7)
    want = ((sbar_NK / 0.5).softmax(1) + logits_NK.softmax(1)) / 2
    torch.testing.assert_close(PAPER.p(sbar_NK, logits_NK), want)


def test_the_product_by_hand():
    fusion = Fusion(tau_A=1.0, tau_E=1.0, pool_A=2.0, pool_E=0.5)
    sbar_NK, logits_NK = torch.tensor([[1.0, 0.0, -math.inf]]), torch.tensor([[0.0, 3.0, 9.0]])
    e = [math.exp(2), math.exp(1.5)]
    torch.testing.assert_close(fusion.p(sbar_NK, logits_NK), torch.tensor([[e[0] / sum(e), e[1] / sum(e), 0.0]]))


def test_what_no_video_of_D_u_is_as_unlike_as_is_left_to_f_E(scene):  # noqa: N802
    assert support(torch.tensor([[5.0, 0], [2, 1], [1, 0], [-6, -7]]), 2.0, 0.5).tolist() == pytest.approx(
        [1, 1, math.exp(-2), math.exp(-16)]
    )
    truth_N, referees = scene
    sbar_NK, logits_NK = net(truth_N, 0.9, 10), net(truth_N, 0.6, 20)
    found = estimate(sbar_NK, logits_NK, referees)
    assert found.low == pytest.approx(float(sbar_NK.max(1).values.min()))
    assert found.low + found.reach == pytest.approx(float(sbar_NK.max(1).values.median()))
    far_NK = sbar_NK - 100
    torch.testing.assert_close(found.p(far_NK, logits_NK).argmax(1), logits_NK.argmax(1))
    ungated = replace(found, low=-math.inf)
    assert accuracy(ungated.p(far_NK, logits_NK), truth_N) > accuracy(found.p(far_NK, logits_NK), truth_N) + 0.2


def test_a_class_without_a_gallery_member_gets_nothing(scene):
    truth_N, referees = scene
    sbar_NK, logits_NK = net(truth_N, 0.9, 10), net(truth_N, 0.6, 20)
    sbar_NK[:, 3] = -math.inf
    found = estimate(sbar_NK, logits_NK, referees)
    assert (found.p(sbar_NK, logits_NK)[:, 3] == 0).all()
    assert (found.p(sbar_NK - 100, logits_NK)[:, 3] == 0).all()
    assert all(math.isfinite(value) for value in vars(found).values())


def test_estimates_stay_within_bounds_where_nothing_agrees(scene):
    truth_N, referees = scene
    logits_NK = net(truth_N, 1.0, 1)
    found = estimate(logits_NK.roll(1, dims=1), logits_NK, referees)
    assert min(found.accuracy_A, found.accuracy_E, found.accuracy) >= LOWEST
    assert max(found.accuracy_A, found.accuracy_E, found.accuracy) <= HIGHEST
    same = estimate(logits_NK, logits_NK, Referees([space(truth_N, referees.label_G, 0.1, 1)], referees.label_G))
    assert same.accuracy_A == same.accuracy_E == HIGHEST
    one = estimate(logits_NK[:1], logits_NK[:1], referees.among([0]))
    assert all(math.isfinite(value) for value in vars(one).values())


def test_fusion_is_set_by_clips_of_both_passes_alone(scene):
    """Clips come in another order, and one could not be decoded in one of the two passes."""
    from finepseudo.driver.referees import Judged

    truth_N, referees = scene
    sbar_NK, logits_NK = net(truth_N, 0.8, 10), net(truth_N, 0.6, 20)
    order = torch.randperm(N, generator=rng(0)).numpy()
    found = {"clip": order + 1000, "sbar/a": sbar_NK.numpy()[order], "logits/e": logits_NK.numpy()[order]}
    clips = np.arange(N) + 1000
    whole = Judged(clips, referees).fusion(found, "a", "e")
    assert whole.pool_A == pytest.approx(estimate(sbar_NK, logits_NK, referees).pool_A, rel=1e-3)
    some = {key: value[1:] for key, value in found.items()}
    kept = sorted(order[1:].tolist())
    want = estimate(sbar_NK[kept], logits_NK[kept], referees.among(kept))
    assert Judged(clips, referees).fusion(some, "a", "e").pool_A == pytest.approx(want.pool_A, rel=1e-3)
    assert Judged(clips, None).fusion(found, "a", "e") == PAPER
    assert collaborate.knownness(sbar_NK).shape == (N,)
