"""The scene around a clip's movement: place, camera, proportions, colours and background, drawn by its look.

Values in px are for a frame of `REFERENCE` px and scale with the frame. Pairs are the bounds of a uniform distribution.
Axes: P colours of the palette, H height, W width, C colour.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from finepseudo.recipe import Rehearsal
from finepseudo.rehearsal.ids import apparatus_of, person_of, stream

REFERENCE = 112
FLOOR = 0.91  # height of the floor line, shares of the frame from its top
AZIMUTH = 0.75  # mean camera azimuth, 0 = seen from the gymnast's right, pi/2 = from the front
POSITION = (3.0, 1.5)  # the gymnast's and floor's place: uniform within +- px, across and down
MARGIN = 24  # px of background around the frame, for a moving camera
PERSONAL = ("scale", "azimuth", "mirror", "trunk", "arm", "leg")  # what all clips of a person share, beside colours
BESIDE = (24.0, 31.0)  # px from the middle of the picture to that of an apparatus, to either side
BOXES = {"X": ((0, 13, 15),), "Y": ((8, 5, 30), (0, 8, 4))}
"""Of an apparatus, its parts: px above the floor, height and width."""
RIGHT = 0.6  # brightness of the right limbs, relative to the left ones
CONTRAST = 45.0  # least difference of luminance between limbs, trunk, head and the mean background of wild looks
LUMA = np.array((0.299, 0.587, 0.114))
GREY = (214.0, 219.0, 224.0)  # background of looks that are not wild
LEFT_TRUNK_HEAD = ((226.0, 58.0, 42.0), (48.0, 84.0, 165.0), (146.0, 98.0, 70.0))  # body of looks that are not wild
BRIGHT, DARK = (255.0, 228.0, 70.0), (20.0, 16.0, 28.0)  # chest mark on a dark, on a bright trunk


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
WILD = Look(
    scale=(24.0, 35.0), proportion=(0.92, 1.08), azimuth_sd=0.12, gain=(0.85, 1.15), noise=(2.0, 9.0), wild=True
)
LOOKS = (
    Look(),
    replace(MILD, azimuth_sd=0.05, drift_sd=2.0, jitter=(0.0, 0.3)),
    replace(WILD, drift_sd=6.0, jitter=(0.2, 1.2)),
    replace(WILD, azimuth_sd=0.18, drift_sd=6.0, jitter=(0.2, 1.2), mirror=True),
)


@dataclass(frozen=True)
class Scene:
    """What one clip's frames have in common."""

    palette_PC: np.ndarray  # left limbs, right limbs, trunk, head, mark
    background_HWC: np.ndarray  # uint8, `margin` wider than the frame on each side
    margin: int
    floor: float  # px from the top of the frame
    nuisance: dict[str, float]


def make_scene(spec: Rehearsal, split: str, video_id: str) -> Scene:
    """Draw the look nuisance: body, camera, colours, background; of the clip's person, where it has one."""
    person, look, px = person_of(spec, split, video_id), LOOKS[spec.look], spec.size / REFERENCE
    rng = stream(person or video_id, "look")
    n = _numbers(rng, WILD if person else look)  # persons differ more than the clips of one do
    if person:
        of_clip = _numbers(stream(video_id, "look"), look)
        n |= {name: value for name, value in of_clip.items() if name not in PERSONAL}
        n |= {"person": float(person.rpartition("-")[2])}
    margin, floor = round(MARGIN * px), FLOOR * spec.size + n["place_y"] * px
    side = spec.size + 2 * margin
    if look.wild:
        background, blocks = _wild_background(rng, side)
        left, trunk, head = _wild_body(rng, float((background.mean((0, 1)) * LUMA).sum()))
    else:
        tint = rng.uniform(-look.tint, look.tint, (4, 3))
        background, blocks = np.broadcast_to(GREY + tint[3], (side, side, 3)), 0
        left, trunk, head = np.array(LEFT_TRUNK_HEAD) + tint[:3]
        if person:
            left, trunk, head = _wild_body(rng, float(background[0, 0] @ LUMA))
    n |= {"blocks": float(blocks)}
    for name, rgb in (("ground", background.mean((0, 1))), ("left", left), ("trunk", trunk), ("head", head)):
        n |= {f"{name}_{channel}": float(value) for channel, value in zip("rgb", rgb, strict=True)}

    mark = BRIGHT if trunk @ LUMA < 140 else DARK
    palette = np.clip(np.array((left, RIGHT * left, trunk, head, mark)) * n["gain"], 0, 255)
    background = np.clip(background * n["gain"], 0, 255).astype(np.uint8)
    top = margin + round(floor)
    line = background[top : top + (round(2 * px) or 1)]
    line[:] = line // 3 + (0 if line.mean() > 96 else 80)
    if apparatus := apparatus_of(spec, split, video_id):
        _stand(background, apparatus, stream(video_id, "apparatus"), top, px)
    return Scene(palette.astype(np.float32), background, margin, floor, n)


def _numbers(rng: np.random.Generator, look: Look) -> dict[str, float]:
    n = {"place_x": rng.uniform(-POSITION[0], POSITION[0]), "place_y": rng.uniform(-POSITION[1], POSITION[1])}
    n |= {"scale": rng.uniform(*look.scale), "azimuth": AZIMUTH + look.azimuth_sd * rng.standard_normal()}
    n |= {"drift_x": look.drift_sd * rng.standard_normal(), "drift_y": look.drift_sd * rng.standard_normal() / 4}
    n |= {"jitter": rng.uniform(*look.jitter), "gain": rng.uniform(*look.gain), "noise": rng.uniform(*look.noise)}
    n |= {"mirror": float(look.mirror and rng.random() < 0.5), "sway": rng.uniform(0, 2 * math.pi)}
    n |= {part: rng.uniform(*look.proportion) for part in ("trunk", "arm", "leg")}
    return n


def _stand(background_HWC: np.ndarray, apparatus: str, rng: np.random.Generator, floor: int, px: float) -> None:
    """Draw an apparatus beside the gymnast, on one side by chance, of a colour that says nothing."""
    middle = background_HWC.shape[1] / 2 + rng.choice((-1, 1)) * rng.uniform(*BESIDE) * px
    colours = rng.uniform(0, 255, (2048, 3))
    clear = np.abs(colours @ LUMA - float(background_HWC.mean((0, 1)) @ LUMA)) > CONTRAST
    for above, height, width in BOXES[apparatus]:
        low, left = floor - round(above * px), round(middle - width * px / 2)
        background_HWC[low - round(height * px) : low, left : left + round(width * px)] = colours[clear][0]


def _wild_background(rng: np.random.Generator, side: int) -> tuple[np.ndarray, int]:
    """A gradient with some rectangles on it, and the number of these."""
    # dark or bright, never in between, where no limb could stand out in both its shades
    ends = (rng.uniform(30, 60) if rng.random() < 0.5 else rng.uniform(130, 225)) + rng.uniform(-30, 30, (2, 3))
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-0.5, 0.5, side)
    ramp_HW = 0.5 + 0.7 * (across[:, None] * math.sin(angle) + across[None] * math.cos(angle))
    background = ends[0] + ramp_HW[..., None] * (ends[1] - ends[0])
    blocks = int(rng.integers(2, 6))
    for y, x, h, w in rng.uniform((0, 0, 0.1, 0.1), (0.9, 0.9, 0.4, 0.4), (blocks, 4)):
        box = (slice(int(y * side), int((y + h) * side)), slice(int(x * side), int((x + w) * side)))
        background[box] += rng.uniform(-35, 35, 3)
    return background, blocks


def _wild_body(rng: np.random.Generator, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours of left limbs, trunk and head that stand out from a background of luminance `level`."""
    colours = rng.uniform(0, 255, (2048, 3))
    luma = colours @ LUMA
    clear = np.abs(luma - level) > CONTRAST
    # left limbs must stand out in their darker, right shade as well
    left = colours[clear & (np.abs(RIGHT * luma - level) > CONTRAST) & (luma > 40)][0]
    trunk, head = colours[clear][-2:]
    return left, trunk, head
