"""The score head."""

import math

import pytest
import torch

from finepseudo.align.head import ScoreHead, alignability

torch.set_num_threads(1)


def ready_head(mean: float = 0.4, std: float = 0.1) -> ScoreHead:
    head = ScoreHead()
    head.standardise(mean, std)
    return head


@pytest.mark.parametrize("seed", range(5))
def test_head_decreases_whatever_its_parameters(seed):
    head = ready_head().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    log_odds = head(torch.linspace(0.1, 0.7, 400, dtype=torch.float64))
    assert (log_odds.diff() < 0).all()


def test_head_starts_with_small_distances_alignable_and_the_same_every_time():
    torch.manual_seed(0)
    first = ready_head()
    torch.manual_seed(1)
    second = ready_head()
    dist = torch.tensor([0.2, 0.4, 0.6])
    assert torch.equal(first(dist), second(dist))
    assert first(dist)[0] > 1
    assert first(dist)[1].item() == pytest.approx(0, abs=1e-5)
    assert first(dist)[2] < -1


def test_head_learns_a_threshold_and_passes_gradient_to_the_distance():
    head = ready_head()
    dist = torch.linspace(0.1, 0.7, 64)
    target = (dist < 0.3).float()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(dist), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())
    leaf = torch.tensor([0.3], requires_grad=True)
    head(leaf).sum().backward()
    assert leaf.grad.item() < 0


def test_standardisation_is_set_once_and_travels_with_the_state():
    head = ScoreHead()
    with pytest.raises(ValueError, match="call standardise"):
        head(torch.zeros(1))
    values = torch.tensor([[0.1, 0.2], [0.4, 0.9]])
    head.standardise(0.4, 0.35)
    assert (head.mean.item(), head.std.item()) == pytest.approx((0.4, 0.35))
    with pytest.raises(ValueError, match="standardised already"):
        head.standardise(0.4, 0.35)
    copy = ScoreHead()
    copy.load_state_dict(head.state_dict())
    assert torch.equal(copy(values), head(values))


@pytest.mark.parametrize(("mean", "std"), [(0.4, 0.0), (0.4, -0.1), (0.4, math.nan), (math.inf, 0.1)])
def test_useless_distances_cannot_standardise(mean, std):
    with pytest.raises(ValueError, match="finite mean and a positive deviation"):
        ScoreHead().standardise(mean, std)


def test_a_half_precision_head_computes_in_fp32():
    assert ready_head().bfloat16()(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert ready_head()(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def test_another_mean_is_refused():
    with pytest.raises(ValueError, match='"log_odds" or "score", got \'mean\''):
        alignability(torch.zeros(1), ready_head(), "mean")
