"""Labels of a run as files: made on this machine, some rows at a time, and put where they belong when all is made."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finepseudo.errors import ArtefactError, RecipeError
from finepseudo.labels.forms import write_csv, write_jsonl, write_parquet
from finepseudo.labels.outcome import Outcome
from finepseudo.labels.tools import write_cleanlab, write_fiftyone, write_label_studio
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, located

log = logging.getLogger("finepseudo")


@dataclass(frozen=True)
class Form:
    """A form of labels."""

    write: Callable[[Outcome, Path], None]
    ending: str = ""  # of its one file; empty: a folder of several


FORMS: dict[str, Form] = {
    "csv": Form(write_csv, ".csv"),
    "parquet": Form(write_parquet, ".parquet"),
    "jsonl": Form(write_jsonl, ".jsonl"),
    "label-studio": Form(write_label_studio),
    "fiftyone": Form(write_fiftyone),
    "cleanlab": Form(write_cleanlab, ".npz"),
}


def form_of(to: str, asked: str | None) -> str:
    """The form that is asked for, or that the ending of a file's name says.

    Raises RecipeError: neither says one, or they contradict each other.
    """
    endings = {form.ending: name for name, form in FORMS.items() if form.ending}
    by_ending = next((name for ending, name in endings.items() if to.lower().endswith(ending)), None)
    if asked is None and by_ending is None:
        raise RecipeError(
            f"--to {to}: its ending says no form; expected {', '.join(endings)}, or --as with one of {', '.join(FORMS)}"
        )
    if asked is not None and by_ending not in (None, asked):
        raise RecipeError(f"--to {to} ends as {by_ending} does, and --as is {asked}: change one of them")
    return asked or by_ending or ""


def export(outcome: Outcome, to: str, form: str, *, force: bool = False) -> list[str]:
    """Write the labels in a form; the full addresses of the files.

    One file is there whole or not at all. Of a folder, the marker `committed.json` comes last.

    Args:
        to: a path or a URI, of a file or, for a form of several, of a folder.
        force: replace what is there.
    Raises ArtefactError: something is there, and `force` is not set.
    """
    kind = FORMS[form]
    place, name = located(to.rstrip("/"))
    single, target = bool(kind.ending), place.uri(name)
    there = place.exists(name) if single else place.list(name)
    if there and not force:
        raise ArtefactError(f"{target} is there already; --force replaces it, or name another place by --to")
    with tempfile.TemporaryDirectory(prefix="finepseudo-labels-") as folder:
        kind.write(outcome, Path(folder) / name if single else Path(folder))
        made = {file.name: artefacts.file_record(str(file)) for file in sorted(Path(folder).iterdir())}
        if not single:
            _take_away(place, name)
        for part in made:
            place.put(part if single else f"{name}/{part}", f"{folder}/{part}")
        if not single:
            artefacts.seal(place, name, made, {"run": outcome.run.store.uri(), "round": outcome.last, "form": form})
    left = len(outcome.clip_N) - outcome.labelled
    log.info("%s: %d unlabelled clips with a label, %d without one", outcome.last, outcome.labelled, left)
    return [target] if single else [f"{target}/{part}" for part in made]


def _take_away(place: Store, name: str) -> None:
    """What an earlier export committed: first its marker, so that no reader takes half of it for a whole."""
    marker = artefacts.committed(place, name)
    for part in (artefacts.MARKER, *(marker["parts"] if marker else ())):
        place.delete(f"{name}/{part}")
