"""What the two teachers of TimeBalance make of D_u: soft targets of f_E, as samples of a plan.

Axes: N videos, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from finepseudo.align.contrast import balanced
from finepseudo.data.plan import samples
from finepseudo.train.predict import Pass, Scores, logits, similarity
from finepseudo.train.pseudo_labels import most_likely


def teachers(invariant: str, distinctive: str, clips: int) -> Pass:
    """Both on `clips` clips of every video, by the URIs of their snapshots; similarity by the distinctive one's."""
    return Pass(video={"f_I": invariant, "f_D": distinctive}, similar={"f_D": distinctive}, clips=clips)


def teacher_targets(scores: Scores) -> Iterator[pa.Table]:
    """Of all videos, some thousand at a time; the mass of what `most_likely` leaves out is even over those classes."""
    for batch in scores.batches():
        p_I_NK, p_D_NK = (logits(batch, name).softmax(1) for name in ("f_I", "f_D"))
        top, top_p = most_likely(balanced(p_I_NK, p_D_NK, similarity(batch, "f_D")).numpy())
        yield samples(batch["clip"], top[:, 0], top=list(top), top_p=list(top_p))
