"""FineDiving: the official pickles, read without running what stands in them, and the JSON form of events.

A clip is a folder of frames, `<video>/<n>/00001.jpg`; the class is the type of the dive, such as 407c.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

from finepseudo.data.formats.entries import Annotation, Source, check_id, shown
from finepseudo.data.formats.own import json_entries

KINDS = ("FineDiving_fine-grained_annotation.pkl", "FineDiving_coarse_annotation.pkl")
_ARRAYS = {(f"numpy{part}.multiarray", name) for part in (".core", "._core") for name in ("_reconstruct", "scalar")}
_ARRAYS |= {(f"numpy{part}.numeric", "_frombuffer") for part in (".core", "._core")}
_ARRAYS |= {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError)
_BROKEN += (ArithmeticError, ImportError, RuntimeError)  # of lengths beyond all numbers, of numpy's own readers


class _Plain(pickle.Unpickler):
    """Of containers, text, numbers and numpy arrays; any other name is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return super().find_class(module, name)


def clips(source: Source) -> Iterator[Annotation]:
    """`train_split.pkl`, with one of the annotation pickles beside it, or JSON with `video` and `_source_info`."""
    if source.file.lower().endswith(".pkl"):
        yield from _pickled(source)
        return
    for where, entry in json_entries(source):
        info, video = entry.get("_source_info"), entry.get("video")
        check_id(video, where, "video", source)
        if not isinstance(info, dict) or "action_type" not in info:
            raise source.fault(where, f", field _source_info: expected an object with action_type, got {shown(info)}")
        folder = "/".join(str(video).rsplit("__", 1))
        yield Annotation(str(video), str(info["action_type"]), "", where, name=folder)


def _pickled(source: Source) -> Iterator[Annotation]:
    kinds = _kinds(source)
    keys = _load(source)
    if not isinstance(keys, list | tuple):
        raise source.fault(None, f": expected a list of (video, number), got {shown(keys)}")
    for where, key in enumerate(keys):
        if not (isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str)):
            raise source.fault(where, f": expected (video, number), got {shown(key)}")
        video, count = key
        check_id(video, where, "video", source)
        entry = kinds.get(key)
        if not isinstance(entry, dict) or "action_type" not in entry:
            raise source.fault(where, f": expected an action_type for {key!r} beside it, got {shown(entry)}")
        yield Annotation(f"{video}__{count}", str(entry["action_type"]), "", where, name=f"{video}/{count}")


def _kinds(source: Source) -> dict[Any, Any]:
    """What is known of every clip, of the first annotation pickle that lies beside the split."""
    beside = [source.sibling(name) for name in KINDS]
    there = [each for each in beside if source.store.exists(each.file)]
    body = _load((there or beside)[0])
    if not isinstance(body, dict):
        raise there[0].fault(None, f": expected a dictionary by (video, number), got {shown(body)}")
    return body


def _load(source: Source) -> Any:
    with source.opened() as file:
        try:
            return _Plain(file).load()
        except _BROKEN as error:
            raise source.fault(None, f": not a pickle of plain values: {error}") from None
