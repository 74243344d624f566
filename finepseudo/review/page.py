"""review.html: one file that needs nothing but itself, to look at a queue and answer it.

Each clip is a strip: its T frames side by side as one JPEG, which the page shows frame by frame beside those of a
gallery clip that the alignment path puts there (report/player.js).
"""

from __future__ import annotations

import logging
from typing import Any

from finepseudo.errors import DecodeError
from finepseudo.report.document import document, inside_script
from finepseudo.report.look import Look, strip
from finepseudo.review.queue import Queue
from finepseudo.run import Run

log = logging.getLogger("finepseudo")

NEAR = 3  # gallery clips that a clip can be seen beside
FORM = 1  # of answers.json


def review_page(run: Run, queue: Queue) -> str:
    """The page of a queue; a clip that cannot be decoded is left out, and the log says so.

    Raises:
        ArtefactError: the run has not come to its end.
        DecodeError: none can be.
    """
    look, clips, strips = Look(run), list[dict[str, Any]](), dict[int, str]()
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
    data = {"form": FORM, "queue": queue.digest, "recipe": queue.recipe, "classes": queue.class_names}
    return document(
        "review/page.html.jinja",
        scripts=("report/player.js", "review/page.js"),
        styles=("report/theme.css", "review/page.css"),
        queue=queue,
        count=len(clips),
        data=inside_script({**data, "clips": clips, "strips": strips}),
    )


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
