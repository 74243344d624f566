"""The way back: what an expert hands in, checked against the run and committed in it; nothing is imported by half."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from finepseudo.data.answers import FOLDER, PART, Answers
from finepseudo.errors import ManifestError
from finepseudo.fields import nearest
from finepseudo.recipe import digest
from finepseudo.recipes.options import options
from finepseudo.run import Run
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.storage.store import read_uri
from finepseudo.storage.tables import pc

LABELS, OTHERS = ("accept", "rename", "new"), ("reject", "skip")  # answers that have a label, and those without
YES, NO = ("1", "true", "yes", "x"), ("", "0", "false", "no")
LONGEST = 200  # characters of a class


@dataclass(frozen=True)
class Answer:
    """One answer as somebody's file has it."""

    where: str  # row or entry of the file, for errors
    clip: str
    label: str = ""  # empty: rejected
    new: bool = False


@dataclass(frozen=True)
class Imported:
    """Committed answers."""

    uri: str
    answers: Answers
    added: int  # labels of this file; the others were answered before


def import_answers(run: Run, file: str) -> Imported:
    """Commit `answers/<digest>` in the run: the answers of a file, and those that the run itself has learned from.

    Raises ManifestError: a file of no known form; an unknown clip; two answers for one clip that contradict each other;
        a label that is no class and not called new. File, row, what was expected and what was found are named.
    """
    try:
        body = read_uri(file)
    except (FileNotFoundError, IsADirectoryError):
        raise ManifestError(f"{file}: expected a file of answers, got none") from None
    queue, given = read_answers(body, file)
    recipe, names = run.recipe(), run.class_names()
    before = Answers.load(recipe.split.answers) if recipe.split.answers else Answers({})
    label, rejected, new = _checked(run, list(given), names, file)
    if not label and not rejected:
        raise ManifestError(f"{file}: expected at least one answer, got none that is not skipped")
    every = Answers(
        label={**before.label, **label},
        new=tuple(sorted({*before.new, *new})),
        before=_labels_now(run, [*label, *rejected]),
        rejected=tuple(sorted(rejected)),
    )
    lineage = {"recipe": digest(recipe), "queue": queue, "file": hashlib.sha256(body).hexdigest()}
    lineage |= {"before": fingerprint(before)} if before.label else {}
    folder = f"{FOLDER}/{fingerprint([lineage, every])}"
    artefacts.ensure(run.store, folder, lineage, lambda: {PART: every.to_bytes()})
    return Imported(run.store.uri(folder), every, len(label))


def sentence(done: Imported, run: Run) -> str:
    """What was imported, and the command that learns from it."""
    found = done.answers
    parts = [f"{done.added} answered clips", f"{len(found.rejected)} rejected"]
    parts += [f"{len(found.label)} with those answered before"] if len(found.label) > done.added else []
    parts += [f"new classes: {', '.join(found.new)}"] if found.new else []
    recipe, *others = options(run.recipe(), leave=("split.answers",))
    fixed = ["--run", "NEW", "--base", run.base.uri(), "--split.answers", done.uri]
    command = shlex.join(["python", "jobs/run.py", recipe, *fixed, *others])
    return f"{done.uri}: {', '.join(parts)}\nto learn from them, with --scale of your own:\n{command}"


def read_answers(body: bytes, file: str) -> tuple[str, Iterator[Answer]]:
    """Digest of the queue that was answered, where the file knows it, and the answers that are not skipped.

    Forms: `answers.json` of the page; a table with `clip` and `label`, and `new` where there is a new class; the JSON
    that Label Studio exports. What is wrong in an entry is said when it is come to.
    Raises ManifestError: none of these.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file}: expected text in UTF-8, got {error}") from None
    if not text.lstrip().startswith(("{", "[")):
        return "", _of_table(text, file)
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{file}: expected JSON, got {error}") from None
    if isinstance(found, list):
        tasks = cast(list[Any], found)
        queues = {str(_data(task).get("queue", "")) for task in tasks}
        return queues.pop() if len(queues) == 1 else "", _of_label_studio(tasks, file)
    if not isinstance(found.get("answers"), list):
        raise ManifestError(f"{file}: expected a list under 'answers', as review.html writes it, got {_shown(found)}")
    return str(found.get("queue", "")), _of_page(found["answers"], file)


def _of_page(entries: list[Any], file: str) -> Iterator[Answer]:
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number}"
        kind = entry.get("answer") if isinstance(entry, dict) else None
        if kind not in (*LABELS, *OTHERS):
            said = f"expected one of {', '.join((*LABELS, *OTHERS))}, got {_shown(kind)}"
            raise ManifestError(f"{file}, {where}, field answer: {said}")
        if kind == "skip":
            continue
        new = entry.get("new", False)
        if not isinstance(new, bool):
            raise ManifestError(f"{file}, {where}, field new: expected true or false, got {_shown(new)}")
        label = _text(entry, "label", file, where) if kind in LABELS else ""
        yield Answer(where, _text(entry, "clip", file, where), label, new)


def _of_table(text: str, file: str) -> Iterator[Answer]:
    """A row without a label is no answer: a queue may come back with half of it done."""
    rows = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
    columns = rows.fieldnames or ()
    if not {"clip", "label"} <= {*columns}:
        raise ManifestError(f"{file}, row 1: expected a header with clip and label, got {_shown(', '.join(columns))}")
    for row in rows:
        where = f"row {rows.line_num}"
        new = (row.get("new") or "").strip().lower()
        if new not in (*YES, *NO):
            raise ManifestError(f"{file}, {where}, field new: expected true, false or nothing, got {_shown(new)}")
        if (row["label"] or "").strip():
            yield Answer(where, _text(row, "clip", file, where), row["label"].strip(), new in YES)


def _of_label_studio(tasks: list[Any], file: str) -> Iterator[Answer]:
    """Choices called `label`, or the text `new`; annotations that were cancelled are skipped ones."""
    for number, task in enumerate(tasks, start=1):
        annotations: Any = task.get("annotations") if isinstance(task, dict) else None
        if not isinstance(annotations, list):
            raise ManifestError(
                f"{file}, entry {number}, field annotations: expected Label Studio's JSON (not JSON-MIN), got "
                f"{_shown(annotations)}"
            )
        for annotation in cast(list[Any], annotations):
            if annotation.get("was_cancelled"):
                continue
            where, clip = f"entry {number}", _text(_data(task), "clip", file, f"entry {number}, data")
            found = {one.get("from_name"): one.get("value") or {} for one in annotation.get("result") or []}
            if texts := found.get("new", {}).get("text"):
                yield Answer(where, clip, texts[0] if isinstance(texts, list) else texts, new=True)
            elif choices := found.get("label", {}).get("choices"):
                yield Answer(where, clip, choices[0])


def _checked(
    run: Run, given: list[Answer], names: tuple[str, ...], file: str
) -> tuple[dict[str, str], set[str], set[str]]:
    """Labels by clip, clips whose label is rejected, new classes."""
    manifest, first = run.manifest(), dict[str, Answer]()
    ids: list[Any] = manifest.clips["video_id"].to_pylist()
    known = dict(zip(ids, range(len(ids)), strict=True))
    train = {*manifest.rows("train").tolist()}
    for one in given:
        if one.clip not in known:
            near = nearest(one.clip, known) if len(known) < 10_000 else ""
            raise ManifestError(f"{file}, {one.where}, field clip: expected a clip of the run, got {one.clip!r}{near}")
        if known[one.clip] not in train:
            why = pc.coalesce(manifest.clips["reason"], "")[known[one.clip]].as_py() or "it is to be tested on"
            raise ManifestError(
                f"{file}, {one.where}, field clip: expected a training clip, got {one.clip!r}: {why}; leave it out"
            )
        if one.new and (one.label != one.label.strip() or not one.label.isprintable() or len(one.label) > LONGEST):
            raise ManifestError(
                f"{file}, {one.where}, field label: expected a name of at most {LONGEST} printed characters for a new "
                f"class, got {_shown(one.label)}"
            )
        if one.label and not one.new and one.label not in names and not _called_new(one.label, given):
            raise ManifestError(
                f"{file}, {one.where}, field label: expected a class of the vocabulary, got {one.label!r}"
                f"{nearest(one.label, names)}; if it is a new class, say so: new = true"
            )
        there = first.setdefault(one.clip, one)
        if there.label != one.label:
            raise ManifestError(
                f"{file}, {one.where}, field label: expected {there.label or 'a rejection'!r} for {one.clip!r} as in "
                f"{there.where}, got {one.label or 'a rejection'!r}; leave one of them out"
            )
    labels = {clip: one.label for clip, one in first.items() if one.label}
    new = {one.label for one in given if one.new} - {*names}
    return labels, {clip for clip, one in first.items() if not one.label}, new


def _called_new(label: str, given: list[Answer]) -> bool:
    """Whether another answer of the file introduces the class."""
    return any(one.new and one.label == label for one in given)


def _labels_now(run: Run, clips: list[str]) -> dict[str, str]:
    """The label that the last round gave each of these that it labelled."""
    table, names = run.labels(run.last_round()).select(["video_id", "label"]), run.class_names()
    asked = table.filter(pc.is_in(table["video_id"], pa.array(clips, pa.string())))
    return {row["video_id"]: names[row["label"]] for row in asked.to_pylist()}


def _data(task: Any) -> Mapping[str, Any]:
    found = task.get("data") if isinstance(task, dict) else None
    return cast(Mapping[str, Any], found) if isinstance(found, dict) else {}


def _text(entry: Mapping[str, Any], field: str, file: str, where: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ManifestError(f"{file}, {where}, field {field}: expected a text, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
