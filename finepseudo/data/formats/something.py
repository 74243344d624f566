"""Something-Something V2: the class of a clip is its template without the brackets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from finepseudo.data.formats.entries import Annotation, Source, check_id, shown
from finepseudo.data.formats.own import json_entries


def clips(source: Source) -> Iterator[Annotation]:
    """`{"id", "label", "template", "placeholders"}`; `label` is a sentence about the clip. Tests have an id alone."""
    for where, entry in json_entries(source):
        check_id(entry.get("id"), where, "id", source)
        template = entry.get("template", "")
        if not isinstance(template, str):
            raise source.fault(where, f", field template: expected text, got {shown(template)}")
        yield Annotation(cast(str, entry["id"]), template.replace("[", "").replace("]", ""), "", where)
