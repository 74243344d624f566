"""A queue as files: for this project's page and import, for Label Studio, and for a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from finepseudo.labels.tools import label_studio_choices, label_studio_prediction
from finepseudo.review.page import review_page
from finepseudo.review.queue import Queue
from finepseudo.run import Run
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, located

QUEUE, TASKS, CONFIG, TABLE, PAGE = "queue.json", "tasks.json", "label_config.xml", "queue.csv", "review.html"
KEPT = ("rank", "clip", "file", "label", "confidence", "knownness", "score")
COLUMNS = (*KEPT, "label_A", "label_E", "answer")


def export_queue(run: Run, queue: Queue, to: str) -> dict[str, str]:
    """Commit the queue to a folder; the address of each file, by its name.

    Raises:
        ArtefactError: the folder has another queue; or the run has not come to its end.
        DecodeError: none of the clips can be shown.
    """
    store, folder = located(to.rstrip("/"))

    def make() -> dict[str, bytes]:
        return {
            QUEUE: queue.to_bytes(),
            TASKS: json.dumps(label_studio_tasks(queue, run.data()), indent=1).encode(),
            CONFIG: label_studio_config(queue.class_names).encode(),
            TABLE: _csv(queue).encode(),
            PAGE: review_page(run, queue).encode(),
        }

    artefacts.ensure(store, folder, {**queue.lineage, "queue": queue.digest}, make)
    return {name: store.uri(f"{folder}/{name}") for name in (PAGE, QUEUE, TASKS, CONFIG, TABLE)}


def label_studio_tasks(queue: Queue, data: Store) -> list[dict[str, Any]]:
    """Tasks of Label Studio for `label_studio_config`, with p as prediction."""
    return [
        {
            "data": {"video": data.uri(clip["file"]), "clip": clip["clip"], "queue": queue.digest, **clip["part"]},
            "predictions": [
                label_studio_prediction(f"{queue.recipe} {queue.lineage['labels']}", clip["label"], clip["confidence"])
            ],
        }
        for clip in queue.clips
    ]


def label_studio_config(class_names: tuple[str, ...]) -> str:
    """The labelling interface of these tasks: a choice of the class, or the name of a new one."""
    return (
        '<View>\n  <Video name="video" value="$video"/>\n'
        f'  <Choices name="label" toName="video" choice="single">\n{label_studio_choices(class_names)}\n  </Choices>\n'
        '  <TextArea name="new" toName="video" maxSubmissions="1" placeholder="a new class"/>\n</View>\n'
    )


def _csv(queue: Queue) -> str:
    """For people; `answer` is for theirs, and another table, of clip and label, goes back."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    for clip in queue.clips:
        writer.writerow([*(clip[name] for name in KEPT), clip["p_A"]["label"], clip["p_E"]["label"], ""])
    return sink.getvalue()
