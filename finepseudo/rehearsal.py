"""The rehearsal data set: a generated, fine-grained action data set of real H.264 files.

One gymnast crouches, jumps, performs a word of elements in the air and lands. Every clip has the same scene and the
same body; classes differ only in how the movement unfolds. A class word such as `TPW-U` names the elements in their
order, then the landing:

    T tuck somersault    P pike somersault    W full twist    K straddle hold    |    U landing, arms up    F folded

Every element starts and ends in the same air pose, so any order is possible, and the total length has the same
distribution for every class, so that counts cannot be read off the length. All randomness is keyed by the clip's own
id: adding clips or classes changes no other clip, and each function here is pure.

Axes: F frames, H height, W width, C colour, J joints, S limbs ("sticks"), A pose angles.
Body axes: x forward, y to the gymnast's left, z up. Lengths of the body are in standing heights, angles in radians.
"""

import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from finepseudo.recipe import Rehearsal

Array = NDArray[Any]

ELEMENTS, LANDINGS = "TPWK", "UF"
PHASES = ("idle", "crouch", "T", "P", "W", "K", "U", "F", "rest")  # code = index; rest is the idle time after landing
SPLITS = ("train", "test")

# --- the movement -----------------------------------------------------------------------------------------------
DURATION = {"crouch": 1.0, "T": 1.6, "P": 1.8, "W": 1.5, "K": 1.4, "U": 1.2, "F": 1.2}  # shares of the active length
# hip, knee, shoulder, elbow flexion; straddle (each leg outwards); lean of the trunk; lift (0 on the floor, 1 in air)
POSES = {
    "stand": (0.00, 0.00, 0.15, 0.15, 0.06, 0.00, 0.0),
    "squat": (1.75, 2.00, -0.50, 0.20, 0.10, 0.75, 0.0),
    "air": (0.05, 0.05, 0.60, 0.20, 0.03, 0.00, 1.0),
    "tuck": (2.25, 2.45, 0.95, 0.75, 0.05, 0.00, 1.0),
    "pike": (2.15, 0.00, 1.75, 0.05, 0.03, 0.00, 1.0),
    "twist": (0.00, 0.00, 2.95, 0.15, 0.02, 0.00, 1.0),
    "straddle": (1.45, 0.00, 1.30, 0.05, 1.20, 0.15, 1.0),
    "up": (0.00, 0.00, 2.90, 0.10, 0.06, 0.00, 0.0),
    "fold": (2.25, 1.30, 1.50, 0.10, 0.08, 1.60, 0.0),
}
# (progress, pose) of each part; between two of them the pose moves by cosine easing
KEYS = {
    "idle": ((0.0, "stand"), (1.0, "stand")),
    "crouch": ((0.0, "stand"), (0.5, "squat"), (1.0, "air")),
    "T": ((0.0, "air"), (0.25, "tuck"), (0.75, "tuck"), (1.0, "air")),
    "P": ((0.0, "air"), (0.25, "pike"), (0.75, "pike"), (1.0, "air")),
    "W": ((0.0, "air"), (0.25, "twist"), (0.75, "twist"), (1.0, "air")),
    "K": ((0.0, "air"), (0.25, "straddle"), (0.75, "straddle"), (1.0, "air")),
    "U": ((0.0, "air"), (0.5, "squat"), (1.0, "up")),
    "F": ((0.0, "air"), (0.5, "squat"), (1.0, "fold")),
}
AIR = 0.69  # height of the pelvis above the floor in the air; 0.52 when standing
SWAY = 0.05  # amplitude of the swaying of a gymnast on the floor, rad

# --- the body, in standing heights ------------------------------------------------------------------------------
TRUNK, NECK, THIGH, SHANK, UPPER_ARM, FOREARM = 0.28, 0.12, 0.25, 0.25, 0.17, 0.16  # lengths
SHOULDER, HIP, CHEST_DEPTH = 0.085, 0.045, 0.075  # half widths; distance of the chest mark from the spine
LEG_R, ARM_R, TRUNK_R, HEAD_R, MARK_R = 0.042, 0.032, 0.070, 0.072, 0.050  # radii
# joints: 0 pelvis, 1 chest, 2 head, 3 mark, then shoulder, elbow, wrist, hip, knee, ankle: 4..9 left, 10..15 right
STICKS = ((0, 1), (2, 2), (3, 3), (4, 5), (5, 6), (7, 8), (8, 9), (10, 11), (11, 12), (13, 14), (14, 15))
RADII_S = np.array((TRUNK_R, HEAD_R, MARK_R, *(2 * (ARM_R, ARM_R, LEG_R, LEG_R))), np.float32)
COLOUR_S = np.array((2, 3, 4, 0, 0, 0, 0, 1, 1, 1, 1))  # rows of the palette: left, right, trunk, head, mark

# --- the picture ------------------------------------------------------------------------------------------------
REFERENCE = 112  # all pixel values below are for a frame of this side and scale with the frame
FLOOR = 0.91  # height of the floor line, shares of the frame from its top
AZIMUTH = 0.75  # mean camera azimuth, 0 = seen from the gymnast's right, pi/2 = from the front
POSITION = (3.0, 1.5)  # the gymnast's and floor's place: uniform within +- px, across and down
MARGIN = 24  # px of background around the frame, for a moving camera
RIGHT = 0.6  # brightness of the right limbs, relative to the left ones
CONTRAST = 45.0  # least difference of luminance between limbs, trunk, head and the mean background (looks 2 and 3)
LUMA = np.array((0.299, 0.587, 0.114))
GREY = (214.0, 219.0, 224.0)  # background of looks 0 and 1
LEFT_TRUNK_HEAD = ((226.0, 58.0, 42.0), (48.0, 84.0, 165.0), (146.0, 98.0, 70.0))  # body of looks 0 and 1
BRIGHT, DARK = (255.0, 228.0, 70.0), (20.0, 16.0, 28.0)  # chest mark on a dark, on a bright trunk
NOISE_BANK = 1 << 18  # values of the noise table, of which each frame takes a random stretch

CRF = "23"  # constant rate factor of H.264, 0..51, lower is better
PRESET = "superfast"


@dataclass(frozen=True, kw_only=True)
class Look:
    """Look nuisance of one level; pairs are the bounds of a uniform distribution."""

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


LOOKS = (
    Look(),
    Look(
        scale=(29.0, 31.0), proportion=(0.97, 1.03), azimuth_sd=0.05, drift_sd=2.0, jitter=(0.0, 0.3),
        gain=(0.95, 1.05), noise=(1.0, 2.0), tint=10.0,
    ),
    Look(
        scale=(24.0, 35.0), proportion=(0.92, 1.08), azimuth_sd=0.12, drift_sd=6.0, jitter=(0.2, 1.2),
        gain=(0.85, 1.15), noise=(2.0, 9.0), wild=True,
    ),
    Look(
        scale=(24.0, 35.0), proportion=(0.92, 1.08), azimuth_sd=0.18, drift_sd=6.0, jitter=(0.2, 1.2),
        gain=(0.85, 1.15), noise=(2.0, 9.0), wild=True, mirror=True,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Time nuisance of one level."""

    active: tuple[int, int]  # frames from crouch to landing, uniform for every class
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


@dataclass(frozen=True)
class Truth:
    """What happens in each frame, exactly."""

    phase_F: Array  # int64, index into PHASES
    element_F: Array  # int64, place in the class word (landing included), -1 for idle, crouch and rest
    progress_F: Array  # float64 in 0..1, how far the phase has gone, warp included


@dataclass(frozen=True)
class Clip:
    """One rendered clip."""

    frames: Array  # uint8, FHWC, RGB
    truth: Truth
    nuisance: dict[str, float]  # everything random that the class must not depend on, the length included


@dataclass(frozen=True)
class _Timeline:
    truth: Truth
    source_F: Array  # int64, the frame of the undisturbed clip that each frame shows
    nuisance: dict[str, float]


@dataclass(frozen=True)
class _Scene:
    palette_PC: Array  # left limbs, right limbs, trunk, head, mark
    background_HWC: Array  # uint8, MARGIN wider on each side, without floor line
    nuisance: dict[str, float]


def letters(word: str) -> tuple[str, ...]:
    """`TPW-U` -> ("T", "P", "W", "U"). Raises ValueError if it is not elements, a hyphen and one landing."""
    elements, hyphen, landing = word.partition("-")
    if not elements or set(elements) - set(ELEMENTS) or not hyphen or landing not in tuple(LANDINGS):
        raise ValueError(f"expected a class word such as 'TPW-U' (of {ELEMENTS}, then one of {LANDINGS}), got {word!r}")
    return (*elements, landing)


# --- names and files --------------------------------------------------------------------------------------------
@lru_cache(maxsize=16)
def _index(spec: Rehearsal, split: str) -> dict[str, int]:
    """video_id -> label, in the order of the ids."""
    if split not in SPLITS:
        raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
    if spec.look not in range(len(LOOKS)) or spec.time not in range(len(PACES)):
        raise ValueError(f"expected look 0..{len(LOOKS) - 1}, time 0..{len(PACES) - 1}, got {spec.look}, {spec.time}")
    for word in spec.words:
        letters(word)
    count = spec.train_per_class if split == "train" else spec.test_per_class
    keys = [(f"{spec.seed}/{split}/{word}/{i}", k) for k, word in enumerate(spec.words) for i in range(count)]
    return dict(sorted((hashlib.sha256(key.encode()).hexdigest()[:12], label) for key, label in keys))


def video_ids(spec: Rehearsal, split: str) -> list[tuple[str, int]]:
    """(video_id, label) of a split. Ids are hashes, sorted, so neither id nor order tells the class."""
    return list(_index(spec, split).items())


def annotations(spec: Rehearsal) -> dict[str, bytes]:
    """Annotation files in the form of Diving48: train.json, test.json, vocab.json. `end_frame` is exclusive."""
    files: dict[str, Any] = {"vocab.json": [list(letters(word)) for word in spec.words]}
    for split in SPLITS:
        files[f"{split}.json"] = [
            {"vid_name": name, "label": label, "start_frame": 0, "end_frame": len(truth(spec, split, name).phase_F)}
            for name, label in video_ids(spec, split)
        ]
    return {name: json.dumps(rows, indent=0).encode() for name, rows in files.items()}


def _rng(video_id: str, purpose: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{video_id}/{purpose}".encode()).digest()[:16], "big"))


def _word(spec: Rehearsal, split: str, video_id: str) -> tuple[str, ...]:
    label = _index(spec, split).get(video_id)
    if label is None:
        raise ValueError(f"expected a video_id of the {split} split, got {video_id!r}")
    return letters(spec.words[label])


# --- time -------------------------------------------------------------------------------------------------------
def _timeline(video_id: str, word: tuple[str, ...], pace: Pace) -> _Timeline:
    """Draw the clip's time nuisance and lay the word out in time."""
    rng = _rng(video_id, "time")
    active = int(rng.integers(pace.active[0], pace.active[1] + 1))
    before, after = (int(n) for n in rng.integers(0, pace.idle + 1, size=2))
    total = before + active + after
    drop_rate = rng.uniform(0, pace.drop)
    dropped = int(rng.binomial(total, drop_rate))
    frozen = int(rng.integers(1, 5)) if rng.random() < pace.freeze else 0

    parts = ("crouch", *word)
    rng = _rng(video_id, "parts")  # a stream of its own: its length depends on the word
    # 2.5 sd: beyond that a part of level 2 could fall between two frames
    stretch, warp = np.exp(np.clip(rng.standard_normal((len(parts), 2)), -2.5, 2.5) * (pace.stretch_sd, pace.warp_sd)).T
    share = np.array([DURATION[part] for part in parts]) * stretch
    edges = np.concatenate(([0.0], np.cumsum(share / share.sum()))) * active

    time_F = np.arange(total) - before + 0.5
    part_F = np.clip(np.searchsorted(edges, time_F, side="right") - 1, 0, len(parts) - 1)
    start_F, length_F = edges[part_F], np.diff(edges)[part_F]
    progress_F = np.clip((time_F - start_F) / length_F, 0, 1) ** warp[part_F]
    phase_F = np.array([PHASES.index(part) for part in parts])[part_F]
    element_F = part_F - 1
    for idle, name in ((time_F < 0, "idle"), (time_F > active, "rest")):
        phase_F[idle], element_F[idle] = PHASES.index(name), -1
        progress_F[idle] = (np.arange(idle.sum()) + 0.5) / max(idle.sum(), 1)

    # How many frames are dropped does not depend on the word; which, only so far that no part's middle frame goes.
    rng = _rng(video_id, "frames")
    order_F = rng.random(total)
    order_F[np.clip(np.round(before + (edges[:-1] + edges[1:]) / 2 - 0.5).astype(int), 0, total - 1)] = 2
    kept = np.sort(np.argsort(order_F, kind="stable")[dropped:])
    held = int(rng.integers(len(kept)))
    shown = np.concatenate((kept[: held + 1], np.full(frozen, kept[held]), kept[held + 1 :]))

    values = {
        "length": len(shown), "active": active, "idle_before": before, "idle_after": after, "drop_rate": drop_rate,
        "dropped": dropped, "frozen": frozen, "frozen_at": held / len(kept),
    }  # fmt: skip
    for name, i in (("crouch", 0), ("first", 1), ("last", -1)):
        values |= {f"stretch_{name}": stretch[i], f"warp_{name}": warp[i]}
    return _Timeline(
        truth=Truth(phase_F[shown], element_F[shown], progress_F[shown]),
        source_F=shown,
        nuisance={name: float(value) for name, value in values.items()},
    )


def truth(spec: Rehearsal, split: str, video_id: str) -> Truth:
    """The clip's exact truth, without drawing it."""
    return _timeline(video_id, _word(spec, split, video_id), PACES[spec.time]).truth


def nuisance(spec: Rehearsal, split: str, video_id: str) -> dict[str, float]:
    """The clip's nuisance values, length included, without drawing figures."""
    timeline = _timeline(video_id, _word(spec, split, video_id), PACES[spec.time])
    return timeline.nuisance | _scene(video_id, LOOKS[spec.look], spec.size).nuisance


# --- look -------------------------------------------------------------------------------------------------------
def _scene(video_id: str, look: Look, size: int) -> _Scene:
    """Draw the clip's look nuisance: body, camera, colours, background."""
    rng = _rng(video_id, "look")
    n = {
        "place_x": rng.uniform(-POSITION[0], POSITION[0]), "place_y": rng.uniform(-POSITION[1], POSITION[1]),
        "scale": rng.uniform(*look.scale), "azimuth": AZIMUTH + look.azimuth_sd * rng.standard_normal(),
        "drift_x": look.drift_sd * rng.standard_normal(), "drift_y": look.drift_sd * rng.standard_normal() / 4,
        "jitter": rng.uniform(*look.jitter), "gain": rng.uniform(*look.gain), "noise": rng.uniform(*look.noise),
        "mirror": float(look.mirror and rng.random() < 0.5), "sway": rng.uniform(0, 2 * math.pi),
        "trunk": rng.uniform(*look.proportion), "arm": rng.uniform(*look.proportion),
        "leg": rng.uniform(*look.proportion),
    }  # fmt: skip
    side = size + 2 * round(MARGIN * size / REFERENCE)
    if look.wild:
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
        level = float((background.mean((0, 1)) * LUMA).sum())
        # three colours that stand out; left limbs must do so in their darker, right shade as well
        colours = rng.uniform(0, 255, (2048, 3))
        luma = colours @ LUMA
        clear = np.abs(luma - level) > CONTRAST
        left = colours[clear & (np.abs(RIGHT * luma - level) > CONTRAST) & (luma > 40)][0]
        trunk, head = colours[clear][-2:]
    else:
        tint = rng.uniform(-look.tint, look.tint, (4, 3))
        background = np.broadcast_to(GREY + tint[3], (side, side, 3))
        left, trunk, head = np.array(LEFT_TRUNK_HEAD) + tint[:3]
        blocks = 0
    mark = BRIGHT if trunk @ LUMA < 140 else DARK
    palette = np.clip(np.array((left, RIGHT * left, trunk, head, mark)) * n["gain"], 0, 255)
    n |= {"blocks": float(blocks)}
    for name, rgb in (("ground", background.mean((0, 1))), ("left", left), ("trunk", trunk), ("head", head)):
        n |= {f"{name}_{channel}": float(value) for channel, value in zip("rgb", rgb, strict=True)}
    return _Scene(palette.astype(np.float32), np.clip(background * n["gain"], 0, 255).astype(np.uint8), n)


# --- drawing ----------------------------------------------------------------------------------------------------
def _ease(x: Array) -> Array:
    return 0.5 - 0.5 * np.cos(np.pi * x)


def _pose(progress_F: Array, phase: str) -> Array:
    """pose_FA of one phase: cosine easing between its key poses."""
    knots = np.array([at for at, _ in KEYS[phase]])
    poses_KA = np.array([POSES[pose] for _, pose in KEYS[phase]])
    i_F = np.clip(np.searchsorted(knots, progress_F, side="right") - 1, 0, len(knots) - 2)
    blend_F = _ease((progress_F - knots[i_F]) / (knots[i_F + 1] - knots[i_F]))
    return poses_KA[i_F] + blend_F[:, None] * (poses_KA[i_F + 1] - poses_KA[i_F])


def _joints(timeline: _Timeline, landing: str, body: dict[str, float]) -> tuple[Array, Array]:
    """joints_FJ3, pelvis on x = y = 0 and the floor on z = 0, and the direction of the chest front_F3."""
    t = timeline.truth
    pose_FA, turn_F, spin_F = np.empty((len(t.phase_F), 7)), np.zeros(len(t.phase_F)), np.zeros(len(t.phase_F))
    for code in np.unique(t.phase_F):
        here, phase = t.phase_F == code, PHASES[code]
        at_F = t.progress_F[here]
        pose_FA[here] = _pose(np.ones_like(at_F), landing) if phase == "rest" else _pose(at_F, phase)
        if phase in ("T", "P"):
            turn_F[here] = 2 * np.pi * _ease(at_F)
        elif phase == "W":
            spin_F[here] = 2 * np.pi * _ease(at_F)
    hip, knee, shoulder, elbow, straddle, lean, lift = pose_FA.T
    sway_F = SWAY * (1 - lift) * np.sin(0.22 * timeline.source_F + body["sway"])
    turn_F = turn_F + lean + sway_F

    def limb(root: tuple[float, float, float], bends: tuple[Array, Array], out: Array, lengths: Array) -> list[Array]:
        """Three joints of a limb that hangs down, is bent forward by `bends` and led outwards by `out`."""
        points = [np.broadcast_to(root, (len(out), 3))]
        for bend, length in zip(bends, lengths, strict=True):
            step = (np.cos(out) * np.sin(bend), np.sin(out), -np.cos(out) * np.cos(bend))
            points.append(points[-1] + length * np.stack(step, -1))
        return points

    arm, leg = body["arm"] * np.array((UPPER_ARM, FOREARM)), body["leg"] * np.array((THIGH, SHANK))
    trunk = TRUNK * body["trunk"]
    spine = ((0, 0, 0), (0, 0, trunk), (0, 0, trunk + NECK), (CHEST_DEPTH, 0, 0.68 * trunk))
    points = [np.broadcast_to(np.array(point, float), (len(hip), 3)) for point in spine]
    for s in (1, -1):
        points += limb((0, s * SHOULDER, trunk - 0.01), (shoulder, shoulder + elbow), s * (0.12 + 0 * hip), arm)
        points += limb((0, s * HIP, 0), (hip, hip - knee), s * straddle, leg)
    points.append(np.broadcast_to(np.array((1.0, 0, 0)), (len(hip), 3)))  # the chest's direction turns along
    x, y, z = np.moveaxis(np.stack(points, 1), -1, 0)
    c, s = np.cos(spin_F)[:, None], np.sin(spin_F)[:, None]
    x, y = c * x - s * y, s * x + c * y
    c, s = np.cos(turn_F)[:, None], np.sin(turn_F)[:, None]
    x, z = c * x + s * z, c * z - s * x
    joints_FJ3, front_F3 = np.stack((x, y, z), -1)[:, :-1], np.stack((x, y, z), -1)[:, -1]
    # On the floor the lower ankle stands on the line, below the place of the pelvis in standing.
    stand_F = LEG_R - joints_FJ3[:, (9, 15), 2].min(1)
    joints_FJ3[..., 2] += ((1 - lift) * stand_F + lift * AIR)[:, None]
    joints_FJ3[..., 0] -= ((1 - lift) * joints_FJ3[:, (9, 15), 0].mean(1))[:, None]
    return joints_FJ3, front_F3


def _paint(
    frames_FHWC: Array, ends_FS22: Array, depth_FS: Array, alpha_FS: Array, radius_S: Array, colour_SC: Array
) -> None:
    """Paint thick sticks with round ends into `frames_FHWC`, the farthest of each frame first, edges antialiased.

    Stick by stick over all frames at once: only the box around each stick is computed, and only the pixels that it
    covers are blended. ends_FS22 holds (x, y) of both ends in px.
    """
    F, H, W, _ = frames_FHWC.shape
    flat = frames_FHWC.reshape(-1, 3)
    f = np.arange(F)
    order_FS = np.argsort(depth_FS, axis=1)
    for s_F in order_FS.T:
        ends_F22, r_F = ends_FS22[f, s_F], radius_S[s_F]
        low_F2 = np.floor(ends_F22.min(1) - r_F[:, None] - 0.5)
        side = int((ends_F22.max(1) - low_F2 + r_F[:, None] + 1.5).max()) + 1
        grid = np.arange(side, dtype=np.float32)
        x_FW, y_FH = ((low_F2 - ends_F22[:, 0])[:, i, None] + grid for i in (0, 1))
        d_F2 = ends_F22[:, 1] - ends_F22[:, 0]
        unit_F2 = d_F2 / np.maximum((d_F2**2).sum(1, keepdims=True), 1e-6)
        # distance to the segment: along_FHW in 0..1 is the nearest point's place on it
        along = (x_FW * unit_F2[:, :1])[:, None, :] + (y_FH * unit_F2[:, 1:])[:, :, None]
        np.clip(along, 0, 1, out=along)
        dx = along * -d_F2[:, 0, None, None]
        dx += x_FW[:, None, :]
        along *= -d_F2[:, 1, None, None]
        along += y_FH[:, :, None]
        dx *= dx
        along *= along
        dx += along
        hit = np.flatnonzero(dx < ((r_F + 0.5) ** 2)[:, None, None])
        in_f, in_y, in_x = hit // (side * side), hit // side % side, hit % side
        x, y = in_x + low_F2[in_f, 0].astype(np.int64), in_y + low_F2[in_f, 1].astype(np.int64)
        cover = np.minimum(r_F[in_f] + 0.5 - np.sqrt(dx.reshape(-1)[hit]), 1) * alpha_FS[f, s_F][in_f]
        inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) & (cover > 0)
        at, cover, in_f = ((in_f * H + y) * W + x)[inside], cover[inside, None], in_f[inside]
        under = flat[at].astype(np.float32)
        flat[at] = under + cover * (colour_SC[s_F[in_f]] - under) + 0.5


@lru_cache(maxsize=2)
def _noise_bank(values: int) -> Array:
    return np.random.default_rng(0).standard_normal(values, dtype=np.float32)


def clip(spec: Rehearsal, split: str, video_id: str) -> Clip:
    """Render one clip: a pure function of the spec and the id."""
    word, size, px = _word(spec, split, video_id), spec.size, spec.size / REFERENCE
    timeline = _timeline(video_id, word, PACES[spec.time])
    scene = _scene(video_id, LOOKS[spec.look], size)
    n, rng, F = scene.nuisance, _rng(video_id, "camera"), len(timeline.source_F)

    # the camera shakes and drifts, and with it all that is seen
    shake_F2 = n["jitter"] * rng.standard_normal((F, 2))
    shake_F2 += np.outer(np.linspace(-0.5, 0.5, F), (n["drift_x"], n["drift_y"]))
    margin = round(MARGIN * px)
    shake_F2 = np.clip(shake_F2 * px, 1 - margin, margin - 1)
    floor = FLOOR * size + n["place_y"] * px
    background, line = scene.background_HWC.copy(), round(2 * px) or 1
    top = margin + round(floor)
    ground = background[top : top + line]
    ground[:] = ground // 3 + (0 if ground.mean() > 96 else 80)
    window = np.lib.stride_tricks.sliding_window_view(background, (size, size), axis=(0, 1))
    shift_F2 = margin - np.round(shake_F2).astype(np.int64)
    frames = np.ascontiguousarray(window[shift_F2[:, 1], shift_F2[:, 0]].transpose(0, 2, 3, 1))

    joints_FJ3, front_F3 = _joints(timeline, word[-1], n)
    scale = n["scale"] / 48 * size
    cos, sin = math.cos(n["azimuth"]), math.sin(n["azimuth"])
    flip = -1 if n["mirror"] else 1
    across_FJ = flip * (joints_FJ3[..., 0] * cos + joints_FJ3[..., 1] * sin)
    depth_FJ = joints_FJ3[..., 0] * sin - joints_FJ3[..., 1] * cos  # towards the camera
    seen_FJ2 = np.stack((size / 2 + n["place_x"] * px + scale * across_FJ, floor - scale * joints_FJ3[..., 2]), -1)
    seen_FJ2 = (seen_FJ2 + shake_F2[:, None]).astype(np.float32)
    sticks = np.array(STICKS)
    alpha_FS = np.ones((F, len(sticks)), np.float32)
    alpha_FS[:, 2] = np.clip(4 * (front_F3[:, 0] * sin - front_F3[:, 1] * cos), 0, 1)  # the mark: from the front only
    colour_SC = scene.palette_PC[COLOUR_S]
    _paint(frames, seen_FJ2[:, sticks], depth_FJ[:, sticks].mean(2), alpha_FS, RADII_S * scale, colour_SC)

    if n["noise"]:
        values = size * size * 3
        bank = np.round(_noise_bank(NOISE_BANK + values) * n["noise"]).astype(np.int16)
        for frame, start in zip(frames.reshape(F, values), rng.integers(0, NOISE_BANK, F), strict=True):
            frame[:] = np.clip(frame + bank[start : start + values], 0, 255)
    return Clip(frames, timeline.truth, timeline.nuisance | n)


def encode_mp4(frames_FHWC: Array, fps: int) -> bytes:
    """H.264 (yuv420p) in MP4; the same frames give the same bytes (one thread, no time stamps)."""
    if frames_FHWC.ndim != 4 or frames_FHWC.dtype != np.uint8 or frames_FHWC.shape[-1] != 3:
        raise ValueError(f"expected uint8 frames (F,H,W,3), got {frames_FHWC.dtype} {frames_FHWC.shape}")
    _, H, W, _ = frames_FHWC.shape
    if H % 2 or W % 2:
        raise ValueError(f"expected even height and width for yuv420p, got {H}x{W}")
    buffer, to_yuv = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        options = {"crf": CRF, "preset": PRESET, "threads": "1", "g": str(2 * fps)}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = W, H, "yuv420p", 1
        for i, frame_HWC in enumerate(frames_FHWC):
            rgb = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            # for so small a frame more threads cost more than they do
            frame = to_yuv.reformat(rgb, format="yuv420p", interpolation="AREA", threads=1)
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def video(spec: Rehearsal, split: str, video_id: str) -> tuple[bytes, dict[str, list[Any]]]:
    """One clip as an MP4 file, and its truth as lists: phase_F (index into PHASES), element_F, progress_F."""
    made = clip(spec, split, video_id)
    return encode_mp4(made.frames, spec.fps), {name: value.tolist() for name, value in asdict(made.truth).items()}
