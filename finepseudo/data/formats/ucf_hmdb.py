"""UCF101 and HMDB51: the class of a clip is a folder's or a list's name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from finepseudo.data.formats.entries import Annotation, Source, check_id, shown, without_ending

HMDB = {"0": "", "1": "train", "2": "test"}


def ucf101(source: Source) -> Iterator[Annotation]:
    """`Class/v_Class_g01_c01.avi 1` or without the label, which counts from 1 and says no more than the folder."""
    for where, text in source.texts():
        path, _, _ = text.partition(" ")
        folder, slash, file = path.rpartition("/")
        if not slash or "/" in folder:
            raise source.fault(where, f": expected <class>/<file> and perhaps a label, got {shown(text)}")
        video_id = without_ending(file)
        check_id(video_id, where, "file", source)
        yield Annotation(video_id, folder, "", where, name=f"{folder}/{video_id}")


def hmdb51(source: Source) -> Iterator[Annotation]:
    """`<class>_test_split1.txt`, a file for each class; on its lines a name and 1 (train), 2 (test) or 0 (not used)."""
    found = re.fullmatch(r"(.+)_test_split\d\.txt", source.file.rpartition("/")[2])
    if not found:
        raise source.fault(None, ": expected files named <class>_test_split<1, 2 or 3>.txt; give data.train with a *")
    for where, text in source.texts():
        file, _, use = text.rpartition(" ")
        if use not in HMDB:
            raise source.fault(where, f": expected a file and 0, 1 or 2, got {shown(text)}")
        video_id = without_ending(file)
        check_id(video_id, where, "file", source)
        if HMDB[use]:
            yield Annotation(video_id, found[1], HMDB[use], where, name=f"{found[1]}/{video_id}")
        else:
            source.notes["{} clips are in neither half of the split and left out"] += 1


def numbered(lines: list[str]) -> list[Any] | None:
    """Names of `1 ApplyEyeMakeup`, as `classInd.txt` has; None where the lines do not count from 1."""
    pairs = [line.split() for line in lines]
    right = all(len(pair) == 2 and pair[0] == str(place) for place, pair in enumerate(pairs, start=1))
    return [pair[1] for pair in pairs] if right else None
