"""What each answer of an expert bought: its clip's label before, and whose labels changed beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from finepseudo.data.answers import Answers, run_of
from finepseudo.data.manifest import UNKNOWN
from finepseudo.run import Run
from finepseudo.storage.tables import pc


def bought(run: Run) -> list[dict[str, Any]]:
    """One row an answered clip: its pseudo-label in the run that asked, the answer, and of the clips whose nearest
    gallery clip it is now, by the last round's labels, how many have another label than in that run's last round.

    Raises ArtefactError: the answers, or the labels of either run, are gone.
    """
    uri = run.recipe().split.answers
    if not uri:
        return []
    answers, asked = Answers.load(uri), Run.at(run_of(uri))
    table, names, manifest = run.labels(run.last_round()), run.class_names(), run.manifest()
    old, old_names = asked.labels(asked.last_round()), asked.class_names()
    clips = sorted(answers.label)
    row_Q, first_N = manifest.rows_of(clips), pc.list_element(table["near"], 0).to_numpy()
    there_N = np.isin(first_N, row_Q)
    beside = table.filter(there_N).select(["video_id", "label"])
    was_N = pc.take(old["label"], pc.index_in(beside["video_id"], old["video_id"])).fill_null(UNKNOWN).to_numpy()
    pairs = zip(was_N.tolist(), beside["label"].to_numpy().tolist(), strict=True)
    changed_N = np.array([was == UNKNOWN or old_names[was] != names[now] for was, now in pairs], bool)
    nearest_N = first_N[there_N]
    return [
        {
            "clip": clip,
            "label before": answers.before.get(clip, "-"),
            "answer": answers.label[clip],
            "nearest to it": int((nearest_N == row).sum()),
            "of these with another label now": int(changed_N[nearest_N == row].sum()),
        }
        for clip, row in zip(clips, row_Q.tolist(), strict=True)
    ]
