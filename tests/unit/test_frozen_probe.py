"""The frozen probe against its own formula, and what it may look at."""

import numpy as np
import pytest
import torch

from finepseudo.train.frozen_probe import COSTS, FOLDS, _chosen, _folds, probe


def clouds(per_class, far=3.0, noise=0, K=4, seed=0):
    """Labels, and Gaussian clouds around K corners, beside features that say nothing."""
    rng = np.random.default_rng(seed)
    label_G = np.repeat(np.arange(K), per_class)
    feat_GF = far * np.eye(K)[label_G] + rng.normal(size=(len(label_G), K))
    return np.concatenate([feat_GF, rng.normal(size=(len(label_G), noise))], 1), label_G


def test_it_is_the_minimum_of_its_formula():
    feat_GF, label_G = clouds(10, far=1.0)
    test_NF, _ = clouds(5, far=1.0, seed=1)
    p_NK = probe(feat_GF, label_G, test_NF, 4, seed=0)
    mean_F, std_F = feat_GF.mean(0), feat_GF.std(0)
    z_GF, z_NF = (torch.tensor((feat - mean_F) / std_F) for feat in (feat_GF, test_NF))
    cost = _chosen(z_GF.numpy(), label_G, np.random.default_rng(0))
    w_FK, b_K = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    params = [w_FK.requires_grad_(), b_K.requires_grad_()]
    solver = torch.optim.LBFGS(params, max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        fit = torch.nn.functional.cross_entropy(z_GF @ w_FK + b_K, torch.tensor(label_G), reduction="sum")
        value = (w_FK**2).sum() / 2 + cost * fit
        value.backward()
        return value

    solver.step(loss)
    np.testing.assert_allclose(p_NK, (z_NF @ w_FK + b_K).softmax(1).detach().numpy(), atol=2e-3)


def test_it_finds_classes_whatever_the_scale_of_a_feature():
    feat_GF, label_G = clouds(6)
    test_NF, truth_N = clouds(50, seed=1)
    p_NK = probe(feat_GF, label_G, test_NF, 4, seed=0)
    assert (p_NK.argmax(1) == truth_N).mean() > 0.85
    scale_F, shift_F = np.array([1e3, 1, 1e-3, 5]), np.array([0, 50, -1, 1e4])
    other_NK = probe(feat_GF * scale_F + shift_F, label_G, test_NF * scale_F + shift_F, 4, seed=0)
    np.testing.assert_allclose(other_NK, p_NK, atol=1e-3)


def test_test_videos_decide_nothing():
    feat_GF, label_G = clouds(4)
    test_NF, _ = clouds(3, seed=1)
    alone = probe(feat_GF, label_G, test_NF[:1], 4, seed=0)
    among = probe(feat_GF, label_G, np.concatenate([test_NF[:1], 100 * test_NF]), 4, seed=0)
    np.testing.assert_array_equal(alone, among[:1])


def test_noise_asks_for_a_stronger_penalty():
    rng = np.random.default_rng
    for seed in range(3):
        plain, noisy = clouds(30, far=6.0, seed=seed), clouds(6, far=1.0, noise=100, seed=seed)
        assert _chosen(*plain, rng(0)) == max(COSTS)
        assert _chosen(*noisy, rng(0)) <= 0.01


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 2, 7), (2, 2, 2), (40, 3, 1)])
def test_no_fold_takes_all_of_a_class(counts):
    label_G = np.repeat([0, 3, 4], counts)
    fold_G = _folds(label_G)
    for label, count in zip([0, 3, 4], counts, strict=True):
        here = fold_G[label_G == label]
        assert (here < 0).all() if count == 1 else (here >= 0).all()
        assert all((here != fold).any() for fold in range(FOLDS))
    sizes = np.bincount(fold_G[fold_G >= 0], minlength=FOLDS)
    assert sizes.max() - sizes.min() <= 1


def test_one_video_a_class_and_classes_without_any():
    feat_GF, label_G = clouds(1, far=8.0)
    test_NF, truth_N = clouds(20, far=8.0, seed=1)
    p_NK = probe(feat_GF[1:], label_G[1:], test_NF, 6, seed=0)
    np.testing.assert_allclose(p_NK.sum(1), 1, atol=1e-5)
    assert (p_NK[:, [0, 4, 5]] == 0).all()
    assert (p_NK.argmax(1) == truth_N)[truth_N > 0].mean() > 0.9
