"""What each training stage optimises: modules whose forward is the whole objective.

The module is what the engine wraps, so every parameter (the score head's too) is used inside its forward.
Axes: B clips, T n m frames, L local clips, D F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finepseudo.align.contrast import nt_xent, tclr_loss
from finepseudo.align.head import ScoreHead
from finepseudo.align.losses import av_loss, gitdl_loss
from finepseudo.align.softdtw import block_distances
from finepseudo.data.batch import ClipBatch
from finepseudo.data.manifest import UNKNOWN
from finepseudo.data.transforms import augment, centre
from finepseudo.models.encoders import FrameEncoder, VideoEncoder
from finepseudo.recipe import AvLoss, Contrast, CrossEntropy, FixMatch, GitdlLoss, InstanceLoss, PixelAugment, TclrLoss

Loss = GitdlLoss | TclrLoss | InstanceLoss | AvLoss | CrossEntropy | FixMatch
Output = tuple[Tensor, dict[str, Tensor]]


class Objective(nn.Module):
    """An encoder and a loss; `forward(batch)` gives the block's loss and what to log beside it."""

    encoder: FrameEncoder | VideoEncoder

    def __init__(self, encoder: FrameEncoder | VideoEncoder, augmentation: PixelAugment, crop: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.augmentation, self.crop = augmentation, crop

    def standardise(self, mean: float, std: float) -> None:
        """Of the distances that a new score head will see; nothing where there is no such head."""

    def clips(self, batch: ClipBatch) -> Tensor:
        return self.augmented(batch.clip_BTHWC, batch.seed_B)

    def augmented(self, clip_BTHWC: Tensor, seed_B: Sequence[int]) -> Tensor:
        """As the encoder takes pixels."""
        return augment(clip_BTHWC, seed_B, self.augmentation, self.crop, self.encoder.preprocessing)


L = TypeVar("L", bound=Contrast)


class PretrainObjective(Objective, Generic[L]):
    """A loss without labels, of f_A on its embeddings or of f_E on its time features, through a projection head.

    The head is not part of the snapshot. All clips go through the encoder as one batch, so BatchNorm sees the block
    once.
    """

    def __init__(self, encoder: FrameEncoder | VideoEncoder, loss: L, augmentation: PixelAugment, crop: int) -> None:
        super().__init__(encoder, augmentation, crop)
        self.loss = loss
        width = encoder.dim if isinstance(encoder, FrameEncoder) else encoder.feature_dim
        self.projection = nn.Sequential(nn.Linear(width, loss.hidden), nn.ReLU(), nn.Linear(loss.hidden, loss.out))
        if isinstance(encoder, VideoEncoder):
            # The classifier takes no part: frozen, so that weight decay leaves it alone at every ZeRO stage.
            for param in encoder.fc.parameters():
                param.requires_grad = False

    def local(self, batch: ClipBatch, view: int) -> Tensor:
        """Local clips by a draw of their own, the same for all frames of a video: views differ in more than time."""
        assert batch.other_BTHWC is not None
        return self.augmented(batch.other_BTHWC, [seed ^ view for seed in batch.seed_B])

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF."""
        time_features: Any = self.encoder if isinstance(self.encoder, FrameEncoder) else self.encoder.time_features
        return time_features(clip_BTCHW)

    def projected(self, feat_XF: Tensor) -> Tensor:
        """Unit vectors, fp32; X is any axes."""
        return F.normalize(self.projection(feat_XF).float(), dim=-1)


class GitdlObjective(PretrainObjective[GitdlLoss]):
    """L_GITDL of a global and a local clip."""

    def forward(self, batch: ClipBatch) -> Output:
        batch = batch.decoded()
        assert batch.other_time_BT is not None
        both = torch.cat([self.clips(batch), self.local(batch, 1)])
        g_BnD, l_BmD = self.projected(self.features(both)).chunk(2)
        sigma2, tau = self.loss.sigma2, self.loss.tau
        times = batch.time_BT, batch.other_time_BT
        return gitdl_loss(g_BnD, l_BmD, *times, sigma2=sigma2, tau=tau, weight_B=batch.weight_B), {}


class TclrObjective(PretrainObjective[TclrLoss]):
    """L_TCLR of f_E on a global clip and the L local clips that tile its time.

    Of the global clip, the mean of the time features that fall into the time of each local clip, and of all; of a local
    clip, seen by two draws, the mean of all. As many frames each, so that BatchNorm sees all clips at once.
    """

    def forward(self, batch: ClipBatch) -> Output:
        batch = batch.decoded()
        whole = self.clips(batch)
        B, T = whole.shape[:2]
        views = torch.cat([self.local(batch, view).unflatten(1, (-1, T)) for view in (1, 2)], 1)  # (B,2L,T,...)
        feat_XTF = self.features(torch.cat([whole, views.flatten(0, 1)]))
        mean_XF = feat_XTF.mean(1)
        time_BLF = feat_XTF[:B].unflatten(1, (views.shape[1] // 2, -1)).mean(2)
        first_BLD, second_BLD = self.projected(mean_XF[B:].unflatten(0, (B, -1))).chunk(2, 1)
        whole_BD, time_BLD = self.projected(mean_XF[:B]), self.projected(time_BLF)
        tclr = tclr_loss(whole_BD, time_BLD, first_BLD, second_BLD, tau=self.loss.tau, weight_B=batch.weight_B)
        logged = {"L_IC": tclr.instance, "L_LL": tclr.local_local, "L_GL": tclr.global_local}
        return tclr.loss, {name: value.detach() for name, value in logged.items()}


class InstanceObjective(PretrainObjective[InstanceLoss]):
    """NT-Xent over the videos of a block: the mean features of the global and of the local clip are the two views.

    What it learns does not tell the times of a video apart: the temporally invariant start of TimeBalance.
    """

    def forward(self, batch: ClipBatch) -> Output:
        batch = batch.decoded()
        both = torch.cat([self.clips(batch), self.local(batch, 1)])
        first_BD, second_BD = self.projected(self.features(both).mean(1)).chunk(2)
        kept_B = batch.weight_B > 0  # none of a block that could not be decoded at all
        loss_X = nt_xent(first_BD[None, kept_B], second_BD[None, kept_B], tau=self.loss.tau)
        return (loss_X.mean() if kept_B.any() else first_BD.sum() * 0), {}


class AlignObjective(Objective):
    """L_AV = L_AT + w L_Score of f_A on one block of P classes x M clips. The score head is part of the snapshot."""

    def __init__(self, encoder: FrameEncoder, loss: AvLoss, augmentation: PixelAugment, crop: int) -> None:
        super().__init__(encoder, augmentation, crop)
        self.loss = loss
        self.score = ScoreHead()

    def standardise(self, mean: float, std: float) -> None:
        self.score.standardise(mean, std)

    def forward(self, batch: ClipBatch) -> Output:
        """Distances and losses are in fp32 whatever the encoder's precision."""
        batch = batch.decoded()
        emb_BTD = self.encoder(self.clips(batch))
        with torch.autocast(emb_BTD.device.type, enabled=False):
            dist_BB = block_distances(emb_BTD.float(), gamma=self.loss.gamma)
            weights = {"triplet_weight": self.loss.triplet_weight, "score_weight": self.loss.score_weight}
            pairs = dist_BB, self.score(dist_BB), batch.label_B, batch.video_B, batch.weight_B
            av = av_loss(*pairs, margin=self.loss.margin, **weights)
        logged = {"L_AT": av.triplet.loss, "L_Score": av.score, "anchors_skipped": av.triplet.skipped}
        return av.loss, {name: value.detach().float() for name, value in logged.items()}


class ClassifyObjective(Objective):
    """Cross-entropy of f_E with labels or soft targets; a row weighs its confidence.

    The sum is divided by the block's rows, not by their weights, so that the mean over blocks does not depend on
    how rows fall into blocks.
    """

    def __init__(self, encoder: VideoEncoder, loss: CrossEntropy, augmentation: PixelAugment, crop: int) -> None:
        super().__init__(encoder, augmentation, crop)
        self.loss = loss

    def forward(self, batch: ClipBatch) -> Output:
        rows = len(batch.row_B)
        batch = batch.decoded()
        logits_BK = self.encoder(self.clips(batch)).float()
        target = batch.label_B if batch.target_BK is None else batch.target_BK
        loss_B = F.cross_entropy(logits_BK, target, reduction="none")
        return (loss_B * batch.weight_B).sum() / rows, {}


class FixMatchObjective(Objective):
    """FixMatch (Sohn et al., NeurIPS 2020) of f_E on one block of labelled and unlabelled rows.

        L = mean over labelled rows of CE(y, p(strong))
            + mean over unlabelled rows of 1[max q >= θ] CE(argmax q, p(strong)),     q = p(weak), no gradient

    The strong view is the augmentation that all methods train by, the weak one the centre crop of the same frames [C]:
    a mirrored or re-timed clip may be of another class. q is made in evaluation mode, so as at inference: FixMatch
    makes it in training mode, where its BatchNorm sees the labelled rows beside it [C]. Its moving average of the
    weights is left out: the learning rate falls to nothing, which leaves little to average [C].

    Both means are over the block's rows of a kind, decodable or not, so that the mean over blocks does not depend on
    how rows fall into blocks.
    """

    def __init__(self, encoder: VideoEncoder, loss: FixMatch, augmentation: PixelAugment, crop: int) -> None:
        super().__init__(encoder, augmentation, crop)
        self.loss = loss

    def forward(self, batch: ClipBatch) -> Output:
        unlabelled = int((batch.label_B == UNKNOWN).sum())
        labelled = len(batch.row_B) - unlabelled
        batch = batch.decoded()
        logits_BK = self.encoder(self.clips(batch)).float()
        confidence_B, found_B = self._weak(batch).max(1)
        unknown_B = batch.label_B == UNKNOWN
        accepted_B = unknown_B & (confidence_B >= self.loss.threshold) & (batch.weight_B > 0)
        target_B = torch.where(unknown_B, found_B, batch.label_B)
        weight_B = torch.where(unknown_B, accepted_B / max(1, unlabelled), batch.weight_B / max(1, labelled))
        loss_B = F.cross_entropy(logits_BK, target_B, reduction="none")
        return (loss_B * weight_B).sum(), {"accepted": accepted_B.sum() / max(1, unlabelled)}

    @torch.no_grad()
    def _weak(self, batch: ClipBatch) -> Tensor:
        """q_BK of all rows: sharded workers gather parameters together, so none may skip a forward.

        It comes after that of the strong view, since autocast would keep weights that were cast without a gradient.
        """
        training = self.encoder.training
        self.encoder.eval()
        clips = centre(batch.clip_BTHWC, self.augmentation, self.crop, self.encoder.preprocessing)
        q_BK = self.encoder(clips).float().softmax(1)
        self.encoder.train(training)
        return q_BK


# What computes a loss, by the type of its options: called with encoder, options, augmentation and crop.
OBJECTIVES: dict[type[Loss], Callable[..., Objective]] = {
    GitdlLoss: GitdlObjective,
    TclrLoss: TclrObjective,
    InstanceLoss: InstanceObjective,
    AvLoss: AlignObjective,
    CrossEntropy: ClassifyObjective,
    FixMatch: FixMatchObjective,
}
