"""The head of f_A over time: a temporal convolution, a Transformer, and the projection to unit embeddings.

Axes: B batch, T frames, D embedding, F features (the Transformer's width), h heads, d width of a head.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finepseudo.models.table import Positions


def sinusoidal_positions(num_frames: int, width: int, like: Tensor) -> Tensor:
    """position_TF of the original Transformer: sin and cos of t / 10000^(2i/F) in the two halves of F [A]."""
    t_T1 = torch.arange(num_frames, device=like.device, dtype=torch.float32)[:, None]
    rate_F = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=torch.float32) * (-math.log(1e4) / width))
    return torch.cat([torch.sin(t_T1 * rate_F), torch.cos(t_T1 * rate_F)], dim=1).to(like.dtype)


class SelfAttention(nn.Module):
    """softmax(q k' / sqrt(d)) v over the frames of one clip, or the tokens of one frame, all heads at once.

    Written out with module calls only: the library's own layer reads the weights of its output projection from
    outside that projection, which a sharded engine does not gather.

    Args:
        fused: by torch's fused attention, which keeps no (T,T) matrix; without it the matrix is there, small where T is
            a few dozen.
    """

    def __init__(self, width: int, heads: int, *, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTF: Tensor) -> Tensor:
        q_BhTd, k_BhTd, v_BhTd = self.qkv(x_BTF).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q_BhTd, k_BhTd, v_BhTd).transpose(1, 2).flatten(2))
        weight_BhTT = (q_BhTd @ k_BhTd.mT * q_BhTd.shape[-1] ** -0.5).softmax(dim=-1)
        return self.out((weight_BhTT.to(v_BhTd.dtype) @ v_BhTd).transpose(1, 2).flatten(2))


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is 0 with probability p, and else divided by 1 - p [A].

    Torch's own generator draws, as for dropout: the loop seeds it by the block's place in the plan. A sample is one of
    the first axis.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * kept / (1 - self.rate)


def drop_rates(rate: float, layers: int) -> list[float]:
    """p of each layer: from 0 in the first to `rate` in the last, in equal steps [A]."""
    return [rate * place / max(1, layers - 1) for place in range(layers)]


class TransformerLayer(nn.Module):
    """Pre-norm layer: x + drop(attention(norm x)), then x + drop(mlp(norm x)); no dropout [C]."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        eps: float = 1e-5,
        activation: Callable[[], nn.Module] = nn.GELU,
        fused: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = SelfAttention(width, heads, fused=fused)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), activation(), nn.Linear(mlp_width, width))
        self.drop = DropPath(drop_path)

    def forward(self, x_BTF: Tensor) -> Tensor:
        x_BTF = x_BTF + self.drop(self.attention(self.norm1(x_BTF)))
        return x_BTF + self.drop(self.mlp(self.norm2(x_BTF)))


class TemporalConv(nn.Module):
    """Convolution of three frames, BatchNorm, ReLU: (B,T,F_in) -> (B,T,F)."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x_BTF.transpose(1, 2)))).transpose(1, 2)


class TemporalTransformer(nn.Module):
    """feat_BTF of a per-frame backbone -> feat_BTF of `width` that know their neighbours [P: VTN form].

    Sinusoidal positions give the lower loss in pre-training and the worse alignment, so "none" is the default [C]; the
    convolution still tells a frame which neighbour came first. `mlp_ratio`: a layer's inner width in units of `width`.
    """

    def __init__(
        self, in_width: int, width: int, *, layers: int, heads: int, mlp_ratio: int, positions: Positions
    ) -> None:
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"expected an even width that heads divide, got width {width} and heads {heads}")
        self.width, self.positions = width, positions
        self.conv = TemporalConv(in_width, width)
        self.layers = nn.Sequential(*(TransformerLayer(width, heads, mlp_ratio * width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, feat_BTF: Tensor) -> Tensor:
        x_BTF = self.conv(feat_BTF)
        if self.positions == "sinusoidal":
            x_BTF = x_BTF + sinusoidal_positions(x_BTF.shape[1], self.width, x_BTF)
        return self.norm(self.layers(x_BTF))


class UnitProjection(nn.Module):
    """emb = BN(W feat) / |BN(W feat)|, feat_BTF -> emb_BTD.

    BatchNorm without scale and shift, over all frames of all clips, then the L2 norm over D [C]: without the
    centring every cosine sits near 1 (average precision after pre-training .59 against .74 with it). fp32 or wider
    even under autocast.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim, bias=False)  # the centring would remove a bias
        self.norm = nn.BatchNorm1d(dim, affine=False)

    def forward(self, feat_BTF: Tensor) -> Tensor:
        with torch.autocast(feat_BTF.device.type, enabled=False):
            x_ND = self.project(feat_BTF.to(self.project.weight.dtype).flatten(0, 1))
            x_ND = self.norm(x_ND.to(torch.promote_types(x_ND.dtype, torch.float32)))
            return F.normalize(x_ND, dim=-1).unflatten(0, feat_BTF.shape[:2])
