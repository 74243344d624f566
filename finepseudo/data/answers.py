"""Committed answers of an expert: which clips are of which class, whatever the annotations say.

`review/answers.py` makes them of what an expert hands in; `split.answers` names the folder, and the split reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from finepseudo.errors import ManifestError
from finepseudo.fields import nearest
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, located

FOLDER = "answers"  # of all that were imported into a run
PART = "answers.json"


@dataclass(frozen=True)
class Answers:
    """Names of classes by clip id, and what is known beside."""

    label: Mapping[str, str]
    new: tuple[str, ...] = ()  # those of the names that are new classes
    before: Mapping[str, str] = field(default_factory=dict[str, str])
    """The pseudo-label that an answered clip had when it was asked for."""
    rejected: tuple[str, ...] = ()  # clips whose pseudo-label is wrong, and nobody knows the right one

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @staticmethod
    def load(uri: str) -> Answers:
        """The answers of a committed folder, `<run>/answers/<digest>`. Raises ArtefactError: there are none."""
        store, folder = located(uri.rstrip("/"))
        body: dict[str, Any] = json.loads(artefacts.read_part(store, folder, PART))
        return Answers(body["label"], tuple(body["new"]), body["before"], tuple(body["rejected"]))

    def classes(self, class_names: tuple[str, ...], place: str) -> tuple[str, ...]:
        """The names that they add to those of the manifest, sorted.

        Raises ManifestError: a label is neither there nor called new; such as in answers for other data.
        """
        for video_id, name in sorted(self.label.items()):
            if name not in class_names and name not in self.new:
                raise ManifestError(
                    f"{place}, clip {video_id}: expected a class of the manifest, got {name!r}"
                    f"{nearest(name, class_names)}; these answers are for other data"
                )
        return tuple(sorted({*self.new} - {*class_names}))


def run_of(uri: str) -> Store:
    """The run directory that answers were imported into."""
    return Store(uri.rstrip("/").rpartition("/")[0].rpartition("/")[0])
