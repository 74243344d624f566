"""Which frames a clip takes: in range, in order, spread over the action, whatever the video's length."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finepseudo.data.sampling import global_local, global_tiled, spread, spread_jittered

LENGTHS, CLIPS, SEEDS = st.integers(1, 300), st.integers(2, 32), st.integers(0, 10_000)


def is_clip(index_T, num_frames, frames):
    assert index_T.shape == (frames,)
    assert index_T.dtype == np.int32
    assert (np.diff(index_T) >= 0).all()
    assert index_T.min() >= 0
    assert index_T.max() < num_frames


@given(LENGTHS, CLIPS, st.floats(0, 0.999))
def test_spread_covers_the_action_in_order(num_frames, frames, phase):
    index_T = spread(num_frames, frames, phase=phase)
    is_clip(index_T, num_frames, frames)
    assert index_T[0] <= num_frames / frames
    assert index_T[-1] >= num_frames - 1 - num_frames / frames
    counts = np.bincount(index_T, minlength=num_frames)
    if num_frames <= frames:  # repeated evenly, none left out
        assert counts.max() - counts.min() <= 1
    else:
        assert counts.max() == 1


def test_spread_takes_the_middles_of_equal_cells():
    assert spread(100, 4).tolist() == [12, 37, 62, 87]
    assert spread(2, 4).tolist() == [0, 0, 1, 1]
    assert spread(1, 3).tolist() == [0, 0, 0]


@given(LENGTHS, CLIPS, SEEDS, st.floats(0, 0.4), st.floats(0, 2))
def test_jittered_clips_are_clips(num_frames, frames, seed, ends, warp):
    index_T = spread_jittered(num_frames, frames, np.random.default_rng(seed), ends=ends, warp=warp)
    is_clip(index_T, num_frames, frames)
    again = spread_jittered(num_frames, frames, np.random.default_rng(seed), ends=ends, warp=warp)
    assert (again == index_T).all()


@given(LENGTHS, CLIPS, SEEDS)
def test_without_cut_and_warp_each_frame_stays_in_its_cell(num_frames, frames, seed):
    index_T = spread_jittered(num_frames, frames, np.random.default_rng(seed), ends=0, warp=0)
    low_T = (np.arange(frames) * num_frames) // frames
    high_T = -(-(np.arange(1, frames + 1) * num_frames) // frames)
    assert (low_T <= index_T).all()
    assert (index_T <= high_T).all()


def test_ends_are_cut_off_by_no_more_than_asked():
    clips = [spread_jittered(1000, 16, np.random.default_rng(seed), ends=0.1, warp=0) for seed in range(200)]
    first, last = np.array([clip[0] for clip in clips]), np.array([clip[-1] for clip in clips])
    assert first.max() < 1000 * (0.1 + 1 / 16)
    assert last.min() >= 1000 * (0.9 - 1 / 16) - 1
    assert len(np.unique(first)) > 50


@settings(max_examples=200)
@given(LENGTHS, CLIPS, SEEDS, st.integers(1, 6), st.integers(1, 6))
def test_the_local_clip_lies_within_the_global_one(num_frames, frames, seed, skip_global, skip_local):
    s_n, t_n = global_local(
        num_frames, frames, np.random.default_rng(seed), skip_global=skip_global, skip_local=skip_local
    )
    is_clip(s_n, num_frames, frames)
    is_clip(t_n, num_frames, frames)
    # Both are jittered by at most half a skip, and rounded.
    slack = skip_global / 2 + min(skip_local, skip_global) / 2 + 1
    assert t_n.min() >= s_n.min() - slack
    assert t_n.max() <= s_n.max() + slack
    assert np.ptp(t_n) <= min(skip_local, skip_global) * frames + 1
    assert np.ptp(s_n) <= skip_global * frames + 1


def test_index_does_not_tell_time():
    """The same index of the two clips falls on different moments, differently each time."""
    gaps = []
    for seed in range(100):
        s_n, t_n = global_local(65, 8, np.random.default_rng(seed), skip_global=4, skip_local=2)
        gaps.append(int(t_n[0] - s_n[0]))
    assert len(set(gaps)) > 10


@given(LENGTHS, CLIPS, SEEDS, st.integers(1, 4), st.integers(2, 4))
def test_local_clips_tile_the_global_one(num_frames, frames, seed, skip, count):
    how = {"skip_global": count * skip, "skip_local": skip}
    whole_T, local_T = global_tiled(num_frames, frames, np.random.default_rng(seed), **how)
    is_clip(whole_T, num_frames, frames)
    is_clip(local_T, num_frames, count * frames)
    # A frame of the global clip stands for `count` of the local ones: it lies near the middle of their times.
    middle_T = local_T.reshape(frames, count).mean(1)
    assert np.abs(whole_T - middle_T).max() <= count * skip / 2 + skip / 2 + 1
    again = global_tiled(num_frames, frames, np.random.default_rng(seed), **how)
    assert (again[0] == whole_T).all()
    assert (again[1] == local_T).all()


def test_long_videos_give_local_clips_of_the_asked_skip_at_different_starts():
    draws = [global_tiled(500, 8, np.random.default_rng(n), skip_global=8, skip_local=2) for n in range(50)]
    assert {round((local_T[-1] - local_T[0]) / 31) for _, local_T in draws} == {2}
    assert len({int(local_T[0]) for _, local_T in draws}) > 30
