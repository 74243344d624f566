"""The tasks of the alignment literature against scipy, scikit-learn, closed forms and degenerate embeddings."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from finepseudo.align import frames
from finepseudo.results import FrameTruth, frame_quality


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def arc(angle_T):
    """Unit vectors of a plane: the nearest frame is the one of the nearest angle."""
    angle_T = torch.as_tensor(angle_T, dtype=torch.float32)
    return torch.stack([angle_T.cos(), angle_T.sin()], -1)


def test_tau_is_that_of_scipy_for_pairs_of_one_class_both_ways():
    emb_NTD, label_N = unit(6, 9, 4), torch.tensor([0, 1, 0, 1, 0, 2])
    tau_NN = frames.kendall_tau(emb_NTD, label_N)
    assert not torch.allclose(tau_NN, tau_NN.T, equal_nan=True), "an order of rows and columns that a test can tell"
    for row in range(6):
        for column in range(6):
            if row == column or label_N[row] != label_N[column]:
                assert tau_NN[row, column].isnan()
                continue
            nearest_T = torch.cdist(emb_NTD[row], emb_NTD[column]).argmin(1)
            assert len(set(nearest_T.tolist())) < 9, "with ties, or the case says little"
            expected = kendalltau(np.arange(9), nearest_T).correlation
            assert float(tau_NN[row, column]) == pytest.approx(expected)


def test_tau_of_clear_cases():
    forward, warped = arc([0.0, 0.2, 0.4, 0.6]), arc([0.01, 0.22, 0.45, 0.55])
    one_label = torch.zeros(2, dtype=torch.long)
    assert frames.kendall_tau(torch.stack([forward, warped]), one_label)[0, 1] == 1
    assert frames.kendall_tau(torch.stack([forward, warped.flip(0)]), one_label)[0, 1] == -1
    collapsed = arc([0.2, 0.2, 0.2, 0.2])
    found_NN = frames.kendall_tau(torch.stack([forward, collapsed]), one_label)
    assert found_NN[0, 1] == found_NN[1, 0] == 0, "a collapse is no alignment, and is not left out"
    with pytest.raises(ValueError, match=r"T >= 2 and label \(N,\), got \(2, 1, 4\) and \(2,\)"):
        frames.kendall_tau(unit(2, 1, 4), one_label)


def test_regression_is_ridge_on_standardised_features():
    emb_NTD, test_MTD = unit(3, 5, 8) * torch.arange(1, 9), unit(2, 5, 8, seed=1) * torch.arange(1, 9)
    target_NTX = unit(3, 5, 2, seed=2)
    x, mean, std = (
        emb_NTD.flatten(0, 1).double().numpy(),
        *(f(emb_NTD.flatten(0, 1).double().numpy(), 0) for f in (np.mean, np.std)),
    )
    peer = Ridge(alpha=frames.RIDGE * len(x)).fit((x - mean) / std, target_NTX.flatten(0, 1).double().numpy())
    expected = peer.predict((test_MTD.flatten(0, 1).double().numpy() - mean) / std)
    found = frames.fit_ridge(emb_NTD, target_NTX, test_MTD)
    assert found.shape == (2, 5, 2)
    np.testing.assert_allclose(found.flatten(0, 1).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_regression_outlives_fewer_frames_than_features_and_a_constant_feature():
    emb_NTD = unit(1, 4, 64)
    emb_NTD[..., 3] = 0.5
    assert frames.fit_ridge(emb_NTD, torch.rand(1, 4, 1), unit(2, 4, 64, seed=1)).isfinite().all()


def test_r_squared_counts_a_video_as_often_as_it_is_drawn():
    found_MT, truth_MT, count_M = torch.rand(3, 6), torch.rand(3, 6), torch.tensor([2, 0, 1])
    repeated = [row for row, count in enumerate(count_M) for _ in range(count)]
    expected = r2_score(truth_MT[repeated].flatten(), found_MT[repeated].flatten())
    assert frames.r_squared(found_MT, truth_MT, count_M) == pytest.approx(expected, rel=1e-5)
    assert frames.r_squared(truth_MT, truth_MT, count_M) == 1
    assert math.isnan(frames.r_squared(found_MT, torch.ones(3, 6), count_M))


def test_phases_come_back_by_their_codes_and_unseen_ones_never():
    """Phases lie on axes of their own."""
    codes = torch.tensor([7, 2, 5, 3])
    phase_NT, test_MT = torch.randint(0, 3, (4, 20)), torch.randint(0, 4, (3, 20))
    found_MT = frames.phase_classification(torch.eye(4)[phase_NT], codes[phase_NT], torch.eye(4)[test_MT])
    seen = test_MT < 3
    assert (found_MT[seen] == codes[test_MT][seen]).all()
    assert set(found_MT[~seen].tolist()) <= {7, 2, 5}


def course(videos, seed, classes=2, T=12):
    """Embeddings that follow the progress, with noise; its phases are two quarters and a half."""
    rng = np.random.default_rng(seed)
    progress_NT = np.sort(rng.random((videos, T)), 1)
    angle_NT = torch.as_tensor(2 * progress_NT + rng.normal(0, 0.2, (videos, T)))
    truth = FrameTruth(np.minimum((progress_NT * 4).astype(int), 2), progress_NT)
    return arc(angle_NT), np.arange(videos) % classes, truth


def test_quality_of_embeddings_that_follow_the_action():
    labelled_GTD, _, of_labelled = course(6, 0)
    test_NTD, label_N, of_test = course(20, 1)
    found = frame_quality(labelled_GTD, test_NTD, label_N, (of_labelled, of_test))
    tau_NN = frames.kendall_tau(test_NTD, torch.as_tensor(label_N))
    assert found.kendall_tau.value == pytest.approx(float(tau_NN.nanmean()))
    found_NT = frames.phase_progression(labelled_GTD, torch.as_tensor(of_labelled.progress_NT), test_NTD)
    assert found.progression.value == pytest.approx(r2_score(of_test.progress_NT.ravel(), found_NT.numpy().ravel()))
    assert 0.7 < found.progression.value < 1
    phase_NT = frames.phase_classification(labelled_GTD, torch.as_tensor(of_labelled.phase_NT), test_NTD).numpy()
    assert found.phase.value == pytest.approx((phase_NT == of_test.phase_NT).mean())
    most = np.bincount(of_labelled.phase_NT.ravel()).argmax()
    assert found.phase_chance == pytest.approx((of_test.phase_NT == most).mean())
    assert found.videos == 20
    for one in (found.kendall_tau, found.progression, found.phase):
        assert one.low < one.value < one.high
    assert found == frame_quality(labelled_GTD, test_NTD, label_N, (of_labelled, of_test)), "the draws are seeded"


def test_what_is_not_known_of_frames():
    labelled_GTD, _, _ = course(6, 0)
    test_NTD, label_N, _ = course(8, 1)
    found = frame_quality(labelled_GTD, test_NTD, label_N, None)
    assert (found.progression, found.phase, found.phase_chance) == (None, None, None)
    assert found.kendall_tau is not None
    assert frame_quality(labelled_GTD, test_NTD, np.arange(8), None).kendall_tau is None
    assert frame_quality(labelled_GTD, test_NTD[:1], label_N[:1], None).kendall_tau is None


def test_the_interval_of_tau_is_over_videos_and_not_over_pairs():
    """Half of the videos run backwards: a pair agrees where both do the same, and few videos are many pairs."""
    test_NTD = torch.stack([arc([0.0, 0.2, 0.4]) if video % 2 else arc([0.4, 0.2, 0.0]) for video in range(8)])
    found = frame_quality(test_NTD, test_NTD, np.zeros(8, int), None).kendall_tau
    assert found.value == pytest.approx((2 * 4 * 3 - 2 * 4 * 4) / (8 * 7))
    assert found.high > 0.3, "56 independent pairs would have 2 / sqrt(56) about the value"
