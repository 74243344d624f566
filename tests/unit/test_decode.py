"""From plan rows to pixels: the decoder, its cache, and augmentation as a pure function."""

import hashlib
import io
import os
import subprocess
import sys

import av
import numpy as np
import pytest
import torch

from finepseudo import rehearsal
from finepseudo.data.batch import make_batch
from finepseudo.data.cache import ClipCache
from finepseudo.data.decode import Decoder
from finepseudo.data.manifest import Video
from finepseudo.data.plan import Plan, Sample, plan_classify
from finepseudo.data.transforms import MEAN, STD, augment, centre
from finepseudo.errors import DecodeError, StreamError
from finepseudo.recipe import Augment, Rehearsal

SPEC = Rehearsal(words=("TW-U", "TP-F"), train_per_class=2, test_per_class=1, size=64, look=0)
PLAIN = Augment(scale_min=1.0, cutout=0.0, gain=0.0, colour=0.0)


def picture_file(path, frames_FHWC):
    path.write_bytes(rehearsal.encode_mp4(frames_FHWC, 25))
    return row_of(path, frames_FHWC.shape)


def row_of(path, shape):
    data = path.read_bytes()
    row = {"uri": str(path), "sha256": hashlib.sha256(data).hexdigest(), "num_frames": shape[0]}
    return {**row, "height": shape[1], "width": shape[2], "frames_0": [0, 2, 2, 5], "frames_1": None}


@pytest.fixture
def clip(tmp_path):
    frames = rehearsal.clip(SPEC, "train", rehearsal.video_ids(SPEC, "train")[0][0]).frames
    return picture_file(tmp_path / "clip.mp4", frames), frames


def off():
    return ClipCache("", 0)


def exact(path):
    with av.open(io.BytesIO(path.read_bytes())) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_decoded_frames_are_those_of_another_decoder(clip, tmp_path):
    row, frames = clip
    (found,) = Decoder(64, 64, off()).clips(row, ["frames_0"])
    assert found.shape == (4, 64, 64, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - exact(tmp_path / "clip.mp4")[[0, 2, 2, 5]]).mean() < 1
    assert np.abs(found.astype(int) - frames[[0, 2, 2, 5]]).mean() < 8


@pytest.mark.parametrize("side", [16, 24, 32, 48, 72, 50])
def test_every_size_works_with_and_without_cache(clip, tmp_path, side):
    row, _ = clip
    cached = Decoder(side, side, ClipCache(str(tmp_path / "cache"), 1 << 26))
    plain = Decoder(side, side, off()).clips(row, ["frames_0"])
    for _ in range(2):
        assert (cached.clips(row, ["frames_0"])[0] == plain[0]).all()
    assert (cached.cache.hits, cached.cache.misses) == (1, 1)
    assert plain[0].shape == (4, side, side, 3)


def test_wide_videos_are_covered_and_cut_at_the_centre(tmp_path):
    frames = np.zeros((8, 64, 128, 3), np.uint8)
    frames[:, :, :32] = 255  # the left quarter lies outside the central square
    row = picture_file(tmp_path / "wide.mp4", frames)
    (found,) = Decoder(32, 32, off()).clips(row, ["frames_0"])
    assert found[:, :, 2:].max() < 40


def test_another_file_than_the_probed_one_is_refused(clip, tmp_path):
    row, _ = clip
    decoder = Decoder(32, 32, off())
    with pytest.raises(DecodeError, match=r"not the file that was probed: expected sha256 0000"):
        decoder.clips({**row, "sha256": "0" * 64}, ["frames_0"])
    with pytest.raises(DecodeError, match="unreadable"):
        decoder.clips({**row, "uri": str(tmp_path / "gone.mp4")}, ["frames_0"])
    with pytest.raises(DecodeError, match=f"expected 9 frames, got {row['num_frames']}"):
        decoder.clips({**row, "num_frames": 9}, ["frames_0"])


def test_cache_keeps_its_bound_and_forgets_the_oldest(tmp_path):
    cache = ClipCache(str(tmp_path), 100_000)
    video = np.zeros((3, 32, 32, 3), np.uint8)
    for number in range(30):
        cache.put(f"{number:02d}" * 32, video)
        stamp = 1_000_000 + number
        os.utime(cache._path(f"{number:02d}" * 32, 32, 32), (stamp, stamp))
        if number >= 5:
            assert cache.get("05" * 32, 32, 32) is not None
    cache.evict()
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
    assert kept <= 100_000
    assert cache.get("05" * 32, 32, 32) is not None, "used all the time"
    assert cache.get("00" * 32, 32, 32) is None
    cache.put("ff" * 32, np.zeros((100, 32, 32, 3), np.uint8))
    assert cache.get("ff" * 32, 32, 32) is None, "larger than a tenth of the cache"


def test_damaged_cache_file_is_decoded_again(clip, tmp_path):
    row, _ = clip
    cache = ClipCache(str(tmp_path / "cache"), 1 << 26)
    decoder = Decoder(32, 32, cache)
    before = decoder.clips(row, ["frames_0"])[0]
    path = cache._path(row["sha256"], 32, 32)
    path.write_bytes(path.read_bytes()[:1000])
    assert (decoder.clips(row, ["frames_0"])[0] == before).all()
    assert cache.misses == 2


def test_full_disk_does_not_fail_a_decode(clip, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    row, _ = clip
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], check=True)
    try:
        decoder = Decoder(32, 32, ClipCache(str(folder), 1 << 26))
        assert decoder.clips(row, ["frames_0"])[0].shape == (4, 32, 32, 3)
        assert not list(folder.rglob("*.part"))
    finally:
        subprocess.run(["umount", folder], check=True)


def noise(clips=3, frames=4, side=20):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (clips, frames, side, side, 3), np.uint8))


def test_augmentation_is_a_function_of_the_seed_alone():
    clips = noise()
    whole = augment(clips, [5, 6, 7], Augment(), 16)
    assert whole.shape == (3, 4, 3, 16, 16)
    torch.testing.assert_close(augment(clips[1:2], [6], Augment(), 16), whole[1:2], rtol=0, atol=0)
    assert not torch.equal(augment(clips[1:2], [8], Augment(), 16), whole[1:2])


def test_all_frames_of_a_clip_get_the_same_draw():
    still = noise(frames=1).expand(3, 5, 20, 20, 3)
    found = augment(still, [1, 2, 3], Augment(cutout=1.0), 16)
    torch.testing.assert_close(found, found[:, :1].expand_as(found), rtol=0, atol=0)


def test_without_augmentation_pixels_stay():
    clips = noise()
    expected = (clips.permute(0, 1, 4, 2, 3).float() / 255 - MEAN) / STD
    torch.testing.assert_close(augment(clips, [1, 2, 3], PLAIN, 20), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(centre(clips, PLAIN, 20), expected, rtol=1e-4, atol=1e-4)


def batch_columns(plan, error=""):
    rows = plan.rows(0, plan.block_rows)
    errors = np.array([error if row["row"] == 1 else "" for row in rows], dtype=object)
    return {
        "row": np.array([row["row"] for row in rows]),
        "clip_0": np.zeros((len(rows), 4, 8, 8, 3), np.uint8),
        "error": errors,
        "decode_s": np.ones(len(rows)),
        "cache_hit": np.array([True] + [False] * (len(rows) - 1)),
    }


def small_plan(targets=None):
    videos = [Video(index, f"v{index}", "u", "s", 30, 8, 8) for index in range(4)]
    real = [Sample(video, video.index % 2) for video in videos[:2]]
    pseudo = [Sample(video, 1, 0.5, video.index - 2) for video in videos[2:]]
    return plan_classify(
        real, pseudo, frames=4, augment=Augment(), steps=1, batch=4, label_share=0.5, blocks_per_step=1, seed=0,
        targets_MK=targets,
    )  # fmt: skip


def test_batch_joins_clips_with_their_rows():
    targets = np.array([[0.3, 0.7], [0.1, 0.9]], np.float32)
    plan: Plan = small_plan(targets)
    batch = make_batch(plan, 2, batch_columns(plan, "lost"))
    rows = plan.rows(0, 4)
    assert batch.video_ids == [row["video_id"] for row in rows]
    assert batch.errors == {1: "lost"}
    assert batch.weight_B.tolist() == [1.0, 0.0, 0.5, 0.5]
    assert batch.target_BK[:2].tolist() == [[1 - row["label"], row["label"]] for row in rows[:2]]
    np.testing.assert_allclose(batch.target_BK[2:], targets[[row["target"] for row in rows[2:]]])
    assert (batch.decode_s, batch.cache_hits) == (4.0, 1)
    columns = batch_columns(plan)
    columns["row"] = columns["row"][::-1].copy()
    with pytest.raises(StreamError, match="out of order"):
        make_batch(plan, 2, columns)


def test_decoding_needs_no_torch():
    code = "import sys, finepseudo.data.decode, finepseudo.data.plan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
