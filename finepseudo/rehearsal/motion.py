"""The movement: a class word laid out in time, the truth of every frame, and the pose in it.

The gymnast crouches, jumps, performs the elements in the air and lands. Every element starts and ends in the same air
pose, so any order is possible.

Axes: F frames, K key poses, A pose angles (rad).
"""

import math
from dataclasses import dataclass

import numpy as np

from finepseudo.recipe import Rehearsal
from finepseudo.rehearsal.ids import letters, person_of, stream, word_of

PHASES = ("idle", "crouch", "T", "P", "W", "K", "U", "F", "rest", "B", "S")  # code = index; rest: idle after landing
DURATION = {"crouch": 1.0, "T": 1.6, "B": 1.6, "P": 1.8, "W": 1.5, "K": 1.4, "U": 1.2, "S": 1.2, "F": 1.2}
"""Shares of the active length."""
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
    "side": (0.00, 0.00, 1.55, 0.05, 0.06, 0.00, 0.0),
    "fold": (2.25, 1.30, 1.50, 0.10, 0.08, 1.60, 0.0),
}
# (progress, pose) of each phase; between two of them the pose moves by cosine easing
KEYS = {
    "idle": ((0.0, "stand"), (1.0, "stand")),
    "crouch": ((0.0, "stand"), (0.5, "squat"), (1.0, "air")),
    "T": ((0.0, "air"), (0.25, "tuck"), (0.75, "tuck"), (1.0, "air")),
    "P": ((0.0, "air"), (0.25, "pike"), (0.75, "pike"), (1.0, "air")),
    "W": ((0.0, "air"), (0.25, "twist"), (0.75, "twist"), (1.0, "air")),
    "K": ((0.0, "air"), (0.25, "straddle"), (0.75, "straddle"), (1.0, "air")),
    "U": ((0.0, "air"), (0.5, "squat"), (1.0, "up")),
    "S": ((0.0, "air"), (0.5, "squat"), (1.0, "side")),
    "F": ((0.0, "air"), (0.5, "squat"), (1.0, "fold")),
}
KEYS["B"] = KEYS["T"]  # turned the other way
OWN_TEMPO = 0.3  # of a clip, where its person has one: share of the active length that the clip draws itself
TURNS = {"T": 1, "P": 1, "B": -1}  # somersaults forward


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


@dataclass(frozen=True)
class Truth:
    """What happens in each frame, exactly."""

    phase_F: np.ndarray  # int64, index into PHASES
    element_F: np.ndarray  # int64, place in the class word (landing included), -1 for idle, crouch and rest
    progress_F: np.ndarray  # float64 in 0..1, how far the phase has gone, warp included


@dataclass(frozen=True)
class Timeline:
    """One clip's truth, and the time nuisance in it."""

    truth: Truth
    landing: str  # phase in whose last pose the gymnast rests
    source_F: np.ndarray  # int64, the frame of the undisturbed clip that each frame shows
    nuisance: dict[str, float]


def truth(spec: Rehearsal, split: str, video_id: str) -> Truth:
    """The clip's exact truth, without drawing it."""
    return make_timeline(spec, split, video_id).truth


def through_action(truth: Truth) -> np.ndarray:
    """Progress through the whole action, 0..1, of each frame: 0 before the crouch, 1 after the landing.

    Crouch, elements and landing count the same, however long each takes: (parts done + progress in this one) / parts.
    """
    part_F, parts = truth.element_F + 1, truth.element_F.max() + 2
    progress_F = (part_F + truth.progress_F) / parts
    progress_F[truth.phase_F == PHASES.index("idle")] = 0
    progress_F[truth.phase_F == PHASES.index("rest")] = 1
    return progress_F


def make_timeline(spec: Rehearsal, split: str, video_id: str) -> Timeline:
    """Draw the clip's time nuisance and lay the word out in time."""
    pace, parts = PACES[spec.time], ("crouch", *letters(word_of(spec, split, video_id)))
    rng = stream(video_id, "time")
    active, person = int(rng.integers(pace.active[0], pace.active[1] + 1)), person_of(spec, split, video_id)
    tempo = _tempo(person, pace) if person else {}
    active = round(OWN_TEMPO * active + (1 - OWN_TEMPO) * tempo.get("active", active))
    before, after = (int(n) for n in rng.integers(0, pace.idle + 1, size=2))
    total = before + active + after
    drop_rate = rng.uniform(0, pace.drop)
    dropped = int(rng.binomial(total, drop_rate))
    frozen = int(rng.integers(1, 5)) if rng.random() < pace.freeze else 0

    rng = stream(video_id, "parts")  # a stream of its own: its length depends on the word
    # 2.5 sd: beyond that a part of level 2 could fall between two frames
    stretch, warp = np.exp(np.clip(rng.standard_normal((len(parts), 2)), -2.5, 2.5) * (pace.stretch_sd, pace.warp_sd)).T
    stretch *= np.array([tempo.get(part, 1.0) for part in parts])
    share = np.array([DURATION[part] for part in parts]) * stretch
    edges = np.concatenate(([0.0], np.cumsum(share / share.sum()))) * active

    time_F = np.arange(total) - before + 0.5
    part_F = np.clip(np.searchsorted(edges, time_F, side="right") - 1, 0, len(parts) - 1)
    start_F, length_F = edges[part_F], np.diff(edges)[part_F]
    progress_F = np.clip((time_F - start_F) / length_F, 0, 1) ** warp[part_F]
    phase_F = np.array([PHASES.index(part) for part in parts])[part_F]
    element_F = part_F - 1
    for idle_F, name in ((time_F < 0, "idle"), (time_F > active, "rest")):
        phase_F[idle_F], element_F[idle_F] = PHASES.index(name), -1
        progress_F[idle_F] = (np.arange(idle_F.sum()) + 0.5) / max(idle_F.sum(), 1)

    # As many frames are dropped for every word; which, depends on it only so far that no part's middle frame goes.
    rng = stream(video_id, "frames")
    order_F = rng.random(total)
    order_F[np.clip(np.round(before + (edges[:-1] + edges[1:]) / 2 - 0.5).astype(int), 0, total - 1)] = 2
    kept = np.sort(np.argsort(order_F, kind="stable")[dropped:])
    held = int(rng.integers(len(kept)))
    source_F = np.concatenate((kept[: held + 1], np.full(frozen, kept[held]), kept[held + 1 :]))

    nuisance = {"length": len(source_F), "active": active, "idle_before": before, "idle_after": after}
    nuisance |= {"drop_rate": drop_rate, "dropped": dropped, "frozen": frozen, "frozen_at": held / len(kept)}
    for name, i in (("crouch", 0), ("first", 1), ("last", -1)):
        nuisance |= {f"stretch_{name}": stretch[i], f"warp_{name}": warp[i]}
    shown = Truth(phase_F[source_F], element_F[source_F], progress_F[source_F])
    return Timeline(shown, parts[-1], source_F, {name: float(value) for name, value in nuisance.items()})


def _tempo(person: str, pace: Pace) -> dict[str, float]:
    """A person's active length, and how long they take for each part, relative to others."""
    rng = stream(person, "tempo")
    own = {"active": rng.uniform(*pace.active)}
    return own | {part: math.exp(pace.stretch_sd * rng.uniform(-1, 1)) for part in sorted(DURATION)}


def poses(timeline: Timeline) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pose of every frame, pose_FA, the angle of its somersault, turn_F, and that of its twist, spin_F."""
    phase_F, F = timeline.truth.phase_F, len(timeline.source_F)
    pose_FA, turn_F, spin_F = np.empty((F, 7)), np.zeros(F), np.zeros(F)
    for code in np.unique(phase_F):
        phase, in_phase_F = PHASES[code], phase_F == code
        progress = timeline.truth.progress_F[in_phase_F]
        pose_FA[in_phase_F] = _pose(progress, phase) if phase != "rest" else _pose(np.ones(1), timeline.landing)
        if phase in TURNS:
            turn_F[in_phase_F] = TURNS[phase] * 2 * np.pi * _ease(progress)
        elif phase == "W":
            spin_F[in_phase_F] = 2 * np.pi * _ease(progress)
    return pose_FA, turn_F, spin_F


def _pose(progress_F: np.ndarray, phase: str) -> np.ndarray:
    """pose_FA of one phase: cosine easing between its key poses."""
    knots = np.array([at for at, _ in KEYS[phase]])
    poses_KA = np.array([POSES[pose] for _, pose in KEYS[phase]])
    i_F = np.clip(np.searchsorted(knots, progress_F, side="right") - 1, 0, len(knots) - 2)
    blend_F = _ease((progress_F - knots[i_F]) / (knots[i_F + 1] - knots[i_F]))
    return poses_KA[i_F] + blend_F[:, None] * (poses_KA[i_F + 1] - poses_KA[i_F])


def _ease(x: np.ndarray) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(np.pi * x)
