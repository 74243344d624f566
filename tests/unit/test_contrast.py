"""Contrastive losses against the formula written as loops; gradients, invariances, and what they are least for."""

import math

import pytest
import torch
from torch.nn import functional as F

from finepseudo.align.contrast import balanced, global_local, nt_xent, tclr_loss, temporal_similarity

TAU = 0.2


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def views(B=3, L=4, D=6):
    return unit(B, D), unit(B, L, D, seed=1), unit(B, L, D, seed=2), unit(B, L, D, seed=3)


def by_hand(a_ND, b_ND):
    """NT-Xent of one set."""
    z, N, total = [*a_ND, *b_ND], len(a_ND), 0.0
    for i in range(2 * N):
        every = [math.exp(float(z[i] @ z[k]) / TAU) for k in range(2 * N) if k != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + N) % (2 * N)]) / TAU) / sum(every))
    return total / (2 * N)


def test_nt_xent_is_its_formula():
    a, b = unit(2, 5, 6), unit(2, 5, 6, seed=1)
    expected = [by_hand(a[x], b[x]) for x in range(2)]
    assert nt_xent(a, b, tau=TAU).tolist() == pytest.approx(expected)
    assert nt_xent(b, a, tau=TAU).tolist() == pytest.approx(expected)
    assert nt_xent(a[:, :1], b[:, :1], tau=TAU).tolist() == [0, 0]


def test_global_local_is_its_formula():
    time, clip = unit(4, 6), unit(4, 6, seed=1)
    total = 0.0
    for x, y in ((time, clip), (clip, time)):
        for n in range(4):
            every = [math.exp(float(x[n] @ y[k]) / TAU) for k in range(4)]
            total -= math.log(every[n] / sum(every)) / 8
    assert float(global_local(time[None], clip[None], tau=TAU)) == pytest.approx(total)


def test_tclr_is_the_sum_of_its_three_terms():
    whole, time, first, second = views()
    found = tclr_loss(whole, time, first, second, tau=TAU)
    instance = [by_hand(whole, local[:, n]) for local in (first, second) for n in range(4)]
    assert float(found.instance) == pytest.approx(sum(instance) / 8)
    assert float(found.local_local) == pytest.approx(sum(by_hand(a, b) for a, b in zip(first, second, strict=True)) / 3)
    across = [global_local(time, local, tau=TAU).mean() for local in (first, second)]
    assert float(found.global_local) == pytest.approx(float(sum(across)) / 2)
    assert float(found.loss) == pytest.approx(float(found.instance + found.local_local + found.global_local))


def test_gradients_are_those_of_finite_differences():
    inputs = [x.requires_grad_() for x in views(B=2, L=3, D=4)]
    assert torch.autograd.gradcheck(lambda *x: tclr_loss(*x, tau=TAU).loss, inputs)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, tau=TAU), [inputs[1], inputs[2]])


def test_order_of_videos_of_views_and_a_rotation_of_all_change_nothing():
    whole, time, first, second = views()
    loss = tclr_loss(whole, time, first, second, tau=TAU).loss
    order = [2, 0, 1]
    turned, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    for other in (
        [x[order] for x in (whole, time, first, second)],
        [x @ turned for x in (whole, time, first, second)],
        [whole, time, second, first],
    ):
        torch.testing.assert_close(tclr_loss(*other, tau=TAU).loss, loss)
    moments = [3, 1, 0, 2]
    same = tclr_loss(whole, time[:, moments], first[:, moments], second[:, moments], tau=TAU).loss
    torch.testing.assert_close(same, loss)


def test_each_term_wants_its_own_thing():
    """Moments that differ, in the order of the global clip, and videos that differ."""
    moment_LD, video_BD = torch.eye(8)[:4], torch.eye(8)[4:7]
    both = F.normalize(video_BD[:, None] + moment_LD, dim=-1)
    best = tclr_loss(video_BD, both, both, both, tau=TAU)
    mixed = tclr_loss(video_BD, both[:, [1, 2, 3, 0]], both, both, tau=TAU)
    assert mixed.global_local > best.global_local + 1
    assert (mixed.instance, mixed.local_local) == (best.instance, best.local_local)
    frozen = video_BD[:, None].expand(-1, 4, -1)
    still = tclr_loss(video_BD, frozen, frozen, frozen, tau=TAU)
    assert float(still.local_local) == pytest.approx(math.log(7))
    assert float(still.global_local) == pytest.approx(math.log(4))
    assert still.instance < best.instance
    strangers = tclr_loss(video_BD[[1, 2, 0]], both, both, both, tau=TAU)
    assert strangers.instance > best.instance + 1


def test_rows_of_weight_zero_take_no_part():
    whole, time, first, second = views()
    weight = torch.tensor([1.0, 0.0, 1.0])
    found = tclr_loss(whole, time, first, second, tau=TAU, weight_B=weight).loss
    kept = [x[[0, 2]] for x in (whole, time, first, second)]
    torch.testing.assert_close(found, tclr_loss(*kept, tau=TAU).loss)
    leaf = whole.clone().requires_grad_()
    nothing = tclr_loss(leaf, time, first, second, tau=TAU, weight_B=torch.zeros(3)).loss
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert float(leaf.grad.abs().sum()) == 0


def test_shapes_that_do_not_fit_are_named():
    whole, time, first, second = views()
    with pytest.raises(ValueError, match=r"expected \(B,D\), three times \(B,L,D\)"):
        tclr_loss(whole, time, first[:, :2], second, tau=TAU)
    with pytest.raises(ValueError, match="tau > 0, got .* and 0"):
        tclr_loss(whole, time, first, second, tau=0)


def test_temporal_similarity_is_the_mean_cosine_of_two_moments():
    feat = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 1
    pairs = [[F.cosine_similarity(of[i], of[j], dim=0) for i in range(5) for j in range(5) if i != j] for of in feat]
    assert temporal_similarity(feat).tolist() == pytest.approx([float(sum(of)) / 20 for of in pairs])
    still = feat[:, :1].expand(-1, 5, -1)
    assert temporal_similarity(still).tolist() == pytest.approx([1.0] * 3)
    assert temporal_similarity(torch.eye(4)[None]).tolist() == pytest.approx([0.0], abs=1e-6)
    assert temporal_similarity(torch.stack([feat[0], -feat[0]]).transpose(0, 1)).tolist() == [0.0] * 5
    assert temporal_similarity(feat[:, :1]).tolist() == [1.0] * 3


def test_targets_lean_to_the_invariant_teacher_where_moments_are_alike():
    p_I, p_D = torch.tensor([[0.8, 0.2]] * 3), torch.tensor([[0.4, 0.6]] * 3)
    found = balanced(p_I, p_D, torch.tensor([1.0, 0.0, 0.25]))
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]))
