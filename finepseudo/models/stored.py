"""f_A and f_E over features of frames that a frozen backbone has made and stored: what is trained is small.

Axes: B batch, T frames, C stored features of a frame, D embedding, F features, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from finepseudo.models.encoders import FrameEncoder, VideoEncoder
from finepseudo.models.table import Positions
from finepseudo.models.vtn import TemporalTransformer, UnitProjection

WIDTH = 256
SHAPE = {"width": WIDTH, "heads": 8, "mlp_ratio": 4}


class FeatureVTN(FrameEncoder):
    """f_A as VTN has it after its backbone [P]: three Transformer layers of width 256 over feat_BTC.

    Args:
        size: C.
    """

    own = ()

    def __init__(self, *, size: int, dim: int, positions: Positions, dropout: float) -> None:
        super().__init__()
        self.dim, self.feature_dim = dim, WIDTH
        self.dropout = nn.Dropout(dropout)
        self.temporal = TemporalTransformer(size, **SHAPE, layers=3, positions=positions)
        self.embed = UnitProjection(WIDTH, dim)

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        """From feat_BTC, which stands where others have pixels."""
        return self.temporal(self.dropout(clip_BTCHW))


class FeatureTransformer(VideoEncoder):
    """f_E over feat_BTC: two Transformer layers of width 256, mean over time, dropout, linear classifier [C].

    Args:
        size: C.
    """

    def __init__(self, *, size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.feature_dim, self.num_classes = WIDTH, num_classes
        self.dropout = nn.Dropout(dropout)
        self.temporal = TemporalTransformer(size, **SHAPE, layers=2, positions="sinusoidal")
        self.fc = nn.Linear(WIDTH, num_classes)

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        """From feat_BTC, which stands where others have pixels."""
        return self.temporal(self.dropout(clip_BTCHW))

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return self.fc(self.dropout(self.time_features(clip_BTCHW).mean(dim=1)))
