"""The gymnast's body: where its joints are in space, and the thick sticks that show it in the picture.

Axes: F frames, J joints, S limbs ("sticks"), H height, W width, C colour.
Body axes: x forward, y to the gymnast's left, z up. Lengths of the body are in standing heights, angles in radians.
"""

import numpy as np

from finepseudo.rehearsal.motion import Timeline, poses

TRUNK, NECK, THIGH, SHANK, UPPER_ARM, FOREARM = 0.28, 0.12, 0.25, 0.25, 0.17, 0.16  # lengths
SHOULDER, HIP, CHEST_DEPTH = 0.085, 0.045, 0.075  # half widths; distance of the chest mark from the spine
LEG_R, ARM_R, TRUNK_R, HEAD_R, MARK_R = 0.042, 0.032, 0.070, 0.072, 0.050  # radii
AIR = 0.69  # height of the pelvis above the floor in the air; 0.52 when standing
SWAY = 0.05  # amplitude of the swaying of a gymnast on the floor, rad

# joints: 0 pelvis, 1 chest, 2 head, 3 mark, then shoulder, elbow, wrist, hip, knee, ankle: 4..9 left, 10..15 right
ANKLES = (9, 15)
STICKS_S2 = np.array(((0, 1), (2, 2), (3, 3), (4, 5), (5, 6), (7, 8), (8, 9), (10, 11), (11, 12), (13, 14), (14, 15)))
MARK_S = 2  # place of the chest mark among the sticks
RADII_S = np.array((TRUNK_R, HEAD_R, MARK_R, *(2 * (ARM_R, ARM_R, LEG_R, LEG_R))), np.float32)
COLOUR_S = np.array((2, 3, 4, 0, 0, 0, 0, 1, 1, 1, 1))  # rows of the palette: left, right, trunk, head, mark


def joints(timeline: Timeline, body: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """joints_FJ3, pelvis on x = y = 0 and the floor on z = 0, and the direction of the chest front_F3."""
    pose_FA, turn_F, spin_F = poses(timeline)
    hip, knee, shoulder, elbow, straddle, lean, lift = pose_FA.T
    sway_F = SWAY * (1 - lift) * np.sin(0.22 * timeline.source_F + body["sway"])
    turn_F = turn_F + lean + sway_F

    arm, leg = body["arm"] * np.array((UPPER_ARM, FOREARM)), body["leg"] * np.array((THIGH, SHANK))
    trunk = TRUNK * body["trunk"]
    spine = ((0, 0, 0), (0, 0, trunk), (0, 0, trunk + NECK), (CHEST_DEPTH, 0, 0.68 * trunk))
    points = [np.broadcast_to(np.array(point, float), (len(hip), 3)) for point in spine]
    for side in (1, -1):
        out = side * (0.12 + 0 * hip)
        points += _limb((0, side * SHOULDER, trunk - 0.01), (shoulder, shoulder + elbow), out, arm)
        points += _limb((0, side * HIP, 0), (hip, hip - knee), side * straddle, leg)
    points.append(np.broadcast_to(np.array((1.0, 0, 0)), (len(hip), 3)))  # the chest's direction turns along
    x, y, z = np.moveaxis(np.stack(points, 1), -1, 0)
    cos, sin = np.cos(spin_F)[:, None], np.sin(spin_F)[:, None]
    x, y = cos * x - sin * y, sin * x + cos * y
    cos, sin = np.cos(turn_F)[:, None], np.sin(turn_F)[:, None]
    x, z = cos * x + sin * z, cos * z - sin * x
    points_FJ3 = np.stack((x, y, z), -1)
    joints_FJ3, front_F3 = points_FJ3[:, :-1], points_FJ3[:, -1]
    # On the floor the lower ankle stands on the line, below the place of the pelvis in standing.
    stand_F = LEG_R - joints_FJ3[:, ANKLES, 2].min(1)
    joints_FJ3[..., 2] += ((1 - lift) * stand_F + lift * AIR)[:, None]
    joints_FJ3[..., 0] -= ((1 - lift) * joints_FJ3[:, ANKLES, 0].mean(1))[:, None]
    return joints_FJ3, front_F3


def _limb(
    root: tuple[float, float, float], bends: tuple[np.ndarray, np.ndarray], out: np.ndarray, lengths: np.ndarray
) -> list[np.ndarray]:
    """Three joints of a limb that hangs down, is bent forward by `bends` and led outwards by `out`."""
    points = [np.broadcast_to(root, (len(out), 3))]
    for bend, length in zip(bends, lengths, strict=True):
        step = (np.cos(out) * np.sin(bend), np.sin(out), -np.cos(out) * np.cos(bend))
        points.append(points[-1] + length * np.stack(step, -1))
    return points


def paint(
    frames_FHWC: np.ndarray, seen_FJ3: np.ndarray, mark_F: np.ndarray, scale: float, palette_PC: np.ndarray
) -> None:
    """Paint the sticks into `frames_FHWC`, the farthest of each frame first, with antialiased edges.

    Stick by stick over all frames at once: only the box around each stick is computed, and only the pixels that it
    covers are blended. seen_FJ3 holds px from the left, px from the top, and nearness; `scale` is px per height;
    mark_F is the opacity of the chest mark.
    """
    F, H, W, _ = frames_FHWC.shape
    ends_FS22, radius_S = seen_FJ3[:, STICKS_S2, :2].astype(np.float32), RADII_S * scale
    depth_FS, colour_SC = seen_FJ3[:, STICKS_S2, 2].mean(2), palette_PC[COLOUR_S]
    alpha_FS = np.ones(depth_FS.shape, np.float32)
    alpha_FS[:, MARK_S] = mark_F
    flat = frames_FHWC.reshape(-1, 3)
    f = np.arange(F)
    for s_F in np.argsort(depth_FS, axis=1).T:
        ends_F22, r_F = ends_FS22[f, s_F], radius_S[s_F]
        low_F2 = np.floor(ends_F22.min(1) - r_F[:, None] - 0.5)
        side = int((ends_F22.max(1) - low_F2 + r_F[:, None] + 1.5).max()) + 1
        grid = np.arange(side, dtype=np.float32)
        x_FW, y_FH = ((low_F2 - ends_F22[:, 0])[:, i, None] + grid for i in (0, 1))
        d_F2 = ends_F22[:, 1] - ends_F22[:, 0]
        unit_F2 = d_F2 / np.maximum((d_F2**2).sum(1, keepdims=True), 1e-6)
        # in 0..1, the place on the stick of the point nearest to each pixel
        along_FHW = np.clip((x_FW * unit_F2[:, :1])[:, None, :] + (y_FH * unit_F2[:, 1:])[:, :, None], 0, 1)
        dx_FHW = x_FW[:, None, :] - along_FHW * d_F2[:, 0, None, None]
        dy_FHW = y_FH[:, :, None] - along_FHW * d_F2[:, 1, None, None]
        square_FHW = dx_FHW**2 + dy_FHW**2
        hit = np.flatnonzero(square_FHW < ((r_F + 0.5) ** 2)[:, None, None])
        in_f, in_y, in_x = hit // (side * side), hit // side % side, hit % side
        x, y = in_x + low_F2[in_f, 0].astype(np.int64), in_y + low_F2[in_f, 1].astype(np.int64)
        cover = np.minimum(r_F[in_f] + 0.5 - np.sqrt(square_FHW.reshape(-1)[hit]), 1) * alpha_FS[f, s_F][in_f]
        inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) & (cover > 0)
        at, cover, in_f = ((in_f * H + y) * W + x)[inside], cover[inside, None], in_f[inside]
        under = flat[at].astype(np.float32)
        flat[at] = under + cover * (colour_SC[s_F[in_f]] - under) + 0.5
