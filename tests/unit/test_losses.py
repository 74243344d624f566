"""The losses against slow versions written as loops, and the rules of METHOD sections 4 and 5."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import logsigmoid, normalize

from finepseudo.align.losses import av_loss, gitdl_loss, score_loss, triplet_loss

torch.set_num_threads(1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block(seed: int, B: int = 10, classes: int = 4):
    """Distances, labels, videos (some twice) and weights (some 0) of a random block."""
    g = seeded(seed)
    raw = torch.rand(B, B, generator=g, dtype=torch.float64)
    video = torch.randint(0, B - 2, (B,), generator=g)
    label = torch.randint(0, classes, (B,), generator=g)[video]  # one class a video
    weight = torch.tensor([1.0, 0.8, 0.0, 0.5], dtype=torch.float64)[torch.randint(0, 4, (B,), generator=g)]
    return (raw + raw.T) / 2, label, video, weight


def is_positive(i, j, label, video, weight):
    if i == j or weight[i] == 0 or weight[j] == 0 or label[i] != label[j]:
        return False
    others = {int(video[k]) for k in range(len(label)) if weight[k] > 0 and label[k] == label[i]} - {int(video[i])}
    return bool(video[i] != video[j]) or not others


def slow_triplet(dist, label, video, weight, margin):
    total, mass, skipped = 0.0, 0.0, 0
    for i in range(len(label)):
        if weight[i] == 0:
            continue
        positives = [j for j in range(len(label)) if is_positive(i, j, label, video, weight)]
        negatives = [k for k in range(len(label)) if weight[k] > 0 and label[k] != label[i]]
        if not positives or not negatives:
            skipped += 1
            continue
        hardest = min(dist[i, k].item() for k in negatives)
        for j in positives:
            hinge = max(0.0, dist[i, j].item() - hardest + margin)
            total += (weight[i] * weight[j]).item() * hinge
            mass += (weight[i] * weight[j]).item()
    return (total / mass if mass else 0.0), skipped


def slow_score(log_odds, label, video, weight):
    kinds = {1: [], 0: []}
    for i in range(len(label)):
        for j in range(i + 1, len(label)):
            w = (weight[i] * weight[j]).item()
            if is_positive(i, j, label, video, weight):
                kinds[1].append((w, -logsigmoid(log_odds[i, j]).item()))
            elif w > 0 and label[i] != label[j]:
                kinds[0].append((w, -logsigmoid(-log_odds[i, j]).item()))
    return sum(sum(w * x for w, x in pairs) / sum(w for w, _ in pairs) for pairs in kinds.values() if pairs) / 2


@pytest.mark.parametrize("seed", range(12))
def test_both_losses_equal_the_loops(seed):
    dist, label, video, weight = block(seed)
    got = triplet_loss(dist, label, video, weight, margin=0.3)
    want = slow_triplet(dist, label, video, weight, 0.3)
    assert got.loss.item() == pytest.approx(want[0], abs=1e-12)
    assert int(got.skipped) == want[1]
    score = score_loss(2 - 4 * dist, label, video, weight)
    assert score.item() == pytest.approx(slow_score(2 - 4 * dist, label, video, weight), abs=1e-12)


def test_the_random_blocks_cover_the_rules():
    found = [slow_triplet(*block(seed), 0.3) for seed in range(12)]
    assert any(skipped for _, skipped in found)
    blocks = [block(seed) for seed in range(12)]
    assert any(is_positive(i, j, *b[1:]) and b[2][i] == b[2][j] for b in blocks for i in range(10) for j in range(10))


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_right(seed):
    dist, label, video, weight = block(seed)

    def loss(d):
        return av_loss((d + d.T) / 2, 3 - 5 * (d + d.T) / 2, label, video, weight, margin=0.3, score_weight=0.7).loss

    assert gradcheck(loss, dist.clone().requires_grad_())


def test_the_sum_is_the_sum_of_its_terms():
    dist, *rows = block(0)
    out = av_loss(dist, 1 - dist, *rows, margin=0.2, score_weight=2.5)
    torch.testing.assert_close(out.loss, out.triplet.loss + 2.5 * out.score)
    assert min(out.triplet.loss, out.score) > 0


def test_hard_negative_takes_the_gradient_alone():
    dist = torch.tensor([[0.0, 0.4, 0.3, 0.5], [0.4, 0.0, 0.9, 0.9], [0.3, 0.9, 0, 0.1], [0.5, 0.9, 0.1, 0]])
    dist.requires_grad_()
    label = torch.tensor([0, 0, 1, 2])
    out = triplet_loss(dist, label, torch.arange(4), torch.ones(4), margin=0.1)
    out.loss.backward()
    assert out.loss.item() == pytest.approx((0.4 - 0.3 + 0.1) / 2)
    assert int(out.skipped) == 2
    want = torch.zeros(4, 4)
    want[0, 1], want[0, 2] = 0.5, -0.5
    torch.testing.assert_close(dist.grad, want)


def test_a_video_is_its_own_positive_only_where_its_class_has_no_other():
    dist = torch.full((5, 5), 0.5, dtype=torch.float64)
    dist[0, 1] = dist[1, 0] = 0.9  # rows 0 and 1: one video, the only one of class 0
    dist[2, 3] = dist[3, 2] = 0.2  # rows 2 and 3: one video of class 1, which has another in row 4
    label, video = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([7, 7, 8, 8, 9])
    loss = triplet_loss(dist, label, video, torch.ones(5), margin=0.1)
    # positives: (0,1) (1,0) at .9, and (2,4) (3,4) (4,2) (4,3) at .5; negatives are all at .5
    assert loss.loss.item() == pytest.approx((2 * (0.9 - 0.5 + 0.1) + 4 * 0.1) / 6)
    without = torch.tensor([1.0, 1, 1, 1, 0])  # row 4 cannot be decoded: now class 1 has no other either
    alone = triplet_loss(dist, label, video, without, margin=0.1)
    assert alone.loss.item() == pytest.approx((2 * (0.9 - 0.5 + 0.1) + 2 * 0) / 4)
    assert int(alone.skipped) == 0


def test_a_video_is_never_its_own_negative():
    dist = torch.full((4, 4), 0.5, dtype=torch.float64)
    dist[0, 1] = dist[1, 0] = 0.0  # one video under two labels
    label, video = torch.tensor([0, 1, 0, 1]), torch.tensor([5, 5, 6, 7])
    out = av_loss(dist, 9 - 18 * dist, label, video, torch.ones(4), margin=0.1)
    assert out.triplet.loss.item() == pytest.approx(0.1)
    assert out.score.item() == pytest.approx(math.log(2))


def test_rows_of_weight_zero_take_no_part_whatever_they_hold():
    dist, label, video, weight = block(3)
    weight[0] = 0
    kept = weight > 0
    broken = dist.masked_fill(~(kept[:, None] & kept), math.nan).requires_grad_()
    whole = av_loss(broken, 1 - broken, label, video, weight)
    part = dist[kept][:, kept]
    alone = av_loss(part, 1 - part, label[kept], video[kept], weight[kept])
    torch.testing.assert_close(whole.loss, alone.loss)
    assert whole.triplet.skipped == alone.triplet.skipped
    whole.loss.backward()
    assert (broken.grad[~kept] == 0).all()
    assert broken.grad.isfinite().all()


def test_weights_scale_pairs_and_a_common_factor_cancels():
    dist, label, video, _ = block(1)
    weight = torch.linspace(0.2, 1, 10, dtype=torch.float64)
    half = av_loss(dist, 1 - dist, label, video, weight / 2)
    whole = av_loss(dist, 1 - dist, label, video, weight)
    torch.testing.assert_close(half.loss, whole.loss)
    assert whole.loss.item() != pytest.approx(av_loss(dist, 1 - dist, label, video, torch.ones(10)).loss.item())


def test_positives_and_negatives_carry_equal_mass():
    label = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])  # 1 positive pair, 27 negative ones
    log_odds = torch.where(label[:, None] == label, 2.0, 1.0)
    got = score_loss(log_odds, label, torch.arange(8), torch.ones(8))
    assert got.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2, rel=1e-6)


@pytest.mark.parametrize(("label", "weight"), [([0, 1, 2], [0, 0, 0]), ([0, 1, 2], [1, 0, 0]), ([0, 0, 0], [0, 0, 1])])
def test_without_a_valid_pair_the_loss_is_a_differentiable_zero(label, weight):
    dist = torch.full((3, 3), math.nan).requires_grad_()
    out = av_loss(dist, -dist, torch.tensor(label), torch.arange(3), torch.tensor(weight).float())
    assert out.loss.item() == 0
    out.loss.backward()
    assert (dist.grad == 0).all()
    assert int(out.triplet.skipped) == sum(weight)


def test_one_class_alone_has_no_triplet_but_a_score():
    dist = torch.full((3, 3), 0.5, requires_grad=True)
    out = av_loss(dist, 1 - dist, torch.zeros(3, dtype=torch.long), torch.arange(3), torch.ones(3))
    assert (out.triplet.loss.item(), int(out.triplet.skipped)) == (0, 3)
    assert out.score.item() == pytest.approx(math.log1p(math.exp(-0.5)) / 2, rel=1e-6)


def clips(B: int = 5, n: int = 6, m: int = 4, D: int = 8, seed: int = 0):
    g = seeded(seed)
    start = torch.randint(0, 30, (B, 1), generator=g).double()
    inside = torch.randint(0, n, (B, 1), generator=g).double()
    make = lambda k: normalize(torch.randn(B, k, D, generator=g, dtype=torch.float64), dim=-1)  # noqa: E731
    return make(n), make(m), start + 2 * torch.arange(n), start + inside + torch.arange(m)


def slow_gitdl(g, l_, s, t, sigma2, tau):
    """One video, by loops over frames."""

    def one_way(a, b, times_a, times_b):
        total = 0.0
        for j in range(len(b)):
            w = [math.exp(-((times_a[i] - times_b[j]) ** 2).item() / (2 * sigma2)) for i in range(len(a))]
            e = [math.exp((a[i] @ b[j]).item() / tau) for i in range(len(a))]
            total -= sum(x / sum(w) * math.log(y / sum(e)) for x, y in zip(w, e, strict=True))
        return total / len(b)

    return (one_way(g, l_, s, t) + one_way(l_, g, t, s)) / 2


def test_gitdl_equals_the_loops_and_weights_videos():
    data = clips()
    each = torch.tensor([slow_gitdl(*(x[b] for x in data), 10.0, 0.1) for b in range(5)], dtype=torch.float64)
    assert gitdl_loss(*data, sigma2=10, tau=0.1).item() == pytest.approx(each.mean().item(), rel=1e-10)
    weight = torch.tensor([1.0, 0.5, 0, 0.25, 1], dtype=torch.float64)
    got = gitdl_loss(*data, sigma2=10, tau=0.1, weight_B=weight)
    assert got.item() == pytest.approx(((each * weight).sum() / weight.sum()).item(), rel=1e-10)


def test_gitdl_has_no_zero_by_zero_for_distant_frames():
    g, l_, s, t = (x.float() for x in clips())
    g.requires_grad_()
    loss = gitdl_loss(g, l_, s, t + 1e5, sigma2=10, tau=0.1)
    loss.backward()
    assert loss.isfinite()
    assert g.grad.isfinite().all()


def test_gitdl_gradient_and_undecodable_videos():
    g, l_, s, t = clips(B=3)
    weight = torch.tensor([1.0, 0, 0.5])
    assert gradcheck(
        lambda a, b: gitdl_loss(a, b, s, t, sigma2=10, tau=0.5, weight_B=weight),
        (g.requires_grad_(), l_.requires_grad_()),
    )
    broken = g.detach().index_fill(0, torch.tensor([1]), math.nan).requires_grad_()
    loss = gitdl_loss(broken, l_.detach(), s, t, sigma2=10, tau=0.5, weight_B=weight)
    loss.backward()
    assert loss.isfinite()
    assert (broken.grad[1] == 0).all()
    broken.grad = None
    nothing = gitdl_loss(broken, l_.detach(), s, t, sigma2=10, tau=0.5, weight_B=torch.zeros(3))
    nothing.backward()
    assert nothing.item() == 0
    assert (broken.grad == 0).all()


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"square \(B,B\) of a block, got \(2, 3\)"):
        triplet_loss(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"expected video_B \(2,\).*got \(3,\)"):
        score_loss(torch.zeros(2, 2), torch.zeros(2), torch.zeros(3), torch.ones(2))
    g, l_, s, t = clips()
    with pytest.raises(ValueError, match=r"s \(B,n\).*\(5, 6, 8\), \(5, 4, 8\), \(5, 4\), \(5, 4\)"):
        gitdl_loss(g, l_, t, t, sigma2=10, tau=0.1)
    with pytest.raises(ValueError, match="sigma2 > 0 and tau > 0, got 10 and 0"):
        gitdl_loss(g, l_, s, t, sigma2=10, tau=0)
    with pytest.raises(ValueError, match=r"expected weight_B \(5,\)"):
        gitdl_loss(g, l_, s, t, sigma2=10, tau=1, weight_B=torch.ones(4))
