"""From the id of a clip to its frames: the movement, seen by a camera in a scene.

Axes: F frames, H height, W width, C colour, J joints, S limbs ("sticks").
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from finepseudo.recipe import Rehearsal
from finepseudo.rehearsal.figure import joints, paint
from finepseudo.rehearsal.ids import stream
from finepseudo.rehearsal.motion import Truth, make_timeline
from finepseudo.rehearsal.scene import REFERENCE, make_scene

NOISE_BANK = 1 << 18  # values of the noise table, of which each frame takes a random stretch


@dataclass(frozen=True)
class Clip:
    """One rendered clip."""

    frames: np.ndarray  # uint8, FHWC, RGB
    truth: Truth
    nuisance: dict[str, float]  # everything random that the class must not depend on, the length included


def nuisance(spec: Rehearsal, split: str, video_id: str) -> dict[str, float]:
    """The clip's nuisance values, length included, without drawing figures."""
    return make_timeline(spec, split, video_id).nuisance | make_scene(spec, split, video_id).nuisance


def clip(spec: Rehearsal, split: str, video_id: str) -> Clip:
    """Render one clip: a pure function of the spec and the id."""
    timeline, scene = make_timeline(spec, split, video_id), make_scene(spec, split, video_id)
    rng = stream(video_id, "camera")
    n, size, px, F = scene.nuisance, spec.size, spec.size / REFERENCE, len(timeline.source_F)

    # the camera shakes and drifts, and with it all that is seen
    shake_F2 = n["jitter"] * rng.standard_normal((F, 2))
    shake_F2 += np.outer(np.linspace(-0.5, 0.5, F), (n["drift_x"], n["drift_y"]))
    shake_F2 = np.clip(shake_F2 * px, 1 - scene.margin, scene.margin - 1)
    window = np.lib.stride_tricks.sliding_window_view(scene.background_HWC, (size, size), axis=(0, 1))
    shift_F2 = scene.margin - np.round(shake_F2).astype(np.int64)
    frames = np.ascontiguousarray(window[shift_F2[:, 1], shift_F2[:, 0]].transpose(0, 2, 3, 1))

    joints_FJ3, front_F3 = joints(timeline, n)
    x_FJ, y_FJ, z_FJ = np.moveaxis(joints_FJ3, -1, 0)
    scale, flip = n["scale"] / 48 * size, -1 if n["mirror"] else 1
    cos, sin = math.cos(n["azimuth"]), math.sin(n["azimuth"])
    across_FJ, towards_FJ = flip * (x_FJ * cos + y_FJ * sin), x_FJ * sin - y_FJ * cos
    seen_FJ3 = np.stack((size / 2 + n["place_x"] * px + scale * across_FJ, scene.floor - scale * z_FJ, towards_FJ), -1)
    seen_FJ3[..., :2] += shake_F2[:, None]
    mark_F = np.clip(4 * (front_F3[:, 0] * sin - front_F3[:, 1] * cos), 0, 1)  # seen from the front only
    paint(frames, seen_FJ3, mark_F, scale, scene.palette_PC)

    if n["noise"]:
        values = frames[0].size
        bank = np.round(_noise_bank(NOISE_BANK + values) * n["noise"]).astype(np.int16)
        for frame, start in zip(frames.reshape(F, values), rng.integers(0, NOISE_BANK, F), strict=True):
            frame[:] = np.clip(frame + bank[start : start + values], 0, 255)
    return Clip(frames, timeline.truth, timeline.nuisance | n)


@lru_cache(maxsize=2)
def _noise_bank(values: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(values, dtype=np.float32)
