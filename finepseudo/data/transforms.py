"""Augmentation and normalisation on the training device: a pure function of a clip and its plan row's seed.

Axes: B clips, T frames, C channels, H W pixels. All frames of a clip get the same draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finepseudo.models.table import Channels, Preprocessing
from finepseudo.recipe import PixelAugment

FEATURES = 3  # axes of a batch of stored features; one of pixels has five


def augment(
    clip_BTHWC: Tensor, seed_B: Sequence[int], options: PixelAugment, crop: int, preprocessing: Preprocessing
) -> Tensor:
    """Random crop, cutout, gain and colour: uint8 clips to normalised clip_BTCHW of `crop` x `crop` pixels.

    What is cut out has the mean colour, so 0 after the normalisation. Stored features feat_BTC stay as they are.
    """
    if clip_BTHWC.ndim == FEATURES:
        return clip_BTHWC.float()
    draws = [_draw(seed, options) for seed in seed_B]
    box_B4 = torch.tensor(np.stack([draw[0] for draw in draws]), dtype=torch.float32)
    colour_B4 = torch.tensor(np.stack([draw[1] for draw in draws]), dtype=torch.float32, device=clip_BTHWC.device)
    clip_BTCHW = _crop(clip_BTHWC, box_B4, crop)
    clip_BTCHW = (clip_BTCHW - 0.5) * colour_B4[:, None, :1, None, None] + 0.5
    clip_BTCHW = (clip_BTCHW * colour_B4[:, None, 1:, None, None]).clamp_(0, 1)
    for index, (_, _, hole) in enumerate(draws):
        if hole is not None:
            top, bottom, left, right = (round(edge * crop) for edge in hole)
            clip_BTCHW[index, :, :, top:bottom, left:right] = _channels(preprocessing.mean, clip_BTCHW)
    return normalise(clip_BTCHW, preprocessing)


def centre(clip_BTHWC: Tensor, options: PixelAugment, crop: int, preprocessing: Preprocessing) -> Tensor:
    """The same without chance, for inference: a centred crop of the mean size."""
    if clip_BTHWC.ndim == FEATURES:
        return clip_BTHWC.float()
    side = (1 + options.scale_min) / 2
    box_B4 = torch.tensor([[side, side, 0.0, 0.0]]).expand(len(clip_BTHWC), 4)
    return normalise(_crop(clip_BTHWC, box_B4, crop), preprocessing)


def normalise(clip_BTCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(p - mean) / std of pixels p in 0..1, channel by channel."""
    return (clip_BTCHW - _channels(preprocessing.mean, clip_BTCHW)) / _channels(preprocessing.std, clip_BTCHW)


def _channels(values: Channels, like: Tensor) -> Tensor:
    """value_C11, on the device of a clip."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _draw(seed: int, options: PixelAugment) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float, float] | None]:
    """Box (height, width, centre y, centre x; the frame is -1..1), contrast and channel gains, cutout edges."""
    rng = np.random.default_rng(seed)
    side = rng.uniform(options.scale_min, 1)
    centre_2 = rng.uniform(-(1 - side), 1 - side, 2)
    contrast = 1 + rng.uniform(-options.gain, options.gain)
    channel_3 = (1 + rng.uniform(-options.gain, options.gain)) * (1 + rng.uniform(-options.colour, options.colour, 3))
    hole = None
    if rng.uniform() < options.cutout:
        height, width = rng.uniform(min(0.1, options.cutout_side), options.cutout_side, 2)
        top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
        hole = (top, top + height, left, left + width)
    return np.array([side, side, *centre_2]), np.array([contrast, *channel_3]), hole


def _crop(clip_BTHWC: Tensor, box_B4: Tensor, crop: int) -> Tensor:
    """Bilinear crop of one box a clip, to float pixels in 0..1."""
    B, T, H, W, C = clip_BTHWC.shape
    height_B, width_B, y_B, x_B = box_B4.to(clip_BTHWC.device).unbind(1)
    zero_B = torch.zeros_like(y_B)
    theta_B23 = torch.stack([torch.stack([width_B, zero_B, x_B], 1), torch.stack([zero_B, height_B, y_B], 1)], 1)
    # All frames of a clip share the box, so they are resampled together, as channels of one picture.
    grid_BHW2 = F.affine_grid(theta_B23, [B, 1, crop, crop], align_corners=False)
    picture_BXHW = clip_BTHWC.permute(0, 1, 4, 2, 3).reshape(B, T * C, H, W).float() / 255
    out_BXHW = F.grid_sample(picture_BXHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)
    return out_BXHW.reshape(B, T, C, crop, crop)
