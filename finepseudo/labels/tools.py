"""Forms of programs in which people look at labels: Label Studio, FiftyOne, cleanlab. Of the clips that have a label.

None of them is imported: their forms are what their documentation says. Axes: N clips, K classes.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from finepseudo.labels.forms import rows, said
from finepseudo.labels.outcome import Outcome
from finepseudo.storage import tables

log = logging.getLogger("finepseudo")

TASKS = 50_000
"""Of a file for Label Studio: one import takes 200 MB and 250,000 tasks, and a project is quick up to 100,000."""
LOCAL_FILES = "/data/local-files/?d="  # below Label Studio's LOCAL_FILES_DOCUMENT_ROOT


def write_label_studio(outcome: Outcome, folder: Path) -> None:
    """`tasks-<n>.json`, each an import, the label a prediction; `labeling.xml`, the labelling interface they ask for.

    Videos on a disk are named as local files, which Label Studio serves itself, others by their URI.
    """
    choices = label_studio_choices(outcome.classes)
    text = f"""<View>
  <Video name="video" value="$video"/>
  <Text name="part" value="$part"/>
  <Choices name="label" toName="video" choice="single">
{choices}
  </Choices>
</View>
"""
    (folder / "labeling.xml").write_text(text, encoding="utf-8")
    tasks_of, number = rows(outcome.labels()), 0
    while (first := next(tasks_of, None)) is not None:
        tasks = (_task(outcome, row) for row in chain([first], islice(tasks_of, TASKS - 1)))
        _write_array(folder / f"tasks-{number:05d}.json", tasks)
        number += 1
    root = outcome.data
    if root.on_disk(""):
        log.info(
            "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=%s, and add %s to the project as storage of local files",
            PurePosixPath(root.uri()).parent,
            root.uri(),
        )


def _task(outcome: Outcome, row: dict[str, Any]) -> dict[str, Any]:
    root, file = outcome.data, row["file"]
    kept = ("video_id", "file", "start_s", "end_s", "confidence", "accepted", "known", "knownness")
    nets = ("label_E", "confidence_E", "label_A", "confidence_A")
    near = ", ".join(f"{of['video_id']} ({of['label']}, {of['alignability']:.2f})" for of in row["near"])
    folder = PurePosixPath(root.uri()).name
    local = f"{LOCAL_FILES}{quote(f'{folder}/{file}')}"
    data = {"video": local if root.on_disk(file) else root.uri(file), "part": _part(row)}
    return {
        "data": {**data, **{name: row[name] for name in (*kept, *nets)}, "near": near},
        "predictions": [label_studio_prediction(outcome.last, row["label"], row["confidence"])],
    }


def label_studio_prediction(model: str, label: str, score: float) -> dict[str, Any]:
    """A label as a prediction of the control `label` for the object `video`."""
    result = {"from_name": "label", "to_name": "video", "type": "choices", "value": {"choices": [label]}}
    return {"model_version": model, "score": score, "result": [result]}


def label_studio_choices(class_names: Sequence[str]) -> str:
    """Lines of a labelling interface, one a class."""
    return "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in class_names)


def _part(row: dict[str, Any]) -> str:
    """For people."""
    if row["first_frame"] is None:
        return "whole file"
    if row["start_s"] is None:
        return f"frames {row['first_frame']} to {row['first_frame'] + row['num_frames']}"
    return f"{row['start_s']:g} to {row['end_s']:g} s"


def write_fiftyone(outcome: Outcome, folder: Path) -> None:
    """`data.json` and `labels.json` of a FiftyOneTemporalDetectionDataset: a sample a clip, its file where it lies.

    The label is a detection over the clip's frames, from 1 on and inclusive; what else is known, its attributes.
    """
    root = outcome.data
    if not root.on_disk(""):
        log.warning(
            "FiftyOne opens files of a disk: mount or copy %s to the folder in which data.json lies", root.uri()
        )

    def file(row: dict[str, Any]) -> tuple[str, Any]:
        # Of a key, FiftyOne drops what looks like an ending, so each has one.
        ending = PurePosixPath(row["file"]).suffix or ".mp4"
        return f"{row['video_id']}{ending}", root.on_disk(row["file"]) or row["file"]

    def detections(row: dict[str, Any]) -> tuple[str, Any]:
        first = (row["first_frame"] or 0) + 1
        names = ("accepted", "label_E", "confidence_E", "label_A", "confidence_A", "known", "knownness", "top", "near")
        found = {
            "label": row["label"],
            "support": [first, first + row["num_frames"] - 1],
            "confidence": row["confidence"],
            "attributes": {name: row[name] for name in names if row[name] is not None},
        }
        return row["video_id"], [found]

    with (folder / "data.json").open("w", encoding="utf-8") as sink:
        _write_object(sink.write, (file(row) for row in rows(outcome.labels())))
    with (folder / "labels.json").open("w", encoding="utf-8") as sink:
        sink.write(f'{{"classes": {said(list(outcome.classes))}, "labels": ')
        _write_object(sink.write, (detections(row) for row in rows(outcome.labels())))
        sink.write("}\n")


def write_cleanlab(outcome: Outcome, file: Path) -> None:
    """A .npz without pickles: ids, labels, labels_E, labels_A (N,), int64; pred_probs (N,K), float32; class_names (K,).

    Of p the likeliest classes are kept; the rest of its mass is even over the others, as in soft targets.
    """
    names: dict[Any, int] = {name: place for place, name in enumerate(outcome.classes)}
    N, K = outcome.labelled, len(names)

    def places(column: str) -> Iterator[np.ndarray]:
        for batch in outcome.labels():
            yield np.array([names[name] for name in batch[column].to_pylist()], np.int64)

    def probabilities() -> Iterator[np.ndarray]:
        for batch in outcome.labels():
            top: Any = batch["top"].combine_chunks()
            kept, length = top.flatten(), top.value_lengths().to_numpy()
            row_M = np.repeat(np.arange(len(top)), length)
            p_M = kept.field("p").to_numpy()
            left_N = np.maximum(0, 1 - np.bincount(row_M, p_M, len(top))) / np.maximum(1, K - length)
            p_NK = np.repeat(left_N.astype(np.float32)[:, None], K, 1)
            p_NK[row_M, [names[name] for name in kept.field("label").to_pylist()]] = p_M
            yield p_NK

    def ids(width: int) -> Iterator[np.ndarray]:
        for batch in outcome.labels():
            yield np.array(batch["video_id"].to_pylist(), f"<U{width}")

    longest = (tables.pc.max(tables.pc.utf8_length(batch["video_id"])).as_py() for batch in outcome.labels())
    width = max(longest, default=1)
    arrays: dict[str, tuple[Iterable[np.ndarray], tuple[int, ...], str]] = {
        "ids": (ids(width), (N,), f"<U{width}"),
        **{f"labels{of}": (places(f"label{of}"), (N,), "<i8") for of in ("", "_E", "_A")},
        "pred_probs": (probabilities(), (N, K), "<f4"),
        "class_names": ([np.array(outcome.classes)], (K,), np.array(outcome.classes).dtype.str),
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (parts, shape, kind) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as sink:
                header = {"descr": kind, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(sink, header)
                for part in parts:
                    sink.write(np.ascontiguousarray(part).tobytes())


def _write_array(file: Path, items: Iterable[Any]) -> None:
    with file.open("w", encoding="utf-8") as sink:
        for number, item in enumerate(items):
            sink.write(("[\n" if not number else ",\n") + said(item))
        sink.write("\n]\n")


def _write_object(write: Callable[[str], object], items: Iterable[tuple[str, Any]]) -> None:
    write("{")
    for number, (key, value) in enumerate(items):
        write((",\n" if number else "\n") + f"{said(key)}: {said(value)}")
    write("\n}")
