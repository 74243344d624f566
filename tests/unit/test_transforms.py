"""Augmentation is a pure function of a clip and its seed, the same for all frames, and can be turned off."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finepseudo.data import transforms
from finepseudo.models.table import KINETICS, Preprocessing
from finepseudo.recipe import Augment

GREY = Preprocessing()
MEAN, STD = GREY.mean[0], GREY.std[0]
PLAIN = Augment(scale_min=1.0, cutout=0.0, gain=0.0, colour=0.0)


def augment(clips, seeds, options, crop, preprocessing=GREY):
    return transforms.augment(clips, seeds, options, crop, preprocessing)


def centre(clips, options, crop, preprocessing=GREY):
    return transforms.centre(clips, options, crop, preprocessing)


def noise(clips=3, frames=4, side=20):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (clips, frames, side, side, 3), np.uint8))


def grey(level=128, clips=1, side=20):
    return torch.full((clips, 2, side, side, 3), level, dtype=torch.uint8)


def pixels(clip_BTCHW):
    return clip_BTCHW * STD + MEAN


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_augmentation_is_a_function_of_the_seed_alone():
    clips, before = noise(), torch.get_rng_state()
    whole = augment(clips, [5, 6, 7], Augment(), 16)
    assert whole.shape == (3, 4, 3, 16, 16)
    assert whole.dtype == torch.float32
    same(augment(clips, [5, 6, 7], Augment(), 16), whole)
    same(augment(clips[1:2], [6], Augment(), 16), whole[1:2])
    same(augment(clips.flip(0), [7, 6, 5], Augment(), 16), whole.flip(0))
    assert not torch.equal(augment(clips[1:2], [8], Augment(), 16), whole[1:2])
    assert torch.equal(torch.get_rng_state(), before), "the global generator takes no part"


def test_all_frames_of_a_clip_get_the_same_draw():
    still = noise(frames=1).expand(3, 5, 20, 20, 3)
    found = augment(still, [1, 2, 3], Augment(cutout=1.0), 16)
    same(found, found[:, :1].expand_as(found))


def test_without_augmentation_pixels_stay():
    clips = noise()
    expected = (clips.permute(0, 1, 4, 2, 3).float() / 255 - MEAN) / STD
    torch.testing.assert_close(augment(clips, [1, 2, 3], PLAIN, 20), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(centre(clips, PLAIN, 20), expected, rtol=1e-4, atol=1e-4)
    assert (clips == noise()).all(), "nothing is done in place"


def test_each_part_does_what_it_says_and_no_other():
    seeds = range(50)
    gains = torch.cat([pixels(augment(grey(100), [seed], replace(PLAIN, gain=0.3), 16)) for seed in seeds])
    level = 100 / 255
    assert gains.amin() >= min((level - 0.5) * 1.3 + 0.5, (level - 0.5) * 0.7 + 0.5) * 0.7 - 1e-4
    assert gains.amax() <= max((level - 0.5) * 1.3 + 0.5, (level - 0.5) * 0.7 + 0.5) * 1.3 + 1e-4
    assert (gains - gains[:, :1, :1, :1, :1]).abs().max() < 1e-6, "one gain for the whole clip"
    colours = torch.cat([pixels(augment(grey(100), [seed], replace(PLAIN, colour=0.15), 16)) for seed in seeds])
    assert (colours / level - 1).abs().amax() <= 0.15 + 1e-4
    assert (colours.std(2) > 0.001).float().mean() > 0.9, "channels differ"


def test_values_stay_pixels():
    wild = Augment(gain=0.9, colour=0.9)
    found = pixels(augment(noise(20), range(20), wild, 16))
    assert found.amin() >= -1e-5
    assert found.amax() <= 1 + 1e-5
    assert bool(found.isfinite().all())


def holes(how, seeds=range(60), crop=40):
    """Height and width of each clip's rectangle, as shares of the crop."""
    clips = augment(grey(255, len(seeds)), list(seeds), how, crop)
    hit_BHW = (pixels(clips)[:, 0, 0] - MEAN).abs() < 1e-4
    return [(hit.any(1).sum().item() / crop, hit.any(0).sum().item() / crop, hit.sum().item()) for hit in hit_BHW]


def test_cutout_is_one_rectangle_of_at_most_its_side():
    found = holes(replace(PLAIN, cutout=1.0, cutout_side=0.35))
    for height, width, count in found:
        assert 0 < height <= 0.35 + 1 / 40
        assert 0 < width <= 0.35 + 1 / 40
        assert count == round(height * 40) * round(width * 40)
    some = sum(count > 0 for _, _, count in holes(replace(PLAIN, cutout=0.5, cutout_side=0.35)))
    assert 15 < some < 45


@pytest.mark.parametrize("side", [0.0, 0.05])
def test_small_cutouts_are_small(side):
    assert max(max(height, width) for height, width, _ in holes(replace(PLAIN, cutout=1.0, cutout_side=side))) <= (
        side + 1 / 40
    )


def position(side=40):
    """A clip whose red tells the row and whose green the column."""
    y_HW, x_HW = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([6 * y_HW, 6 * x_HW, 0 * x_HW], -1)[None, None].to(torch.uint8)


def test_crops_stay_inside_and_are_as_large_as_asked():
    sizes, tops = [], []
    for seed in range(60):
        red, green = (
            pixels(augment(position(), [seed], replace(PLAIN, scale_min=0.5), 40))[0, 0, :2] * 255 / 6
        ).unbind(0)
        height, width = float(red[-1, 0] - red[0, 0]) + 1, float(green[0, -1] - green[0, 0]) + 1
        assert height == pytest.approx(width, abs=1.01), "square"
        sizes.append(height / 40)
        tops.append(float(red[0, 0]))
        assert (red[:, :1] - red).abs().max() < 1e-3, "no turning, no shearing"
    assert 0.45 < min(sizes) < 0.6
    assert 0.9 < max(sizes) <= 1.03
    assert len(set(tops)) > 30


def test_centre_is_the_middle_of_the_mean_size():
    red, green = (pixels(centre(position(), replace(PLAIN, scale_min=0.5), 40))[0, 0, :2] * 255 / 6).unbind(0)
    for line in (red[:, 0], green[0]):
        assert float(line[0] + line[-1]) / 2 == pytest.approx(19.5, abs=0.01)
        assert float(line[-1] - line[0]) == pytest.approx(0.75 * 39, abs=0.5)
    same(centre(noise(), Augment(), 16), centre(noise(), Augment(gain=0.9, cutout=1.0), 16))


def test_each_channel_has_its_own_mean_and_deviation():
    mean_C, std_C = np.array(KINETICS.mean), np.array(KINETICS.std)
    for clips in (noise(), grey()):
        side = clips.shape[2]
        expected = (clips.double().numpy() / 255 - mean_C) / std_C
        for found in (augment(clips, range(len(clips)), PLAIN, side, KINETICS), centre(clips, PLAIN, side, KINETICS)):
            np.testing.assert_allclose(found.permute(0, 1, 3, 4, 2).numpy(), expected, atol=1e-4)


def test_equal_channels_are_normalised_as_by_one_number():
    pixels_BTCHW = noise().permute(0, 1, 4, 2, 3).float() / 255
    same(transforms.normalise(pixels_BTCHW, GREY), (pixels_BTCHW - 0.45) / 0.225)


def test_what_is_cut_out_is_nothing_to_the_encoder():
    found = augment(grey(255), [3], replace(PLAIN, cutout=1.0), 40, KINETICS)
    hole = (found == 0).all(dim=2)
    assert 0 < hole.sum() < hole.numel()
    assert (found == 0).any(dim=2).sum() == hole.sum(), "all channels at once"
