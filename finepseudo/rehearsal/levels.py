"""Levels of nuisance: whatever differs from clip to clip and does not depend on the class.

Values in px are for a frame of `REFERENCE` px and scale with the frame. Pairs are the bounds of a uniform distribution.
"""

from dataclasses import dataclass, replace

REFERENCE = 112


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the picture of a clip may vary in."""

    scale: tuple[float, float] = (30.0, 30.0)  # standing height in px of a frame of 48, so 30 is 62.5 % of the frame
    proportion: tuple[float, float] = (1.0, 1.0)  # factor on trunk, arms and legs, each for itself
    azimuth_sd: float = 0.0  # rad
    drift_sd: float = 0.0  # px, way of the camera over the clip, each axis (a quarter of it downwards)
    jitter: tuple[float, float] = (0.0, 0.0)  # px, sd of the camera's shaking
    gain: tuple[float, float] = (1.0, 1.0)  # factor on all colours
    noise: tuple[float, float] = (0.0, 0.0)  # sd of the sensor noise, grey levels
    tint: float = 0.0  # colours of the standard palette vary by +- this many grey levels
    wild: bool = False  # gradient and 2..5 rectangles as background, random body colours
    mirror: bool = False  # half of the clips mirrored


MILD = Look(scale=(29.0, 31.0), proportion=(0.97, 1.03), gain=(0.95, 1.05), noise=(1.0, 2.0), tint=10.0)
WILD = Look(scale=(24.0, 35.0), proportion=(0.92, 1.08), gain=(0.85, 1.15), noise=(2.0, 9.0), wild=True)
LOOKS = (
    Look(),
    replace(MILD, azimuth_sd=0.05, drift_sd=2.0, jitter=(0.0, 0.3)),
    replace(WILD, azimuth_sd=0.12, drift_sd=6.0, jitter=(0.2, 1.2)),
    replace(WILD, azimuth_sd=0.18, drift_sd=6.0, jitter=(0.2, 1.2), mirror=True),
)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What the timing of a clip may vary in."""

    active: tuple[int, int]  # frames from crouch to landing; the same for every class, so length does not tell it
    stretch_sd: float  # each part's share of the active length is multiplied by exp N(0, sd)
    warp_sd: float  # progress within a part is u^g with g = exp N(0, sd)
    idle: int  # frames before and after, each uniform 0..idle
    drop: float  # upper bound of the clip's drop rate, uniform from 0
    freeze: float  # probability of one freeze of 1..4 frames


PACES = (
    Pace(active=(51, 51), stretch_sd=0.0, warp_sd=0.0, idle=0, drop=0.0, freeze=0.0),
    Pace(active=(34, 68), stretch_sd=0.28, warp_sd=0.30, idle=16, drop=0.08, freeze=0.3),
    Pace(active=(34, 102), stretch_sd=0.56, warp_sd=0.60, idle=32, drop=0.08, freeze=0.3),
)
