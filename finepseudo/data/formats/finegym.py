"""FineGym (Gym99, Gym288): elements cut out beforehand, or whole videos with the times of every element."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from finepseudo.data.formats.entries import Annotation, Source, check_id, shown

TIMES = "finegym_annotation_info_v1.1.json"
_ELEMENT = re.compile(r"(.+)_(E_(\d{6})_\d{6})_(A_(\d{4})_(\d{4}))")  # the video's own id may hold `_E_` too


def elements(source: Source) -> Iterator[Annotation]:
    """`<element id> <label>` on each line; `data.videos` makes a path of the whole id."""
    for annotation, _ in _read(source):
        yield annotation


def whole_videos(source: Source) -> Iterator[Annotation]:
    """The same lists, for videos that are not cut; `data.videos` makes a path of the video's id.

    The times, in seconds, are those of `finegym_annotation_info_v1.1.json` beside the list; an element runs from the
    start of its first stage to the end of its last one. Without times there, the whole seconds of its id are taken.
    """
    times = source.sibling(TIMES)
    body = times.json()
    for annotation, found in _read(source):
        video, event, first, element, start, end = found.groups()
        annotation.name, annotation.seconds = video, True
        try:
            entry = body[video][event]
            (offset, _), stages = entry["timestamps"][0], entry["segments"][element]["timestamps"]
            annotation.start, annotation.end = offset + stages[0][0], offset + stages[-1][1]
        except (KeyError, IndexError, TypeError, ValueError):
            source.notes[f"{{}} elements have no times in {TIMES}: the whole seconds of their ids are taken"] += 1
            annotation.start, annotation.end = float(int(first) + int(start)), float(int(first) + int(end) + 1)
        yield annotation


def _read(source: Source) -> Iterator[tuple[Annotation, re.Match[str]]]:
    for where, text in source.texts():
        name, _, label = text.partition(" ")
        found = _ELEMENT.fullmatch(name)
        if not found:
            raise source.fault(where, f": expected <video>_E_<6 digits>_<6>_A_<4>_<4> and a label, got {shown(text)}")
        check_id(name, where, "element", source)
        yield Annotation(name, label.strip(), "", where), found


def categories(lines: list[str]) -> list[Any] | None:
    """Names of `Clabel:   0; set:  1; Glabel:   1; (VT) round-off, ...`, by Clabel; None where a line is not so.

    Some names stand in two sets, such as the same salto in flight and as a dismount: those are told apart by their set.
    """
    found = [re.fullmatch(r"Clabel:\s*(\d+); set:\s*(\d+); (?:Glabel:\s*\d+; )?(.+)", line) for line in lines]
    names = {int(match[1]): (match[3], match[2]) for match in found if match}
    if names.keys() != {*range(len(lines))}:
        return None
    times = Counter(name for name, _ in names.values())
    by_label = (names[label] for label in range(len(lines)))
    return [name if times[name] == 1 else f"{name} (set {part})" for name, part in by_label]
