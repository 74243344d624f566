"""What the two teachers of TimeBalance make of D_u: soft targets of f_E, as samples of a plan.

Axes: N videos, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from finepseudo.align.contrast import balanced
from finepseudo.data.plan import samples
from finepseudo.train.predict import Pass, Scores, logits, similarity
from finepseudo.train.pseudo_labels import TOP


def teachers(invariant: str, distinctive: str, clips: int) -> Pass:
    """Both on `clips` clips of every video, by the URIs of their snapshots; similarity by the distinctive one's."""
    return Pass(video={"f_I": invariant, "f_D": distinctive}, similar={"f_D": distinctive}, clips=clips)


def teacher_targets(scores: Scores) -> Iterator[pa.Table]:
    """Of all videos, some thousand at a time; TOP classes are kept, the rest of the mass is even over the others."""
    for batch in scores.batches():
        p_I_NK, p_D_NK = (logits(batch, name).softmax(1) for name in ("f_I", "f_D"))
        p_NK = balanced(p_I_NK, p_D_NK, similarity(batch, "f_D")).numpy()
        top = np.argsort(-p_NK, axis=1, kind="stable")[:, :TOP]
        kept = {"top": list(top), "top_p": list(np.take_along_axis(p_NK, top, 1))}
        yield samples(batch["clip"], top[:, 0], **kept)
