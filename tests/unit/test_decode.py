"""From plan rows to pixels: the right frames at the right size, with and without the cache, or a reason."""

import hashlib
import io
import subprocess
import sys

import av
import numpy as np
import pytest

from finepseudo import rehearsal
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder as AnyDecoder
from finepseudo.errors import DecodeError
from finepseudo.recipe import Rehearsal
from finepseudo.storage.store import Store

SPEC = Rehearsal(words=("TW-U", "TP-F"), train_per_class=2, test_per_class=1, size=64, look=0)
ROOT = Store("/")
OFF = ClipCache("", 0)
CHILD = Child(60)


class Decoder(AnyDecoder):
    """Asked for columns of a row, whose clip its cache is to keep."""

    def __init__(self, data, height, width, cache):
        super().__init__(data, height, width, cache, CHILD)

    def clips(self, row, columns):
        return super().clips(row, [np.asarray(row[column]) for column in columns], keep=True)


@pytest.fixture(scope="module")
def frames():
    return rehearsal.clip(SPEC, "train", rehearsal.video_ids(SPEC, "train")[0][0]).frames


@pytest.fixture
def row(frames, video_row, tmp_path):
    return video_row(tmp_path / "clip.mp4", frames)


def another_decoder(row):
    with open(ROOT.uri(row["path"]), "rb") as file, av.open(io.BytesIO(file.read())) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def ramp(height, width, count=8):
    """Smooth pictures, different in each frame, direction and channel."""
    y_H, x_W = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    picture_HWC = np.stack([x_W + 0 * y_H, y_H + 0 * x_W, (x_W + y_H) / 2], -1)
    gain_F = np.linspace(0.5, 1, count)[:, None, None, None]
    return (255 * gain_F * picture_HWC).astype(np.uint8)


def covered(frames_FHWC, height, width):
    """The largest centred part of that shape, by nearest pixels."""
    _, H, W, _ = frames_FHWC.shape
    scale = min(H / height, W / width)
    y_h = ((H - height * scale) / 2 + (np.arange(height) + 0.5) * scale).astype(int)
    x_w = ((W - width * scale) / 2 + (np.arange(width) + 0.5) * scale).astype(int)
    return frames_FHWC[:, y_h][:, :, x_w]


def test_decoded_frames_are_those_of_another_decoder(row, frames):
    (found,) = Decoder(ROOT, 64, 64, OFF).clips(row, ["frames_0"])
    assert found.shape == (4, 64, 64, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - another_decoder(row)[[0, 2, 2, 5]]).mean() < 1
    assert np.abs(found.astype(int) - frames[[0, 2, 2, 5]]).mean() < 8


@pytest.mark.parametrize("cache", [False, True])
def test_two_clips_of_a_row_in_any_order_of_frames(row, tmp_path, cache):
    decoder = Decoder(ROOT, 64, 64, ClipCache(str(tmp_path / "cache"), 1 << 26) if cache else OFF)
    last = row["num_frames"] - 1
    pair = decoder.clips({**row, "frames_0": [last, 0, 7], "frames_1": [7, 7]}, ["frames_0", "frames_1"])
    exact = another_decoder(row)
    for found, index in zip(pair, ([last, 0, 7], [7, 7]), strict=True):
        assert np.abs(found.astype(int) - exact[index]).mean() < 1


# Scaling to these widths and no others fails inside the decoder, alone or where a video is cut to a square.
@pytest.mark.parametrize("side", [8, 9, 12, 16, 24, 32, 36, 48, 50, 72, 112])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (80, 48)])
def test_every_size_shows_the_covered_centre(video_row, tmp_path, side, height, width):
    pictures = ramp(height, width)
    row = video_row(tmp_path / "ramp.mp4", pictures)
    (found,) = Decoder(ROOT, side, side, OFF).clips(row, ["frames_0"])
    expected = covered(pictures[[0, 2, 2, 5]], side, side)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 10


@pytest.mark.parametrize("size", [(24, 48), (48, 24), (16, 20), (40, 72)])
def test_frames_need_not_be_square(video_row, tmp_path, size):
    pictures = ramp(64, 80)
    row = video_row(tmp_path / "ramp.mp4", pictures)
    (found,) = Decoder(ROOT, *size, OFF).clips(row, ["frames_0"])
    expected = covered(pictures[[0, 2, 2, 5]], *size)
    assert found.shape == expected.shape == (4, *size, 3)
    assert np.abs(found.astype(int) - expected).mean() < 10


def test_wide_videos_are_cut_at_the_centre(video_row, tmp_path):
    pictures = np.zeros((8, 64, 128, 3), np.uint8)
    pictures[:, :, :32] = 255  # the left quarter lies outside the central square
    row = video_row(tmp_path / "wide.mp4", pictures)
    (found,) = Decoder(ROOT, 32, 32, OFF).clips(row, ["frames_0"])
    assert found[:, :, 2:].max() < 40


@pytest.mark.parametrize("side", [16, 24, 48, 72, 50])
def test_cached_equals_uncached(row, tmp_path, side):
    cached = Decoder(ROOT, side, side, ClipCache(str(tmp_path / "cache"), 1 << 27))
    (plain,) = Decoder(ROOT, side, side, OFF).clips(row, ["frames_0"])
    for _ in range(3):
        assert (cached.clips(row, ["frames_0"])[0] == plain).all()
    assert (cached.cache.hits, cached.cache.misses) == (2, 1)


def test_the_cache_answers_without_the_file(row, tmp_path):
    decoder = Decoder(ROOT, 32, 32, ClipCache(str(tmp_path / "cache"), 1 << 26))
    (before,) = decoder.clips(row, ["frames_0"])
    (after,) = decoder.clips({**row, "path": str(tmp_path / "moved.mp4")[1:]}, ["frames_0"])
    assert (before == after).all()
    after[:] = 0  # a copy: nobody can write into the cache
    assert (decoder.clips(row, ["frames_0"])[0] == before).all()


def test_another_file_than_the_probed_one_is_refused(row, tmp_path):
    decoder = Decoder(ROOT, 32, 32, OFF)
    with pytest.raises(DecodeError, match=r"clip.mp4: not the file that was probed: expected sha256 000000000000, got"):
        decoder.clips({**row, "sha256": "0" * 64}, ["frames_0"])
    with pytest.raises(DecodeError, match="gone.mp4: unreadable: .*no such file"):
        decoder.clips({**row, "path": str(tmp_path / "gone.mp4")[1:]}, ["frames_0"])
    with pytest.raises(DecodeError, match=f"expected 9 frames, got {row['num_frames']}"):
        decoder.clips({**row, "file_frames": 9}, ["frames_0"])


@pytest.mark.parametrize("cache", [False, True])
def test_a_file_that_is_no_video_is_a_decode_error(row, tmp_path, cache):
    rubbish = b"no video " * 99
    (tmp_path / "clip.mp4").write_bytes(rubbish)
    wrong = {**row, "sha256": hashlib.sha256(rubbish).hexdigest()}
    decoder = Decoder(ROOT, 32, 32, ClipCache(str(tmp_path / "cache"), 1 << 26) if cache else OFF)
    with pytest.raises(DecodeError, match="clip.mp4: undecodable: Invalid data found"):
        decoder.clips(wrong, ["frames_0"])
    assert decoder.cache.get(wrong["sha256"], 32, 32) is None, "failures are not kept"


def test_decoding_needs_no_torch():
    code = "import sys, finepseudo.data.decode, finepseudo.data.plan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("cache", [False, True])
def test_parts_of_a_file_are_its_own_frames_and_do_not_mix(row, tmp_path, cache):
    decoder = Decoder(ROOT, 64, 64, ClipCache(str(tmp_path / "cache"), 1 << 26) if cache else OFF)
    count = row["file_frames"]
    (whole,) = decoder.clips({**row, "frames_0": range(count)}, ["frames_0"])
    for start, length in ((0, 9), (9, 9), (9, 12), (0, count)):
        part = {**row, "start": start, "num_frames": length, "frames_0": [length - 1, 0, 4]}
        for _ in range(2):
            assert (decoder.clips(part, ["frames_0"])[0] == whole[[start + length - 1, start, start + 4]]).all()
