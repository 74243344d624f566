"""Soft-DTW against sums over all monotone paths, finite differences and its bounds."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from finepseudo.align.softdtw import alignment_distance, block_distances, cosine_cost, dtw_path, soft_dtw

torch.set_num_threads(1)
STEPS = ((1, 0), (0, 1), (1, 1))


@cache
def delannoy(a: int, b: int) -> int:
    """Monotone paths over a x b steps."""
    return 1 if a == 0 or b == 0 else delannoy(a - 1, b) + delannoy(a, b - 1) + delannoy(a - 1, b - 1)


def all_paths(T: int, U: int) -> list[list[tuple[int, int]]]:
    def grow(path):
        i, j = path[-1]
        if (i, j) == (T - 1, U - 1):
            return [path]
        return [p for a, b in STEPS if i + a < T and j + b < U for p in grow([*path, (i + a, j + b)])]

    return grow([(0, 0)])


def path_costs(cost_TU: Tensor) -> Tensor:
    return torch.stack([sum(cost_TU[i, j] for i, j in path) for path in all_paths(*cost_TU.shape)])


def brute_force(cost_TU: Tensor, gamma: float) -> Tensor:
    return -gamma * torch.logsumexp(-path_costs(cost_TU) / gamma, 0)


def costs(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def frames(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def test_the_number_of_paths_is_delannoys():
    assert len(all_paths(4, 5)) == delannoy(3, 4) == 129


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 3), (4, 4), (5, 3)])
@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0, 10.0])
def test_value_and_gradient_equal_the_sum_over_all_paths(shape, gamma):
    cost = costs(3, *shape).requires_grad_()
    ours = soft_dtw(cost, gamma)
    truth = torch.stack([brute_force(c, gamma) for c in cost])
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (got,) = torch.autograd.grad((ours * weight).sum(), cost)
    (want,) = torch.autograd.grad((truth * weight).sum(), cost)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradient_equals_finite_differences():
    cost = costs(1, 3, 4)
    cost.requires_grad_()
    soft_dtw(cost, 0.2).sum().backward()
    step = 1e-5
    for i in range(3):
        for j in range(4):
            bump = torch.zeros(1, 3, 4, dtype=torch.float64)
            bump[0, i, j] = step
            slope = (soft_dtw(cost.detach() + bump, 0.2) - soft_dtw(cost.detach() - bump, 0.2)) / (2 * step)
            assert cost.grad[0, i, j].item() == pytest.approx(slope.item(), abs=1e-8)


@pytest.mark.parametrize("lengths", [None, [[4, 5], [2, 5], [3, 1]]])
def test_gradcheck_of_the_recursion(lengths):
    lengths = None if lengths is None else torch.tensor(lengths)
    assert gradcheck(lambda c: soft_dtw(c, 0.3, lengths), costs(3, 4, 5).requires_grad_())


def test_gradcheck_of_the_distances():
    u, v = frames(2, 3, 4).requires_grad_(), frames(2, 5, 4, seed=1).requires_grad_()
    lengths = torch.tensor([[3, 5], [2, 4]])
    assert gradcheck(lambda a, b: alignment_distance(a, b, gamma=0.1, lengths_B2=lengths), (u, v))
    assert gradcheck(lambda a: block_distances(a, gamma=0.1), frames(3, 3, 4).requires_grad_())


def test_lengths_equal_each_pair_alone_whatever_the_padding_holds():
    lengths = torch.tensor([[6, 7], [1, 1], [6, 2], [3, 7], [4, 4], [1, 7]])
    cost = costs(6, 6, 7)
    for p, (t, u) in enumerate(lengths.tolist()):
        cost[p, t:] = math.nan
        cost[p, :, u:] = math.inf
    cost.requires_grad_()
    together = soft_dtw(cost, 0.1, lengths)
    together.square().sum().backward()
    for p, (t, u) in enumerate(lengths.tolist()):
        alone = cost.detach()[p : p + 1, :t, :u].clone().requires_grad_()
        value = soft_dtw(alone, 0.1)
        value.square().sum().backward()
        torch.testing.assert_close(together[p : p + 1], value, rtol=1e-13, atol=0)
        torch.testing.assert_close(cost.grad[p, :t, :u], alone.grad[0], rtol=1e-12, atol=1e-14)
        outside = torch.ones(6, 7, dtype=torch.bool)
        outside[:t, :u] = False
        assert (cost.grad[p][outside] == 0).all()


def test_distance_with_lengths_divides_by_each_pairs_own():
    u, v = frames(2, 5, 4), frames(2, 6, 4, seed=1)
    got = alignment_distance(u, v, gamma=0.1, lengths_B2=torch.tensor([[5, 6], [3, 2]]))
    want = alignment_distance(u[1:, :3], v[1:, :2], gamma=0.1)
    torch.testing.assert_close(got[1:], want)
    torch.testing.assert_close(got[:1], alignment_distance(u[:1], v[:1], gamma=0.1))


def test_values_without_a_gradient_are_the_same():
    cost = costs(5, 6, 7)
    assert torch.equal(soft_dtw(cost, 0.1), soft_dtw(cost.clone().requires_grad_(), 0.1).detach())


@pytest.mark.parametrize("T", [4, 24, 64])
def test_fp32_follows_fp64(T):
    u, v = frames(8, T, 16), frames(8, T, 16, seed=1)
    wide_u = u.clone().requires_grad_()
    wide = alignment_distance(wide_u, v)
    wide.sum().backward()
    narrow_u = u.float().requires_grad_()
    narrow = alignment_distance(narrow_u, v.float())
    narrow.sum().backward()
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=2e-6)
    torch.testing.assert_close(narrow_u.grad.double(), wide_u.grad, rtol=0, atol=1e-5)


def test_half_precision_is_promoted_even_under_autocast():
    u, v = frames(2, 5, 8, dtype=torch.float32), frames(2, 5, 8, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = alignment_distance(u, v)
    assert torch.equal(under, alignment_distance(u, v))
    assert alignment_distance(u.bfloat16(), v.bfloat16()).dtype == torch.float32
    assert torch.equal(
        alignment_distance(u.bfloat16(), v.bfloat16()), alignment_distance(u.bfloat16().float(), v.bfloat16().float())
    )


def test_transposition_does_not_change_the_value():
    cost = costs(4, 5, 8)
    torch.testing.assert_close(soft_dtw(cost, 0.1), soft_dtw(cost.transpose(1, 2), 0.1), rtol=1e-13, atol=0)
    u, v = frames(3, 5, 4), frames(3, 8, 4, seed=1)
    torch.testing.assert_close(alignment_distance(u, v), alignment_distance(v, u), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8)])
def test_a_shift_of_the_costs_moves_the_value_by_the_length_of_the_paths(shape):
    cost, shift = costs(6, *shape), 0.7
    moved = soft_dtw(cost + shift, 0.1) - soft_dtw(cost, 0.1)
    assert (moved > shift * max(shape) - 1e-12).all()
    assert (moved < shift * (sum(shape) - 1) + 1e-12).all()
    assert (moved > shift * max(shape) + 1e-3).any()  # so it is no mere constant


@pytest.mark.parametrize("gamma", [0.001, 0.1, 2.0])
def test_value_lies_between_dtw_and_dtw_less_gamma_log_paths(gamma):
    cost = costs(4, 4, 5)
    hard = torch.stack([path_costs(c).min() for c in cost])
    soft = soft_dtw(cost, gamma)
    assert (soft <= hard + 1e-12).all()
    assert (soft >= hard - gamma * math.log(delannoy(3, 4)) - 1e-12).all()


def test_small_gamma_tends_to_the_hard_path():
    cost = costs(1, 6, 5)
    hard = sum(cost[0, i, j].item() for i, j in dtw_path(cost[0]))
    assert hard == pytest.approx(path_costs(cost[0]).min().item(), abs=1e-12)
    cost.requires_grad_()
    value = soft_dtw(cost, 1e-4)
    value.sum().backward()
    assert value.item() == pytest.approx(hard, abs=1e-6)
    assert {tuple(c) for c in (cost.grad[0] > 0.5).nonzero().tolist()} == set(dtw_path(cost[0].detach()))


@pytest.mark.parametrize(("T", "U"), [(1, 1), (4, 4), (16, 16), (7, 12)])
def test_equal_frames_cost_nothing_and_give_the_number_of_paths(T, U):
    one = frames(1, 1, 8)
    got = alignment_distance(one.expand(1, T, 8), one.expand(1, U, 8), gamma=0.1)
    assert got.item() == pytest.approx(-0.1 * math.log(delannoy(T - 1, U - 1)) / (T + U), abs=1e-12)


@pytest.mark.parametrize(("ratio", "dist"), [(1, 0.132), (2, 0.154), (3, 0.178)])
def test_unequal_lengths_alone_raise_the_distance(ratio, dist):
    cost = torch.full((1, 32, 32 * ratio), 0.3)
    assert soft_dtw(cost, 0.1).item() / (32 + 32 * ratio) == pytest.approx(dist, abs=5e-4)


def test_a_sequence_is_nearer_to_itself_than_to_others_and_may_be_below_zero():
    emb = frames(5, 12, 16)
    dist = block_distances(emb, gamma=0.1)
    assert (dist.argmin(1) == torch.arange(5)).all()
    assert (dist.diagonal() != 0).all()
    assert block_distances(frames(1, 1, 4).expand(1, 9, 4), gamma=0.1).item() < 0


def test_block_distances_are_those_of_the_pairs_and_symmetric():
    emb = frames(5, 6, 8).requires_grad_()
    block = block_distances(emb, gamma=0.1)
    i, j = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    each = alignment_distance(emb[i], emb[j], gamma=0.1).view(5, 5)
    torch.testing.assert_close(block, each, rtol=1e-12, atol=1e-14)
    assert torch.equal(block, block.T)
    weight = costs(5, 5)
    (got,) = torch.autograd.grad((block * weight).sum(), emb)
    (want,) = torch.autograd.grad((each * weight).sum(), emb)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


def test_expected_alignment_has_mass_between_the_shortest_and_the_longest_path():
    cost = costs(3, 5, 7).requires_grad_()
    soft_dtw(cost, 0.5).sum().backward()
    mass = cost.grad.sum((1, 2))
    assert ((mass >= 7 - 1e-9) & (mass <= 11 + 1e-9)).all()
    torch.testing.assert_close(cost.grad[:, 0, 0], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(cost.grad[:, -1, -1], torch.ones(3, dtype=torch.float64))


def test_no_pair_gives_no_value():
    cost = torch.empty(0, 3, 4, requires_grad=True)
    value = soft_dtw(cost, 0.1)
    value.sum().backward()
    assert value.shape == (0,)
    assert cost.grad.shape == (0, 3, 4)


def test_path_prefers_the_diagonal_and_moves_one_step_at_a_time():
    assert dtw_path(torch.zeros(3, 3)) == [(0, 0), (1, 1), (2, 2)]
    path = dtw_path(costs(6, 9))
    assert (path[0], path[-1]) == ((0, 0), (5, 8))
    assert {(c - a, d - b) for (a, b), (c, d) in pairwise(path)} <= set(STEPS)


@pytest.mark.parametrize("gamma", [0, -0.1, math.nan, math.inf])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ValueError, match=r"gamma > 0, got .*dtw_path"):
        soft_dtw(costs(1, 2, 2), gamma)


@pytest.mark.parametrize(
    ("u", "v"), [((2, 3, 4), (3, 3, 4)), ((2, 3, 4), (2, 3, 5)), ((2, 0, 4), (2, 3, 4)), ((2, 3), (2, 3))]
)
def test_shapes_are_named(u, v):
    with pytest.raises(ValueError, match=r"expected u \(B,T,D\) and v \(B,U,D\)") as error:
        cosine_cost(torch.zeros(u), torch.zeros(v))
    assert str(u) in str(error.value)
    assert str(v) in str(error.value)


def test_bad_lengths_are_named():
    cost = costs(2, 3, 4)
    with pytest.raises(ValueError, match=r"int64 \(2, 2\).*got torch.float32 \(2, 2\)"):
        soft_dtw(cost, 0.1, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"got torch.int64 \(2,\)"):
        soft_dtw(cost, 0.1, torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"1..3 and 1..4, got \[3, 5\] in row 1 \(rows \[1\]\)"):
        soft_dtw(cost, 0.1, torch.tensor([[3, 4], [3, 5]]))
    with pytest.raises(ValueError, match="got \\[0, 1\\] in row 0"):
        soft_dtw(cost, 0.1, torch.tensor([[0, 1], [3, 4]]))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"cost \(P,T,U\).*got \(3, 4\)"):
        soft_dtw(costs(3, 4), 0.1)
    with pytest.raises(ValueError, match=r"emb \(B,T,D\), got \(3, 4\)"):
        block_distances(costs(3, 4), gamma=0.1)
    with pytest.raises(ValueError, match="finite, non-empty cost"):
        dtw_path(torch.tensor([[0.0, math.nan]]))
