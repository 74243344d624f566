"""The files of the data set: each clip as H.264 in MP4, and annotations in the form of Diving48."""

import io
import json
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from finepseudo.recipe import Rehearsal
from finepseudo.rehearsal.ids import SPLITS, video_ids
from finepseudo.rehearsal.motion import truth
from finepseudo.rehearsal.render import clip

CRF = "23"  # constant rate factor of H.264, 0..51, lower is better
PRESET = "superfast"


def video(spec: Rehearsal, split: str, video_id: str) -> tuple[bytes, dict[str, list[Any]]]:
    """One clip as an MP4 file, and its truth as lists: phase_F (index into PHASES), element_F, progress_F."""
    rendered = clip(spec, split, video_id)
    lists = {name: value.tolist() for name, value in asdict(rendered.truth).items()}
    return encode_mp4(rendered.frames, spec.fps), lists


def encode_mp4(frames_FHWC: np.ndarray, fps: int) -> bytes:
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


def annotations(spec: Rehearsal) -> dict[str, bytes]:
    """The bytes of train.json, test.json and vocab.json by name. `end_frame` is exclusive."""
    files: dict[str, Any] = {"vocab.json": list(spec.words)}
    for split in SPLITS:
        files[f"{split}.json"] = [
            {"vid_name": name, "label": label, "start_frame": 0, "end_frame": len(truth(spec, split, name).phase_F)}
            for name, label in video_ids(spec, split)
        ]
    return {name: json.dumps(rows, indent=0).encode() for name, rows in files.items()}
