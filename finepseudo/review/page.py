"""review.html: one file that needs nothing but itself, to look at a queue and answer it.

Each clip is a strip: its T frames side by side as one JPEG, which the page shows frame by frame beside those of a
gallery clip that the alignment path puts there. Names of files and classes are other people's, so data is JSON that
cannot end its element, texts are set as texts, and a policy admits this page's own script alone.

Axes: T frames, H W pixels, C channels.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from finepseudo.errors import DecodeError
from finepseudo.report.look import Look
from finepseudo.review.queue import Queue
from finepseudo.run import Run

log = logging.getLogger("finepseudo")

SIDE, QUALITY = 128, 80  # of the pictures: pixels, and JPEG's quality; 24 of them are some 60 KiB
NEAR = 3  # gallery clips that a clip can be seen beside
FORM = 1  # of answers.json


def review_page(run: Run, queue: Queue) -> str:
    """The page of a queue; a clip that cannot be decoded is left out, and the log says so.

    Raises:
        ArtefactError: the run has not come to its end.
        DecodeError: none can be.
    """
    look, clips, strips = Look(run, SIDE), list[dict[str, Any]](), dict[int, str]()
    for clip in queue.clips:
        try:
            clips.append(_clip(look, clip, strips))
        except DecodeError as error:
            log.warning("%s is not on the page: %s", clip["clip"], error)
    if queue.clips and not clips:
        raise DecodeError(f"none of the {len(queue.clips)} clips of the queue can be decoded; the log says why")
    return page(queue, clips, strips)


def page(queue: Queue, clips: list[dict[str, Any]], strips: dict[int, str]) -> str:
    """The file, of clips as `_clip` has them and strips (JPEG in base64) by row of the manifest."""
    room = files("finepseudo.review")
    script, style = (room.joinpath(name).read_text() for name in ("page.js", "page.css"))
    data = {"form": FORM, "queue": queue.digest, "recipe": queue.recipe, "side": SIDE, "classes": queue.class_names}
    strict = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return strict.from_string(room.joinpath("page.html.jinja").read_text()).render(
        queue=queue,
        count=len(clips),
        script=script,
        style=style,
        policy="; ".join(
            (
                "default-src 'none'",
                "img-src data:",
                f"script-src '{_sha256(script)}'",
                f"style-src '{_sha256(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        data=inside_script({**data, "clips": clips, "strips": strips}),
    )


def inside_script(value: Any) -> str:
    """JSON that an HTML parser takes for nothing else, whatever its texts hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so without line separators of Unicode
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def strip(clip_THWC: np.ndarray) -> str:
    """Frames side by side as JPEG, in base64."""
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(list(clip_THWC), axis=1)).save(sink, format="JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(sink.getvalue()).decode()


def _clip(look: Look, clip: dict[str, Any], strips: dict[int, str]) -> dict[str, Any]:
    """What the page shows of a clip; strips that are not there yet are added."""
    emb_1TD, near, added = look.embed(clip["row"]), list[dict[str, Any]](), dict[int, str]()
    added[clip["row"]] = strip(look.shown(clip["row"]))
    for other in clip["near"][:NEAR]:
        if other["row"] not in strips:
            added[other["row"]] = strip(look.shown(other["row"]))
        near.append({**other, "path": look.path(emb_1TD, other["row"]).tolist()})
    strips |= added
    part = clip["part"]
    seconds = part["end_s"] - part["start_s"] if "end_s" in part else 0.0
    kept = ("clip", "row", "file", "label", "confidence", "accepted", "p_A", "p_E", "top", "score", "parts")
    return {**{name: clip[name] for name in kept}, "frames": emb_1TD.shape[1], "seconds": seconds, "near": near}


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
