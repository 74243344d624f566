"""Which frames of a video a clip takes. Pure functions of the video's length and a generator.

Axes: T frames of a clip. A video with fewer frames than asked for repeats them evenly.
"""

from __future__ import annotations

import numpy as np

Frames = np.ndarray


def spread(num_frames: int, frames: int, *, phase: float = 0.5) -> Frames:
    """`frames` frames spread evenly over the whole action; `phase` in [0, 1) tells the views of a video apart."""
    # Multiplied before divided: the other way round loses whole frames to rounding.
    time_T = (np.arange(frames) + phase) * num_frames / frames
    return np.minimum(time_T.astype(np.int32), num_frames - 1)


def spread_jittered(num_frames: int, frames: int, rng: np.random.Generator, *, ends: float, warp: float) -> Frames:
    """The whole action with up to `ends` of it cut off at either end, warped by u^g, times jittered in their cells.

    g = exp(N(0, warp)).
    """
    start, stop = rng.uniform(0, ends), 1 - rng.uniform(0, ends)
    u_T = (np.arange(frames) + rng.uniform(size=frames)) / frames
    u_T = start + (stop - start) * u_T ** np.exp(rng.normal(0, warp))
    return np.minimum((u_T * num_frames).astype(np.int32), num_frames - 1)


def global_local(
    num_frames: int, frames: int, rng: np.random.Generator, *, skip_global: int, skip_local: int
) -> tuple[Frames, Frames]:
    """The two clips of GITDL: a global one, and a denser local one inside its time range, at random offsets.

    A video too short for a skip gets the largest one that fits; times are jittered by half a skip, so that
    the index of a frame does not tell its time.
    """
    last = num_frames - 1
    step_global = min(skip_global, last / (frames - 1))
    span_global = step_global * (frames - 1)
    at_global = rng.uniform(0, last - span_global) if last > span_global else 0.0
    step_local = min(skip_local, span_global / (frames - 1))
    span_local = step_local * (frames - 1)
    at_local = at_global + (rng.uniform(0, span_global - span_local) if span_global > span_local else 0.0)
    return _times(at_global, step_global, frames, last, rng), _times(at_local, step_local, frames, last, rng)


def global_tiled(
    num_frames: int, frames: int, rng: np.random.Generator, *, skip_global: int, skip_local: int
) -> tuple[Frames, Frames]:
    """The clips of TCLR: a global one, and as many local ones as tile its time, one after the other.

    A local clip has as many frames as the global one, whose every frame stands for skip_global / skip_local of theirs.
    Short videos and jitter are as in `global_local`.
    """
    last, count = num_frames - 1, skip_global // skip_local
    local = count * frames
    step = min(skip_local, last / (local - 1))
    span = step * (local - 1)
    start = rng.uniform(0, last - span) if last > span else 0.0
    middle = start + step * (count - 1) / 2
    return _times(middle, step * count, frames, last, rng), _times(start, step, local, last, rng)


def _times(start: float, step: float, frames: int, last: int, rng: np.random.Generator) -> Frames:
    times_T = start + step * (np.arange(frames) + rng.uniform(-0.5, 0.5, frames))
    return np.clip(np.rint(times_T), 0, last).astype(np.int32)
