"""Distances and class means against a gallery."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from finepseudo.align import kernels
from finepseudo.align.gallery import Gallery
from finepseudo.align.head import ScoreHead, alignability
from finepseudo.align.kernels import cpu, plain
from finepseudo.align.score import ClassScorer, class_scores, distances
from finepseudo.align.softdtw import alignment_distance

torch.set_num_threads(1)


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def ready_head(mean: float = 0.4, std: float = 0.1) -> ScoreHead:
    head = ScoreHead()
    head.standardise(mean, std)
    return head


def gallery(label: list[int], num_classes: int, T: int = 5) -> Gallery:
    return Gallery(
        frames(len(label), T, 8, seed=9), torch.tensor(label), tuple(map(str, range(len(label)))), num_classes
    )


def the_mean(values, label_G, K):
    """Class means the long way."""
    return torch.stack(
        [
            values[:, label_G == c].mean(1) if (label_G == c).any() else values.new_full((len(values),), -math.inf)
            for c in range(K)
        ],
        1,
    )


@pytest.fixture(params=["cpu", "plain"])
def kernel(request, monkeypatch):
    """Both kernels of the CPU."""
    module = {"cpu": cpu, "plain": plain}[request.param]
    monkeypatch.setattr(kernels, "choose", lambda tensor: module)
    return module


def test_the_built_kernel_is_the_one_that_runs():
    assert kernels.choose(torch.zeros(1)) is cpu
    assert kernels.choose(torch.zeros(1, dtype=torch.float64)) is cpu
    assert kernels.choose(torch.zeros(1, device="meta")) is plain


@pytest.mark.parametrize(("N", "G"), [(1, 1), (6, 7), (40, 16), (3, 130)])
def test_distances_are_those_of_each_pair(kernel, N, G):
    emb, other = frames(N, 5, 8), frames(G, 4, 8, seed=1)
    got = distances(emb, other, 0.1)
    want = torch.stack([alignment_distance(u.expand(G, 5, 8).double(), other.double(), gamma=0.1) for u in emb])
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_wider_types_are_kept_and_narrower_ones_widened(kernel):
    emb, other = frames(3, 5, 8), frames(4, 4, 8, seed=1)
    want = distances(emb.double(), other, 0.1)
    assert want.dtype == torch.float64
    exact = alignment_distance(emb[2:].double(), other[3:].double(), gamma=0.1)
    torch.testing.assert_close(want[2, 3], exact[0], rtol=1e-12, atol=1e-14)
    got = distances(emb.bfloat16(), other, 0.1)
    torch.testing.assert_close(got, distances(emb.bfloat16().float(), other, 0.1), rtol=0, atol=0)


@pytest.mark.parametrize("mean", ["log_odds", "score"])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_class_scores_are_the_means_over_the_classes_in_any_slices(kernel, mean, rows, monkeypatch):
    members, head, emb = gallery([2, 0, 0, 2, 2], 4), ready_head(), frames(6, 5, 8)
    with monkeypatch.context() as patched:
        patched.setattr("finepseudo.align.score._slice_rows", lambda *_: rows)
        got = ClassScorer(members, head, gamma=0.1, mean=mean)(emb)
    values = alignability(distances(emb, members.emb_GTD, 0.1), head, mean)
    torch.testing.assert_close(got, the_mean(values, members.label_G, 4), rtol=1e-6, atol=1e-6)
    assert (got[:, [1, 3]] == -math.inf).all()
    assert torch.equal(
        class_scores(emb, members, head, gamma=0.1, mean=mean), ClassScorer(members, head, gamma=0.1, mean=mean)(emb)
    )


def test_a_gallery_beyond_the_free_memory_is_scored_in_slices(kernel, monkeypatch, caplog):
    members, head, emb = gallery([0, 1, 2] * 30, 3), ready_head(), frames(6, 5, 8)
    whole = class_scores(emb, members, head, gamma=0.1)
    monkeypatch.setattr("finepseudo.align.score.free_bytes", lambda device: 4 * 2 * 4 * 40 * 20)
    monkeypatch.setattr("finepseudo.align.score.WHOLE", 10)
    with caplog.at_level("INFO", "finepseudo"):
        sliced = class_scores(emb, members, head, gamma=0.1)
    assert "gallery of 90 is scored in 5 slices" in caplog.text
    torch.testing.assert_close(sliced, whole, rtol=1e-6, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_memory_follows_the_tile_and_not_the_gallery(monkeypatch):
    monkeypatch.setattr(kernels, "choose", lambda tensor: plain)
    members, head, emb = gallery([0, 1] * 60, 2), ready_head(), frames(40, 5, 8)
    monkeypatch.setattr(plain, "tile_pairs", lambda T, U, device: 16)
    with LargestTensor() as seen:
        class_scores(emb, members, head, gamma=0.1)
    assert seen.numel <= members.emb_GTD.numel() == 4800  # 16 x 9 x 5 a tile; N x G x T x U would be 120,000
    monkeypatch.setattr(plain, "tile_pairs", lambda T, U, device: 4096)
    with LargestTensor() as seen:
        class_scores(emb, members, head, gamma=0.1)
    assert seen.numel >= 40 * 102 * 25  # so the first line measures something


def test_no_videos_give_no_rows(kernel):
    assert distances(torch.zeros(0, 5, 8), frames(3, 5, 8), 0.1).shape == (0, 3)
    assert class_scores(torch.zeros(0, 5, 8), gallery([0, 1], 2), ready_head(), gamma=0.1).shape == (0, 2)


def test_broken_rows_are_named():
    emb = frames(4, 5, 8)
    emb[1, 2, 3] = math.nan
    emb[3, 0, 0] = math.inf
    with pytest.raises(ValueError, match=r"finite emb_NTD \(4, 5, 8\), got 2 non-finite rows: \[1, 3\]"):
        distances(emb, frames(2, 5, 8), 0.1)
    with pytest.raises(ValueError, match=r"finite gallery_GUD .*\[1, 3\]"):
        distances(frames(2, 5, 8), emb, 0.1)


def test_a_score_far_below_any_range_is_zero(kernel):
    members, head = gallery([0, 0], 1), ready_head()
    head.bias_1.data.fill_(-5000.0)
    assert (class_scores(frames(2, 5, 8), members, head, gamma=0.1, mean="score") == 0).all()


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"floating-point emb_NTD \(2, 5, 8\), got torch.int32"):
        distances(frames(2, 5, 8).int(), frames(2, 5, 8), 0.1)
    with pytest.raises(ValueError, match=r"equal D.*, got \(2, 5, 8\) and \(2, 5, 7\)"):
        distances(frames(2, 5, 8), frames(2, 5, 7), 0.1)
    with pytest.raises(ValueError, match=r"gallery that is not empty, got \(2, 5, 8\) and \(0, 5, 8\)"):
        distances(frames(2, 5, 8), frames(0, 5, 8), 0.1)
    with pytest.raises(ValueError, match="gamma > 0, got -1"):
        distances(frames(2, 5, 8), frames(2, 5, 8), -1)
    members = gallery([0, 1], 2)
    with pytest.raises(ValueError, match="gamma > 0, got 0"):
        ClassScorer(members, ready_head(), gamma=0)
    with pytest.raises(ValueError, match='"log_odds" or "score", got \'mean\''):
        ClassScorer(members, ready_head(), gamma=0.1, mean="mean")
    with pytest.raises(ValueError, match="call standardise"):
        class_scores(frames(2, 5, 8), members, ScoreHead(), gamma=0.1)
    with pytest.raises(ValueError, match=r"got \(2, 5, 7\) and \(2, 5, 8\)"):
        class_scores(frames(2, 5, 7), members, ready_head(), gamma=0.1)


@pytest.mark.parametrize("rows", [2, 3, 100])
def test_nearest_members_are_those_of_the_smallest_distances(kernel, rows, monkeypatch):
    """Whatever the order of the classes in the gallery, and however many slices it is scored in."""
    monkeypatch.setattr("finepseudo.align.score._slice_rows", lambda *_: rows)
    members, head, emb_NTD = gallery([2, 0, 1, 0, 2, 1, 0], 3), ready_head(), frames(5, 5, 8)
    dist_NG = distances(emb_NTD, members.emb_GTD, 0.1)
    member_NM, near_S_NM = ClassScorer(members, head, gamma=0.1).nearest(emb_NTD, 3)
    assert member_NM.tolist() == dist_NG.argsort(1)[:, :3].tolist()
    torch.testing.assert_close(near_S_NM, head(dist_NG.sort(1).values[:, :3]).sigmoid())
    assert (near_S_NM[:, :-1] >= near_S_NM[:, 1:]).all()
    every_NG, _ = ClassScorer(members, head, gamma=0.1).nearest(emb_NTD, 30)
    assert every_NG.shape == (5, 7), "a gallery may be smaller"
